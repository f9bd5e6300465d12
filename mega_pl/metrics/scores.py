"""One entry of `metrics.json`, and the ways in which outcomes of tests become one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from mega_pl.metrics.functional import arithmetic_mean, bootstrap_interval, edit_means, harmonic_mean


@dataclass(frozen=True)
class Score:
    """One entry of `metrics.json`.

    Args:
        value: what the measure makes of the edited model, in its own unit; nan if nothing is counted.
        n: number of what is counted: kept tests where every test counts once, edits where every edit does.
        ci95: ends of the 95% bootstrap interval over edits.
        bare: the bare model's value on the same tests.
    """

    value: float
    n: int
    ci95: tuple[float, float]
    bare: float

    def to_json(self) -> dict[str, Any]:
        """The entry; JSON has no nan, so that null stands for it."""
        value, low, high, bare = (x if math.isfinite(x) else None for x in (self.value, *self.ci95, self.bare))
        return {"value": value, "n": self.n, "ci95": [low, high], "bare": bare}


NOT_AVAILABLE = Score(math.nan, 0, (math.nan, math.nan), math.nan)
"""The score of a measure that the data cannot tell."""


def rate_score(edited: Tensor, bare: Tensor, edits: Sequence[str], *, seed: int) -> Score:
    """Micro mean: every test counts once.

    Args:
        edited: (N,) outcome of each kept test for the edited model, boolean or a number.
        bare: (N,) the same for the bare model.
        edits: N edit ids.
        seed: of the bootstrap.
    """
    if not len(edited):
        return NOT_AVAILABLE
    interval = bootstrap_interval(edited.double().tolist(), edits, seed=seed)
    return Score(float(edited.double().mean()), len(edited), interval, float(bare.double().mean()))


def macro_score(edited: Tensor, bare: Tensor, edits: Sequence[str], *, seed: int) -> Score:
    """Macro mean: every edit counts once, as in `MacroMean`. Arguments as for `rate_score`."""
    if not len(edited):
        return NOT_AVAILABLE
    means, names = edit_means(edited, edits)
    interval = bootstrap_interval(means.tolist(), names, seed=seed)
    return Score(float(means.mean()), len(means), interval, float(edit_means(bare, edits)[0].mean()))


def harmonic_score(parts: Sequence[tuple[Tensor, Tensor, Sequence[str]]], *, seed: int) -> Score:
    """Harmonic mean of the macro means of several measures; not available where one of them is not.

    Args:
        parts: for each measure what `macro_score` takes.
        seed: of the bootstrap.
    """
    if not all(len(edited) for edited, _, _ in parts):
        return NOT_AVAILABLE
    means = [edit_means(edited, edits) for edited, _, edits in parts]
    before = [edit_means(bare, edits)[0] for _, bare, edits in parts]
    value, bare_value = (
        float(harmonic_mean(torch.stack([part.mean() for part in side]))) for side in ([m for m, _ in means], before)
    )
    n = len({edit for _, edits in means for edit in edits})
    return Score(value, n, _joint_interval(means, seed, harmonic_mean), bare_value)


def average_score(scores: Sequence[Score], parts: Sequence[tuple[Tensor, Sequence[str]]], *, seed: int) -> Score:
    """Mean of the measures that count something.

    Args:
        scores: the measures' scores.
        parts: for each measure the outcomes that its score is the mean of, and whose edits they are.
        seed: of the bootstrap.
    """
    present = [score for score in scores if score.n]
    if not present:
        return NOT_AVAILABLE
    value, bare = fmean(score.value for score in present), fmean(score.bare for score in present)
    return Score(value, sum(score.n for score in present), _joint_interval(parts, seed, arithmetic_mean), bare)


def _joint_interval(
    parts: Sequence[tuple[Tensor, Sequence[str]]], seed: int, combine: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    """Bootstrap interval of what `combine` makes of the parts' means, all seeing the same draws of edits."""
    values = [value for outcomes, _ in parts for value in outcomes.double().tolist()]
    edits = [edit for _, edits in parts for edit in edits]
    labels = [str(i) for i, (_, edits) in enumerate(parts) for _ in edits]
    return bootstrap_interval(values, edits, parts=labels, seed=seed, combine=combine)
