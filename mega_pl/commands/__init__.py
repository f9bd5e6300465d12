"""The verbs of the command line beside Lightning's own."""

from mega_pl.commands.attribute import attribute
from mega_pl.commands.compare import compare

__all__ = ["attribute", "compare"]
