"""The live measures: means over tests and over edits, combinations, and what is decided once all rows are there."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Sequence
from functools import partial
from statistics import fmean, harmonic_mean
from typing import Any, Literal

import pytest
import torch
from torchmetrics import MetricCollection

from mega_pl.functional.statistics import bootstrap_interval
from mega_pl.functional.statistics import harmonic_mean as harmonic
from mega_pl.protocols.measures import NOT_AVAILABLE, Combined, Deferred, Mean, Measure, Score, format_value, kept
from mega_pl.protocols.rows import Outcomes

Rows = list[tuple[int, str, float, float]]


def made(seed: int, n: int = 40, edits: int = 9, parts: int = 3) -> Rows:
    """Rows of a part, an edit, and both models' outcomes."""
    rng = random.Random(seed)
    return [(rng.randrange(parts), str(rng.randrange(edits)), rng.random(), rng.random()) for _ in range(n)]


def of_part(part: int | None, rows: Sequence[tuple[int, str, float, float]]) -> Outcomes:
    own = [row for row in rows if part in (None, row[0])]
    edited, bare = (torch.tensor([row[i] for row in own], dtype=torch.float64) for i in (2, 3))
    return Outcomes(edited, bare, [row[1] for row in own])


def mean(part: int | None = None, **options: Any) -> Mean:
    return Mean(partial(of_part, part), **options)


def scored(measure: Measure, rows: Rows, *, seed: int = 0) -> Score:
    measure.update(rows)
    return measure.score(seed=seed)


def edit_means(rows: Rows, column: Literal[2, 3]) -> dict[str, float]:
    """Each edit's mean, edits sorted."""
    return {edit: fmean(row[column] for row in rows if row[1] == edit) for edit in sorted({row[1] for row in rows})}


def test_a_micro_mean_counts_tests_and_a_macro_mean_counts_edits():
    rows = made(0)
    micro, macro = scored(mean(), rows, seed=3), scored(mean(over="edits"), rows, seed=3)
    assert [micro.value, micro.bare] == pytest.approx([fmean(row[2] for row in rows), fmean(row[3] for row in rows)])
    assert [macro.value, macro.bare] == pytest.approx(
        [fmean(edit_means(rows, 2).values()), fmean(edit_means(rows, 3).values())]
    )
    assert (micro.n, macro.n) == (40, 9)
    assert micro.value != pytest.approx(macro.value)
    assert micro.ci95 == bootstrap_interval([row[2] for row in rows], [row[1] for row in rows], seed=3)
    means = edit_means(rows, 2)
    assert macro.ci95 == pytest.approx(bootstrap_interval(list(means.values()), list(means), seed=3), abs=1e-12)


def spread(values: torch.Tensor) -> float:
    return float(values.max() - values.min()) if len(values) > 1 else math.nan


def test_an_edit_may_be_worth_something_else_than_its_mean():
    rows = [*made(1, n=80), (0, "alone", 0.5, 0.5)]
    score = scored(mean(over="edits", within=spread), rows)
    slow = []
    for edit in {row[1] for row in rows} - {"alone"}:  # which tells nothing
        own = [row[2] for row in rows if row[1] == edit]
        slow.append(max(own) - min(own))
    assert (score.value, score.n) == pytest.approx((fmean(slow), 9))


@pytest.mark.parametrize("way", ["arithmetic", "harmonic"])
def test_combined_measures_have_a_joint_interval(way):
    rows = made(2)
    parts = [[row for row in rows if row[0] == part] for part in range(3)]
    score = scored(Combined([mean(part, over="edits") for part in range(3)], way), rows, seed=5)
    means = [edit_means(part, 2) for part in parts]
    average = fmean if way == "arithmetic" else harmonic_mean
    assert score.value == pytest.approx(average([fmean(part.values()) for part in means]))
    assert score.bare == pytest.approx(average([fmean(edit_means(part, 3).values()) for part in parts]))
    assert score.n == (sum(map(len, means)) if way == "arithmetic" else 9)
    interval = partial(
        bootstrap_interval,
        [value for part in means for value in part.values()],
        [edit for part in means for edit in part],
        parts=[str(i) for i, part in enumerate(means) for _ in part],
        seed=5,
    )
    own, other = (interval(), interval(combine=harmonic))[:: 1 if way == "arithmetic" else -1]
    assert score.ci95 == pytest.approx(own, abs=1e-12)
    assert score.ci95 != pytest.approx(other, abs=1e-4)  # control


def test_a_part_that_counts_nothing():
    rows = [row for row in made(3) if row[0] != 1]
    parts = [mean(part) for part in range(3)]
    average = scored(Combined(parts, "arithmetic"), rows)
    assert average.value == pytest.approx(fmean(scored(mean(part), rows).value for part in (0, 2)))
    assert average.n == len(rows)
    assert scored(Combined(parts, "harmonic"), rows) is NOT_AVAILABLE
    assert scored(Combined(parts, "harmonic"), [(p, "a", 0.0, 1.0) for p in range(3)]).value == 0


def test_a_collection_may_hold_parts_and_what_combines_them():
    rows, parts = made(6), [mean(part) for part in range(3)]
    own: dict[str, Any] = {str(i): part for i, part in enumerate(parts)}
    metrics = MetricCollection(own | {"all": Combined(parts, "arithmetic")}, compute_groups=False)
    metrics.update(rows)
    found: Any = metrics
    assert found["all"].score().n == sum(found[name].score().n for name in own) == len(rows)  # none counted twice


def test_what_counts_nothing_is_not_available():
    for measure in (mean(), mean(over="edits"), Combined([mean()], "arithmetic"), Combined([mean()], "harmonic")):
        assert measure.score() is NOT_AVAILABLE
        assert scored(measure, []) is NOT_AVAILABLE
        assert math.isnan(measure.compute())
    assert NOT_AVAILABLE.to_json() == {"value": None, "n": 0, "ci95": [None, None], "bare": None}
    assert (format_value(0.5), format_value(math.nan)) == ("0.500", "-")


def firsts(rows: Sequence[tuple[int, str, float, float]]) -> list[tuple[str, bool]]:
    """Of each edit whether its row of part 0 is above one half."""
    return [(row[1], row[2] > 0.5) for row in rows if row[0] == 0]


def of_good_edits(found: Outcomes, facts: list[Any]) -> Outcomes:
    good = dict(facts)
    return kept(found, [good[edit] for edit in found.edits])


def test_rows_of_other_batches_may_decide_what_counts():
    rng = random.Random(0)
    rows = [(part, str(edit), rng.random(), rng.random()) for edit in range(30) for part in (1, 1, 0)]
    good = {row[1] for row in rows if row[0] == 0 and row[2] > 0.5}
    assert 5 < len(good) < 25
    for size in (1, 2, 7, 90):
        measure = mean(1, deferred=Deferred(firsts, of_good_edits))
        for i in range(0, 90, size):
            measure.update(rows[i : i + size])
        score = measure.score()
        wanted = [row[2] for row in rows if row[0] == 1 and row[1] in good]
        assert (score.value, score.n) == pytest.approx((fmean(wanted), len(wanted)))


def test_ids_of_any_text_keep_their_order_and_their_names():
    edits = ["b\nc", "a b", "\u2028", "Zo\u00eb", "", "1", "10", "2"]
    rows = [(0, edit, i / 8, 0.0) for i, edit in enumerate(edits)]
    measure = mean(over="edits")
    measure.update(rows[:3])
    measure.update(rows[3:])
    assert measure.counted().edits == edits
    assert measure.values().edits == sorted(edits)


@pytest.mark.parametrize("measure", [mean(), mean(over="edits"), Combined([mean(0), mean(1)], "harmonic")], ids=str)
def test_a_metric_as_torchmetrics_has_it(measure):
    rows, copy = made(4), measure.clone()
    score = scored(copy, rows)
    assert (copy.is_differentiable, copy.full_state_update, copy.higher_is_better) == (False, False, True)
    assert copy.compute().item() == score.value
    assert copy.compute().dtype == torch.float64
    assert pickle.loads(pickle.dumps(copy)).score() == score
    copy.reset()
    assert copy.score() is NOT_AVAILABLE
    assert copy(rows[:20]).item() == scored(measure.clone(), rows[:20]).value  # the batch alone
    copy(rows[20:])
    assert copy.score() == score  # and all of them
    assert measure.score() is NOT_AVAILABLE  # a clone is its own


def test_planted_mistakes_are_seen():
    rows = made(5)
    right = scored(mean(over="edits"), rows).value
    shifted = [(row[0], rows[i - 1][1], row[2], row[3]) for i, row in enumerate(rows)]
    swapped = [(row[0], row[1], row[3], row[2]) for row in rows]
    once = [row for i, row in enumerate(rows) if row[1] not in {other[1] for other in rows[:i]}]
    for wrong in (shifted, swapped, once):
        assert scored(mean(over="edits"), wrong).value != pytest.approx(right)


def test_refusals():
    with pytest.raises(ValueError, match="`outcomes` must hold outcomes, but got nan at index 1"):
        scored(mean(over="edits"), [(0, "a", 0.0, 0.0), (0, "a", math.nan, 0.0)])
