"""Knowledge editing by activation steering: fit edits of a frozen language model, route them by content, undo them."""

from mega_pl.backbone import Backbone, Site, load, prompt_lengths
from mega_pl.edits import EditBank, EditCase, EditRequest
from mega_pl.fitting import fit

__all__ = ["Backbone", "EditBank", "EditCase", "EditRequest", "Site", "fit", "load", "prompt_lengths"]
