"""Tensors in, tensors out: the mathematics of an edit, with neither Lightning nor Hugging Face."""

from mega_pl.functional.forms import Affine, Reft, affine, reft
from mega_pl.functional.gaussian import check_options, fit_transport, mean_shift
from mega_pl.functional.transport import (
    BASIS_DTYPES,
    SHIFT_DTYPES,
    MapDtype,
    Transport,
    Transports,
    join,
    map_bytes,
    shifting,
    stack,
)

__all__ = [
    "BASIS_DTYPES",
    "SHIFT_DTYPES",
    "Affine",
    "MapDtype",
    "Reft",
    "Transport",
    "Transports",
    "affine",
    "check_options",
    "fit_transport",
    "join",
    "map_bytes",
    "mean_shift",
    "reft",
    "shifting",
    "stack",
]
