"""Banks for other runtimes, one file a format.

What decides which edit a prompt gets stays here: a runtime is handed the maps of each edit, and its caller chooses.
"""

from mega_pl.edits.export.folder import INDEX, Form, export_bank

__all__ = ["INDEX", "Form", "export_bank"]
