"""Whether edits act on a subject that the question itself does not name, one class a measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from mega_pl.errors import MegaValueError
from mega_pl.metrics.sake import HitRate, SuccessRate

MediatedKind = Literal["description", "renaming", "description_other", "renaming_other", "aside"]
"""How the subject comes into a question: see `mega_pl.evaluation.mediated.MediatedTest`."""


def same_tokens(predictions: Sequence[str], bare_predictions: Sequence[str]) -> Tensor:
    """Whether the edited model says right after each prompt what the bare one says.

    Args:
        predictions: N decoded argmax tokens of the edited model.
        bare_predictions: N of the bare model.

    Returns:
        (N,) bool.

    Raises:
        ValueError: if the lengths differ.
    """
    if len(predictions) != len(bare_predictions):
        raise MegaValueError(
            "`predictions` and `bare_predictions` must be equally long, "
            f"but got {len(predictions)} and {len(bare_predictions)}."
        )
    return torch.tensor([a == b for a, b in zip(predictions, bare_predictions, strict=True)], dtype=torch.bool)


class Mediated(HitRate):
    """Share of questions about the edited subject, named only before them, that get the new object."""


class Followed(HitRate):
    """The same among questions where the bare model gives the true object. Kept: it does."""


class Unmoved(SuccessRate):
    """Share of questions about other subjects whose next token is the bare model's."""

    def update(self, predictions: Sequence[str], bare_predictions: Sequence[str]) -> None:
        """Count a batch; arguments as for `same_tokens`."""
        hits = same_tokens(predictions, bare_predictions)
        self._count(hits, torch.ones_like(hits))


MEDIATED_METRICS: dict[str, type[HitRate] | type[Unmoved]] = {
    "description": Mediated,
    "description_followed": Followed,
    "renaming": Mediated,
    "renaming_followed": Followed,
    "description_other": Unmoved,
    "renaming_other": Unmoved,
    "aside": Unmoved,
}
"""The protocol's measures under the keys of `metrics.json`."""


def mediated_metrics() -> MetricCollection:
    """The measures, to be updated one by one under their keys."""
    return MetricCollection({name: metric() for name, metric in MEDIATED_METRICS.items()}, compute_groups=False)
