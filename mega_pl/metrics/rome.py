"""The measures of ROME and MEMIT (arXiv:2202.05262, arXiv:2210.07229) under their names, one class a measure.

Both compare the new object o* with the true one o by their mean negative log-likelihood over target tokens, so that
P(o) below is exp(−nll(o)), the geometric mean of the tokens' probabilities. All are macro means as fractions; the
papers' tables show a hundred times as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from mega_pl.errors import MegaValueError
from mega_pl.functional.text import Tfidf
from mega_pl.metrics.fluency import Fluency, ReferenceScore
from mega_pl.metrics.functional import check_columns, edit_means, harmonic_mean
from mega_pl.metrics.means import MacroMean

RomeKind = Literal["rewrite", "paraphrase", "neighborhood", "attribute", "generation"]
"""The prompts of a CounterFact record."""


def preferred(right: Tensor, wrong: Tensor) -> Tensor:
    """Whether the right object is more probable than the wrong one: nll(right) < nll(wrong).

    Args:
        right: (N,) mean negative log-likelihood of the right object's tokens, in nats.
        wrong: (N,) the same for the other object.

    Returns:
        (N,) bool.

    Raises:
        ValueError: if the shapes differ or a value is nan.
    """
    check_columns("log-likelihoods", {"right": right, "wrong": wrong})
    return right < wrong


def lead(right: Tensor, wrong: Tensor) -> Tensor:
    """How much more probable the right object is: exp(−nll(right)) − exp(−nll(wrong)), (N,). As `preferred`."""
    check_columns("log-likelihoods", {"right": right, "wrong": wrong})
    return right.neg().exp() - wrong.neg().exp()


class RomeLikelihood(MacroMean):
    """A macro mean of what two mean negative log-likelihoods say about a test."""

    def update(self, new: Tensor, true: Tensor, edits: Sequence[str]) -> None:
        """Count a batch.

        Args:
            new: (N,) mean negative log-likelihood of the new object's tokens after each prompt, in nats.
            true: (N,) the same for the true object.
            edits: N edit ids; all tests of an edit together.

        Raises:
            ValueError: if the lengths differ or a value is nan.
        """
        self._add(self.outcomes(new, true), edits)

    @staticmethod
    def outcomes(new: Tensor, true: Tensor) -> Tensor:
        """What each test contributes, (N,)."""
        raise NotImplementedError


class EfficacyScore(RomeLikelihood):
    """ES: after the edit prompt P(o*) > P(o)."""

    @staticmethod
    def outcomes(new: Tensor, true: Tensor) -> Tensor:
        """Whether the new object leads, (N,) bool."""
        return preferred(new, true)


class EfficacyMagnitude(RomeLikelihood):
    """EM: P(o*) − P(o) after the edit prompt."""

    @staticmethod
    def outcomes(new: Tensor, true: Tensor) -> Tensor:
        """How far the new object leads, (N,)."""
        return lead(new, true)


class ParaphraseScore(EfficacyScore):
    """PS: after paraphrases P(o*) > P(o)."""


class ParaphraseMagnitude(EfficacyMagnitude):
    """PM: P(o*) − P(o) after paraphrases."""


class NeighborhoodScore(RomeLikelihood):
    """NS: after prompts about other subjects, whose object is o, P(o) > P(o*)."""

    @staticmethod
    def outcomes(new: Tensor, true: Tensor) -> Tensor:
        """Whether the true object leads, (N,) bool."""
        return preferred(true, new)


class NeighborhoodMagnitude(RomeLikelihood):
    """NM: P(o) − P(o*) after prompts about other subjects, whose object is o."""

    @staticmethod
    def outcomes(new: Tensor, true: Tensor) -> Tensor:
        """How far the true object leads, (N,)."""
        return lead(true, new)


class AttributeScore(EfficacyScore):
    """After prompts about other subjects, whose object is o* anyway, P(o*) > P(o)."""


class AttributeMagnitude(EfficacyMagnitude):
    """P(o*) − P(o) after prompts about other subjects, whose object is o* anyway."""


class EditScore(Metric):
    """S: harmonic mean of ES, PS and NS; nan before each has an edit, 0 where one is 0. Higher is better."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    totals: Tensor
    """Sums of the edits' means of ES, PS and NS, (3,) float64."""
    edits: Tensor
    """Numbers of edits, (3,) int64."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("totals", default=torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("edits", default=torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, kind: RomeKind, new: Tensor, true: Tensor, edits: Sequence[str]) -> None:
        """Count a batch.

        Args:
            kind: rewrite, paraphrase or neighborhood.
            new: as the parts take it.
            true: as the parts take it.
            edits: as the parts take it.

        Raises:
            ValueError: if the score has no such part, the lengths differ or a value is nan.
        """
        if kind not in SCORE_PARTS:
            raise MegaValueError(f"`kind` must be one of {', '.join(SCORE_PARTS)}, but got {kind!r}.")
        means, names = edit_means(SCORE_PARTS[kind].outcomes(new, true), edits)
        part = list(SCORE_PARTS).index(kind)
        self.totals[part] += means.sum().to(self.totals.device)
        self.edits[part] += len(names)

    def compute(self) -> Tensor:
        """The score, () float64 on the CPU."""
        return harmonic_mean(self.totals.cpu() / self.edits.cpu())


class RewriteExact(MacroMean):
    """MEMIT's accuracy: every token of o* is the most probable one after the edit prompt and the tokens before it."""

    def update(self, exact: Tensor, edits: Sequence[str]) -> None:
        """Count a batch.

        Args:
            exact: (N,) bool, whether each token of the right object was the most probable one.
            edits: N edit ids; all tests of an edit together.

        Raises:
            ValueError: if the lengths differ.
        """
        self._add(exact, edits)


class ParaphraseExact(RewriteExact):
    """The same after paraphrases."""


class NeighborhoodExact(RewriteExact):
    """The same for o after prompts about other subjects, whose object is o."""


LIKELIHOODS: dict[str, tuple[RomeKind, type[RomeLikelihood]]] = {
    "efficacy_score": ("rewrite", EfficacyScore),
    "efficacy_magnitude": ("rewrite", EfficacyMagnitude),
    "paraphrase_score": ("paraphrase", ParaphraseScore),
    "paraphrase_magnitude": ("paraphrase", ParaphraseMagnitude),
    "neighborhood_score": ("neighborhood", NeighborhoodScore),
    "neighborhood_magnitude": ("neighborhood", NeighborhoodMagnitude),
    "attribute_score": ("attribute", AttributeScore),
    "attribute_magnitude": ("attribute", AttributeMagnitude),
}
"""The measures of likelihoods under the keys of `metrics.json`, with the prompts that each asks."""

SCORE_PARTS: dict[RomeKind, type[RomeLikelihood]] = {
    kind: metric for name, (kind, metric) in LIKELIHOODS.items() if name.endswith("_score") and kind != "attribute"
}
"""What the score S is made of."""

EXACT: dict[str, tuple[RomeKind, type[RewriteExact]]] = {
    "rewrite_exact": ("rewrite", RewriteExact),
    "paraphrase_exact": ("paraphrase", ParaphraseExact),
    "neighborhood_exact": ("neighborhood", NeighborhoodExact),
}
"""MEMIT's accuracies, as `LIKELIHOODS`."""


def rome_metrics(tfidf: Tfidf | None = None) -> MetricCollection:
    """The measures, to be updated one by one under their keys; the reference score only where a `tfidf` is given."""
    metrics: dict[str, Metric | MetricCollection] = {
        **{name: metric() for name, (_, metric) in (LIKELIHOODS | EXACT).items()},
        "score": EditScore(),
        "fluency": Fluency(),
    }
    if tfidf is not None:
        metrics["reference_score"] = ReferenceScore(tfidf)
    return MetricCollection(metrics, compute_groups=False)
