"""Lightning callbacks for editing and steering runs."""
