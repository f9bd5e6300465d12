"""Knowledge editing by activation steering: fit edits of a frozen language model, route them by content, undo them."""

from mega_pl.backbone import Backbone, Site, load
from mega_pl.edits import EditBank, EditRequest
from mega_pl.fitting import fit_edits

__all__ = ["Backbone", "EditBank", "EditRequest", "Site", "fit_edits", "load"]
