"""A local page on which edits are tried and understood; ``pip install "mega-pl[look]"`` brings what it is made with."""
