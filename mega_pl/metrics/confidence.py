"""How sure an edited model is of the new object, however it is asked and whatever it is called; one class a measure.

With p_k the probability of the new object's first token after the k-th wording of an edit's question, o* the new
object, A its other names and O objects of another meaning:

- mean = (1/K) Σ_k p_k;
- variation = sqrt((1/K) Σ_k (p_k − mean)²) / mean, the coefficient of variation, 0 where wording does not matter;
- separation = share of pairs (k, o in O) with p_k(o*) > p_k(o), ties half, the area under the ROC curve;
- log_odds = mean over pairs (k, o in O) of ln p_k(o*) − ln p_k(o), in nats;
- agreement = share of triples (k, a in A, o in O) with p_k(a) > p_k(o), ties half;
- alias_gap = mean over pairs (k, a in A) of |ln p_k(o*) − ln p_k(a)|, in nats.

Each is taken within an edit, and edits are averaged. Only first tokens are looked at, so that names which begin with
the new object's first token say nothing and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from mega_pl.errors import MegaValueError
from mega_pl.metrics.functional import check_columns
from mega_pl.metrics.means import MacroMean

ConfidenceKind = Literal["plain", "prefix", "surface", "paraphrase"]
"""The edit prompt as it is, after a neutral sentence, with other case or punctuation, and in other words."""


def variation(chances: Tensor) -> float:
    """Coefficient of variation of the probabilities of one answer, std / mean with the population's std.

    >>> variation(torch.tensor([0.25, 0.75]))
    0.5

    Args:
        chances: (K,) probabilities.

    Returns:
        It; nan where there are fewer than two, or all are 0.

    Raises:
        ValueError: if the shape is another, or a value is nan or negative.
    """
    check_columns("probabilities", {"chances": chances})
    if len(chances) and float(chances.min()) < 0:
        raise MegaValueError(f"`chances` must be 0 or more, but got {float(chances.min())}.")
    values = chances.double()
    if len(values) < 2 or not float(values.sum()):
        return math.nan
    return float(values.std(correction=0) / values.mean())


def wins(above: Tensor, below: Tensor) -> float:
    """Share of pairs whose first member is the greater one, ties half: the area under the ROC curve.

    >>> wins(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0]))
    0.875

    Args:
        above: (P,) values.
        below: (Q,) values.

    Returns:
        It; nan where a side is empty.

    Raises:
        ValueError: if a shape is another or a value is nan.
    """
    for name, side in {"above": above, "below": below}.items():
        check_columns("values", {name: side})
    if not len(above) or not len(below):
        return math.nan
    return float((above[:, None] - below).sign().double().mean()) / 2 + 0.5


class EditMean(MacroMean):
    """Mean over edits of a value that each edit has; nan stands for an edit that has none."""

    def update(self, values: Tensor) -> None:
        """Count a batch.

        Args:
            values: (E,) one of each edit.
        """
        kept = values[~values.isnan()]
        self._add(kept, [str(i) for i in range(len(kept))])


class Variation(EditMean):
    """Mean over edits of the variation. Lower is better."""

    higher_is_better = False


class AliasGap(EditMean):
    """Mean over edits of the alias gap, in nats. Lower is better."""

    higher_is_better = False


FAMILIES: tuple[ConfidenceKind, ...] = ("prefix", "surface", "paraphrase")
"""The ways in which the edit prompt is changed."""

CONFIDENCE_METRICS: dict[str, type[EditMean]] = {
    "plain": EditMean,
    **{f"{kind}_mean": EditMean for kind in FAMILIES},
    **{f"{kind}_variation": Variation for kind in FAMILIES},
    "separation": EditMean,
    "log_odds": EditMean,
    "agreement": EditMean,
    "alias_gap": AliasGap,
}
"""The protocol's measures under the keys of `metrics.json`."""


def confidence_metrics() -> MetricCollection:
    """The measures, to be updated one by one under their keys."""
    return MetricCollection({name: metric() for name, metric in CONFIDENCE_METRICS.items()}, compute_groups=False)


def edit_confidence(
    kinds: Sequence[ConfidenceKind], new: Sequence[float], same: Sequence[Tensor], other: Sequence[Tensor]
) -> dict[str, float]:
    """The measures of one edit.

    Args:
        kinds: of its K questions.
        new: log-probability of the new object's first token after each, in nats.
        same: for each question (A,) those of its other names.
        other: for each (O,) those of objects of another meaning.

    Returns:
        By the keys of `CONFIDENCE_METRICS`; nan where the edit has nothing to tell.

    Raises:
        ValueError: if the lengths differ, or there is no question.
    """
    if not kinds or len({len(kinds), len(new), len(same), len(other)}) > 1:
        raise MegaValueError(
            "`kinds`, `new`, `same` and `other` must be given for the same questions, at least one, "
            f"but got {len(kinds)}, {len(new)}, {len(same)} and {len(other)}."
        )
    own = torch.tensor(new, dtype=torch.float64)
    of = {kind: own[[k == kind for k in kinds]].exp() for kind in ("plain", *FAMILIES)}
    values = {"plain": _mean(of["plain"])}
    values |= {f"{kind}_mean": _mean(of[kind]) for kind in FAMILIES}
    # with the edit prompt itself, from which the others are departures
    values |= {
        f"{k}_variation": variation(torch.cat([of["plain"], of[k]])) if len(of[k]) else math.nan for k in FAMILIES
    }
    rows = list(zip(own[:, None], same, other, strict=True))
    values["separation"] = _mean(_told([wins(value, others) for value, _, others in rows]))
    values["log_odds"] = _mean(torch.cat([value - others for value, _, others in rows]))
    values["agreement"] = _mean(_told([wins(names, others) for _, names, others in rows]))
    values["alias_gap"] = _mean(torch.cat([(value - names).abs() for value, names, _ in rows]))
    return values


def _told(values: list[float]) -> Tensor:
    return torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
