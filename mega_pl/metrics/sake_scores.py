"""From one row a test to the scores of `metrics.json`, under the protocol `sake`.

The rows hold what the bare and the edited model said, not what was made of it, so that any denominator can be
recomputed from `cases.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mega_pl.data.sake import Test
from mega_pl.errors import MegaValueError
from mega_pl.metrics.functional import first_token_hit, first_token_hits, specificity_hits
from mega_pl.metrics.sake import SAKE_METRICS
from mega_pl.metrics.scores import Score, average_score, rate_score

_CONDITIONAL = frozenset({"ci", "cii", "rs", "sa"})
_FORGIVEN = frozenset({"spec", "rs"})
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
        fired: edit id that the gate chose; "" if it stayed silent, or where the method has no gate.

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
                raise MegaValueError(
                    f"`{name}` of edit {self.test.edit_id!r} must lie in [0, 1], but got {getattr(self, name)}."
                )


def score_sake(rows: Sequence[Row], *, seed: int = 0, literal: bool = False) -> dict[str, Score]:
    """Score rows under SAKE's protocol as MEGA names it.

    Acc, Gen, DI and DII keep every test, Spec those where the bare model has P(o*) ≤ P(o), and CI, CII, RS and SA
    those whose row `knows` and whose edit took. An edit took if P(o*) > P(o) at its edit prompt after editing.
    `average` is the mean of the measures that have a kept test.

    SA's condition is that the bare model gives the old object under the alias. SAKE's notebook asks the mapped,
    ungated state for the new one instead, so that its SA mostly measures the gate; `literal_sa` does so.

    Args:
        rows: one row a test, in any order.
        seed: of the bootstrap.
        literal: count every silent gate as a success of Spec and RS, as SAKE's notebooks do; it says nothing of a
            method without a gate, whose rows all look silent.

    Returns:
        The scores under acc, gen, spec, di, dii, ci, cii, rs, sa and average.

    Raises:
        ValueError: if an edit has two Acc rows, or none but a test that depends on it.
    """
    took = _took(rows)
    scores: dict[str, Score] = {}
    parts = []
    for name in SAKE_METRICS:
        tests = [row for row in rows if row.test.metric == name and _kept(row, took)]
        hits, edits = _hits(name, tests, literal), [row.test.edit_id for row in tests]
        bare = _hits(name, [_without_edit(row) for row in tests], literal=False)
        scores[name] = rate_score(hits, bare, edits, seed=seed)
        parts.append((hits, edits))
    return scores | {"average": average_score(list(scores.values()), parts, seed=seed)}


def common_rows(rows: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """The rows of the tests that every method keeps, so that all methods are scored on one set of tests.

    CI, CII, RS and SA keep the tests of the edits that took, which differ by method: a method whose few successful
    edits are the easy ones would look better than one that edits them all.

    Args:
        rows: by method the rows that `score_sake` takes.

    Returns:
        By method its rows of the common tests; `score_sake` then counts the same n for each.

    Raises:
        ValueError: as `score_sake`.
    """
    kept = []
    for of_method in rows.values():
        took = _took(of_method)
        kept.append({row.test for row in of_method if _kept(row, took)})
    common = set.intersection(*kept) if kept else set()
    return {method: [row for row in of_method if row.test in common] for method, of_method in rows.items()}


def literal_sa(rows: Sequence[Row], forced: Sequence[Row]) -> list[Row]:
    """The rows with the condition that SAKE's notebook puts on SA, so that `score_sake` gives its SA.

    The notebook keeps a test if the mapped, ungated state hits the test's own answers.

    Args:
        rows: what the gate's answers are.
        forced: rows of the same tests in the same order, asked without the choice to stay silent.

    Raises:
        ValueError: if the tests differ.
    """
    if [row.test for row in rows] != [row.test for row in forced]:
        raise MegaValueError("`forced` must hold the tests of `rows` in their order, but got others.")
    return [
        replace(row, knows=first_token_hit(other.prediction, row.test.answers)) if row.test.metric == "sa" else row
        for row, other in zip(rows, forced, strict=True)
    ]


def _took(rows: Sequence[Row]) -> dict[str, bool]:
    """Which edits took, read off their Acc rows."""
    took: dict[str, bool] = {}
    for row in rows:
        if row.test.metric == "acc":
            if row.test.edit_id in took:
                raise MegaValueError(
                    f"`rows` must hold one acc test an edit, but got two of edit {row.test.edit_id!r}."
                )
            took[row.test.edit_id] = row.new_probability > row.true_probability
    return took


def _kept(row: Row, took: Mapping[str, bool]) -> bool:
    """The protocol's rule for the row."""
    metric, edit_id = row.test.metric, row.test.edit_id
    if metric == "spec":
        return row.bare_new <= row.bare_true
    if metric not in _CONDITIONAL:
        return True
    if edit_id not in took:
        raise MegaValueError(f"`rows` must hold an acc test for each {metric} test, but got none of edit {edit_id!r}.")
    return took[edit_id] and row.knows


def _without_edit(row: Row) -> Row:
    return replace(
        row,
        prediction=row.bare_prediction,
        new_probability=row.bare_new,
        true_probability=row.bare_true,
        fired="",
    )


def _hits(metric: str, rows: Sequence[Row], literal: bool) -> Tensor:
    """Which rows of one measure succeed, (N,) bool."""
    if metric == "spec":
        columns = [[getattr(row, name) for row in rows] for name in _PROBABILITIES]
        hits, _ = specificity_hits(*torch.tensor(columns, dtype=torch.float64))
    else:
        hits = first_token_hits([row.prediction for row in rows], [row.test.answers for row in rows])
    if literal and metric in _FORGIVEN:
        hits = hits | torch.tensor([not row.fired for row in rows], dtype=torch.bool)
    return hits
