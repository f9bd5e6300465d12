"""From a contrast to the layers that edits should steer at."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mega_pl.attribution.contrast import Contrast
from mega_pl.errors import MegaValueError


def layer_scores(contrast: Contrast, *, suppression: float = 1.0) -> Tensor:
    """Score each block by what its attention does for successful edits, C(attention, new) − λ C(attention, true).

    Attention that promotes the new object and holds the true one back where edits succeed scores high.

    Args:
        contrast: Successes against failures.
        suppression: λ, the weight of holding the true object back.

    Returns:
        (L,) nats.
    """
    scores: Tensor = contrast.mean[0, 0] - suppression * contrast.mean[1, 0]
    return scores


def pick_layers(
    scores: Tensor, number: int, *, window: tuple[float, float] = (0.4, 1.0), spacing: int = 1
) -> list[int]:
    """Take the layers with the highest scores, within a window of depths and not too close to each other.

    Args:
        scores: (L,), higher is better.
        number: Layers to take.
        window: Fractions of the depth: block l of L lies at l / (L - 1).
        spacing: Least distance of two taken layers.

    Returns:
        The layers, first to last.

    Raises:
        ValueError: If the window does not hold so many layers at this spacing.
    """
    low, high = window
    if not 0 <= low <= high <= 1:
        raise MegaValueError(f"`window` must be two fractions in order, but got {window}.")
    if number < 1 or spacing < 1:
        raise MegaValueError(f"`number` and `spacing` must be at least 1, but got {number} and {spacing}.")
    last = max(1, len(scores) - 1)
    inside = range(math.ceil(low * last - 1e-9), math.floor(high * last + 1e-9) + 1)
    taken: list[int] = []
    for layer in torch.argsort(scores, descending=True, stable=True).tolist():
        if layer in inside and len(taken) < number and all(abs(layer - other) >= spacing for other in taken):
            taken.append(layer)
    if len(taken) < number:
        raise MegaValueError(
            f"`window` {window} must hold {number} layers {spacing} apart, but holds {len(taken)} of {len(scores)}; "
            "widen it, or take fewer layers or a smaller spacing."
        )
    return sorted(taken)
