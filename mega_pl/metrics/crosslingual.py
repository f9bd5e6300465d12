"""Whether an edit made in English holds in other languages, one class a measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from mega_pl.errors import MegaValueError
from mega_pl.functional.language import Language, language_of
from mega_pl.metrics.functional import mask_of
from mega_pl.metrics.rome import preferred
from mega_pl.metrics.sake import SuccessRate

CrosslingualKind = Literal["question", "rephrase"]
"""The edit's question in the language, and the same in other words."""

ASKED: tuple[Language, ...] = ("de", "fr", "zh")
"""The languages that columns are made for."""


def in_language(texts: Sequence[str], languages: Sequence[Language]) -> Tensor:
    """Whether each text is in its language, as `language_of` sees it.

    Args:
        texts: N texts.
        languages: N languages.

    Returns:
        (N,) bool.

    Raises:
        ValueError: if the lengths differ.
    """
    if len(texts) != len(languages):
        raise MegaValueError(
            f"`texts` and `languages` must be equally long, but got {len(texts)} and {len(languages)}."
        )
    pairs = zip(texts, languages, strict=True)
    return torch.tensor([language_of(text) == language for text, language in pairs], dtype=torch.bool)


class Success(SuccessRate):
    """Share of questions after which P(o*) > P(o), for the objects' names in the language."""

    def update(self, new: Tensor, true: Tensor) -> None:
        """Count a batch; arguments as for `preferred`."""
        hits = preferred(new, true)
        self._count(hits, torch.ones_like(hits))


class Answered(SuccessRate):
    """Share of questions where every token of the new object is the most probable one."""

    def update(self, exact: Tensor) -> None:
        """Count a batch.

        Args:
            exact: (N,) bool.
        """
        self._count(exact, torch.ones_like(exact))


class Consistency(SuccessRate):
    """Share of continuations in the language of the question. Kept: the bare model's is in a language that shows."""

    def update(self, texts: Sequence[str], languages: Sequence[Language], kept: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            texts: N continuations.
            languages: N languages of the questions.
            kept: (N,) bool, the tests that count; None keeps all.

        Raises:
            ValueError: if the lengths differ.
            TypeError: if `kept` is not boolean.
        """
        self._count(in_language(texts, languages), mask_of("kept", kept, len(texts)))


MEASURES: dict[str, type[SuccessRate]] = {
    "success": Success,
    "exact": Answered,
    "consistency": Consistency,
}
"""What is measured in each language."""


def crosslingual_metrics() -> MetricCollection:
    """The measures of each language, to be updated one by one under their keys in `metrics.json`."""
    metrics: dict[str, Metric | MetricCollection] = {
        f"{language}_{name}": metric() for language in ASKED for name, metric in MEASURES.items()
    }
    return MetricCollection(metrics, compute_groups=False)
