"""Knowledge editing by activation steering: fit edits of a frozen language model, route them by content, undo them."""

from mega_pl.backbone import Backbone, Site
from mega_pl.edits import EditBank, EditRequest
from mega_pl.fitting import fit
from mega_pl.lab import model_path

__all__ = ["Backbone", "EditBank", "EditRequest", "Site", "fit", "model_path"]
