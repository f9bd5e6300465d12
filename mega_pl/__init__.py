"""Knowledge editing by activation steering: fit edits of a frozen language model, route them by content, undo them."""

from mega_pl.backbone import Backbone, Site, load, prompt_lengths
from mega_pl.edits import EditBank, EditCase, EditRequest
from mega_pl.errors import MegaError
from mega_pl.fitting import FitConfig, fit

__all__ = [
    "Backbone",
    "EditBank",
    "EditCase",
    "EditRequest",
    "FitConfig",
    "MegaError",
    "Site",
    "fit",
    "load",
    "prompt_lengths",
]
