"""Tensors in, tensors out."""

from mega_pl.functional.transport import Transport, fit_transport, mean_shift

__all__ = ["Transport", "fit_transport", "mean_shift"]
