"""The verbs of the command line beside Lightning's own."""

from mega_pl.commands.attribute import attribute
from mega_pl.commands.compare import compare
from mega_pl.commands.export import export
from mega_pl.commands.look import look
from mega_pl.commands.predict import predict

__all__ = ["attribute", "compare", "export", "look", "predict"]
