"""Tensors in, tensors out: the mathematics of an edit, with neither Lightning nor Hugging Face."""

from mega_pl.functional.forms import Affine, Reft, affine, reft
from mega_pl.functional.transport import Transport, Transports, fit_transport, join, mean_shift, stack

__all__ = [
    "Affine",
    "Reft",
    "Transport",
    "Transports",
    "affine",
    "fit_transport",
    "join",
    "mean_shift",
    "reft",
    "stack",
]
