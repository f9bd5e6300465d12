"""From one row a test to the scores of `metrics.json`, under the protocol `sake`.

The rows hold what the bare and the edited model said, not what was made of it, so that any denominator can be
recomputed from `cases.jsonl`. The rates themselves are the metric classes' business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor

from mega_pl.data.sake import Test
from mega_pl.metrics.functional import bootstrap_interval, first_token_hits, specificity_hits
from mega_pl.metrics.sake import SAKE_METRICS, HitRate, Spec

_CONDITIONAL = frozenset({"ci", "cii", "rs", "sa"})
_PROBABILITIES = ("new_probability", "true_probability", "bare_new", "bare_true")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the bare and the edited model answer to one test; `dataclasses.asdict` makes it a line of `cases.jsonl`.

    Args:
        test: the test.
        bare_prediction: decoded argmax token of the bare model after the test's prompt.
        prediction: the same after the edit.
        bare_new: the bare model's probability of the first token of `test.new` after the prompt, as a fraction.
        bare_true: the same for `test.true`.
        new_probability: as `bare_new`, after the edit.
        true_probability: as `bare_true`, after the edit.
        knows: whether the bare model hits the test's condition; True where there is none.
        fired: edit id that the gate chose; "" if it stayed silent.

    Raises:
        ValueError: if a probability lies outside [0, 1].
    """

    test: Test
    bare_prediction: str
    prediction: str
    bare_new: float
    bare_true: float
    new_probability: float
    true_probability: float
    knows: bool = True
    fired: str = ""

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:  # also refuses nan
                raise ValueError(
                    f"`{name}` of edit {self.test.edit_id!r} must lie in [0, 1], but got {getattr(self, name)}."
                )


@dataclass(frozen=True)
class Score:
    """One entry of `metrics.json`.

    Args:
        value: successes over kept tests, as a fraction; nan if no test is kept.
        n: number of kept tests.
        ci95: ends of the 95% bootstrap interval over edits.
        bare: the bare model's value on the same kept tests.
    """

    value: float
    n: int
    ci95: tuple[float, float]
    bare: float


def score_sake(rows: Sequence[Row], *, seed: int = 0) -> dict[str, Score]:
    """Score rows under SAKE's protocol as MEGA names it.

    Acc, Gen, DI and DII keep every test, Spec those where the bare model has P(o*) ≤ P(o), and CI, CII, RS and SA
    those whose row `knows` and whose edit took. An edit took if P(o*) > P(o) at its edit prompt after editing.
    `average` is the mean of the measures that have a kept test.

    SA's condition is that the bare model gives the old object under the alias. SAKE's notebook asks the mapped,
    ungated state for the new one instead, so that its SA mostly measures the gate.

    Args:
        rows: one row a test, in any order.
        seed: of the bootstrap.

    Returns:
        The scores under acc, gen, spec, di, dii, ci, cii, rs, sa and average.

    Raises:
        ValueError: if an edit has two Acc rows, or none but a test that depends on it.
    """
    took = _took(rows)
    scores: dict[str, Score] = {}
    values: list[float] = []
    edits: list[str] = []
    parts: list[str] = []
    for name, metric in SAKE_METRICS.items():
        tests = [row for row in rows if row.test.metric == name and _kept(row, took)]
        edited, bare = metric(), metric()
        hits, kept = _update(edited, tests)
        _update(bare, [_without_edit(row) for row in tests])
        outcomes = hits[kept].double().tolist()
        owners = [row.test.edit_id for row, keep in zip(tests, kept.tolist(), strict=True) if keep]
        interval = bootstrap_interval(outcomes, owners, seed=seed)
        scores[name] = Score(float(edited.compute()), edited.n, interval, float(bare.compute()))
        values += outcomes
        edits += owners
        parts += [name] * len(outcomes)
    scores["average"] = _average(list(scores.values()), bootstrap_interval(values, edits, parts=parts, seed=seed))
    return scores


def _took(rows: Sequence[Row]) -> dict[str, bool]:
    """Which edits took, read off their Acc rows."""
    took: dict[str, bool] = {}
    for row in rows:
        if row.test.metric == "acc":
            if row.test.edit_id in took:
                raise ValueError(f"`rows` must hold one acc test an edit, but got two of edit {row.test.edit_id!r}.")
            took[row.test.edit_id] = row.new_probability > row.true_probability
    return took


def _kept(row: Row, took: Mapping[str, bool]) -> bool:
    """The protocol's rule for the row, save for Spec's, which the metric applies itself."""
    if row.test.metric not in _CONDITIONAL:
        return True
    if row.test.edit_id not in took:
        raise ValueError(
            f"`rows` must hold an acc test for each {row.test.metric} test, but got none of edit {row.test.edit_id!r}."
        )
    return took[row.test.edit_id] and row.knows


def _without_edit(row: Row) -> Row:
    return replace(
        row,
        prediction=row.bare_prediction,
        new_probability=row.bare_new,
        true_probability=row.bare_true,
        fired="",
    )


def _update(metric: HitRate | Spec, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Update the metric; also hand back which rows succeed and which are kept, for the bootstrap."""
    if isinstance(metric, Spec):
        columns = [[getattr(row, name) for row in rows] for name in _PROBABILITIES]
        new, true, bare_new, bare_true = torch.tensor(columns, dtype=torch.float64)
        metric.update(new, true, bare_new, bare_true)
        return specificity_hits(new, true, bare_new, bare_true)
    predictions, answers = [row.prediction for row in rows], [row.test.answers for row in rows]
    metric.update(predictions, answers)
    return first_token_hits(predictions, answers), torch.ones(len(rows), dtype=torch.bool)


def _average(scores: Sequence[Score], ci95: tuple[float, float]) -> Score:
    present = [score for score in scores if score.n]
    if not present:
        return Score(math.nan, 0, ci95, math.nan)
    n = sum(score.n for score in present)
    return Score(fmean(score.value for score in present), n, ci95, fmean(score.bare for score in present))
