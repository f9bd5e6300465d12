import json
import math
import random
from dataclasses import asdict, replace
from typing import Any, get_args

import pytest

from mega_pl.protocols import Score
from mega_pl.protocols.sake import PROTOCOL, Row, SakeMetric, Test

COUNTS = {"acc": 1, "gen": 2, "spec": 4, "di": 1, "dii": 1, "ci": 2, "cii": 1, "rs": 3, "sa": 1}
TOKENS = (" S", " Sweden", " Nor", " the", "")


def row(metric, edit_id="1", answers=("Sweden",), **fields):
    test = Test(edit_id=edit_id, metric=metric, prompt="p", answers=answers, new="Sweden", true="Norway")
    defaults: dict[str, Any] = {
        "prediction": " Sweden",
        "bare_prediction": " Norway",
        "bare_new": 0.1,
        "bare_true": 0.5,
    }
    return Row(test=test, **(defaults | {"new_probability": 0.6, "true_probability": 0.2} | fields))


def random_rows(seed, edits=25):
    rng = random.Random(seed)
    rows = [
        row(
            metric,
            str(edit),
            rng.choice([("Sweden",), ("Norway", "Sverige"), ("Syria", "the Syrian state")]),
            prediction=rng.choice(TOKENS),
            bare_prediction=rng.choice(TOKENS),
            bare_new=rng.random(),
            bare_true=rng.random(),
            new_probability=rng.random(),
            true_probability=rng.random(),
            knows=rng.random() < 0.7,
            fired=rng.choice(["", str(edit)]),
        )
        for edit in range(edits)
        for metric, count in COUNTS.items()
        for _ in range(count)
    ]
    rng.shuffle(rows)
    return rows


def slow_scores(rows):
    """The protocol, written down once more as a loop: key -> (value, n, bare)."""

    def hit(prediction, answers):
        return prediction.strip() != "" and any(a.startswith(prediction.strip()) for a in answers)

    tally = {name: [0, 0, 0] for name in COUNTS}
    for r in rows:
        name = r.test.metric
        if name == "spec":
            if r.bare_new > r.bare_true:
                continue
            success, before = r.new_probability < r.true_probability, r.bare_new < r.bare_true
        else:
            if name in ("ci", "cii", "rs", "sa"):
                (acc,) = [a for a in rows if a.test.metric == "acc" and a.test.edit_id == r.test.edit_id]
                if not r.knows or acc.new_probability <= acc.true_probability:
                    continue
            success, before = hit(r.prediction, r.test.answers), hit(r.bare_prediction, r.test.answers)
        tally[name][0] += success
        tally[name][1] += 1
        tally[name][2] += before
    scores = {name: (hits / n, n, before / n) for name, (hits, n, before) in tally.items()}
    values, counts, bares = zip(*scores.values(), strict=True)
    return scores | {"average": (sum(values) / 9, sum(counts), sum(bares) / 9)}


def plain(scores):
    return {name: (score.value, score.n, score.bare) for name, score in scores.items()}


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_slow_ones(seed):
    rows = random_rows(seed)
    scores, expected = plain(PROTOCOL.score(rows)), slow_scores(rows)
    assert list(scores) == [*get_args(SakeMetric), "average"]
    for name, score in scores.items():
        assert score == pytest.approx(expected[name], abs=1e-12), name


def test_order_does_not_matter_and_intervals_are_seeded():
    rows = random_rows(3)
    scores = PROTOCOL.score(rows, seed=7)
    assert PROTOCOL.score(rows[::-1], seed=7) == scores
    assert all(s.ci95[0] <= s.value <= s.ci95[1] for s in scores.values())
    assert plain(PROTOCOL.score(rows, seed=8)) == plain(scores)


def test_what_each_measure_keeps():
    took = row("acc")
    failed = row("acc", "2", prediction=" Norway", new_probability=0.2, true_probability=0.2)
    rows = [
        took,
        failed,
        row("gen", "2"),
        row("spec", bare_new=0.5, bare_true=0.5, new_probability=0.1, true_probability=0.2),
        row("spec", bare_new=0.5, bare_true=0.4),
        *(row(name) for name in ("ci", "cii", "rs", "sa")),
        *(row(name, knows=False) for name in ("ci", "cii", "rs", "sa")),
        *(row(name, "2") for name in ("ci", "cii", "rs", "sa")),
    ]
    scores = PROTOCOL.score(rows)
    assert {name: score.n for name, score in scores.items()} == {
        **{"acc": 2, "gen": 1, "spec": 1, "di": 0, "dii": 0},
        **{"ci": 1, "cii": 1, "rs": 1, "sa": 1, "average": 8},
    }
    assert scores["acc"] == Score(0.5, 2, scores["acc"].ci95, 0.0)
    assert scores["spec"] == Score(1.0, 1, (1.0, 1.0), 0.0)
    assert math.isnan(scores["di"].value)
    assert math.isnan(scores["di"].bare)
    assert scores["average"].value == pytest.approx((0.5 + 6) / 7)  # Acc at one half, six others at one


def test_specificity_on_hand_made_cases():
    # In order: held, overtaken, badly defined before, tied before and after.
    columns = [(0.1, 0.5, 0.2, 0.4), (0.1, 0.5, 0.6, 0.3), (0.3, 0.2, 0.1, 0.5), (0.2, 0.2, 0.2, 0.2)]
    names = ("bare_new", "bare_true", "new_probability", "true_probability")
    rows = [row("spec", str(i), **dict(zip(names, values, strict=True))) for i, values in enumerate(columns)]
    score = PROTOCOL.score(rows)["spec"]
    assert (score.value, score.n, score.bare) == pytest.approx((1 / 3, 3, 2 / 3))
    swapped = PROTOCOL.score([replace(r, new_probability=r.bare_new, true_probability=r.bare_true) for r in rows])
    assert swapped["spec"].value == pytest.approx(2 / 3)


def test_no_rows():
    scores = PROTOCOL.score([])
    assert all(math.isnan(score.value) and score.n == 0 for score in scores.values())


def test_an_edit_that_does_nothing_scores_as_the_bare_model():
    rows = [
        replace(r, prediction=r.bare_prediction, new_probability=r.bare_new, true_probability=r.bare_true)
        for r in random_rows(4)
    ]
    assert all(score.value == score.bare for score in PROTOCOL.score(rows).values())


def test_scores_survive_the_way_through_json():
    rows = random_rows(5)
    lines = [json.loads(json.dumps(asdict(r))) for r in rows]
    again = [Row(**{**line, "test": Test(**line["test"])}) for line in lines]
    assert PROTOCOL.score(again) == PROTOCOL.score(rows)


def shift(rows, fields):
    """Rows with some fields taken from the row before."""
    return [replace(r, **{field: getattr(rows[i - 1], field) for field in fields}) for i, r in enumerate(rows)]


@pytest.mark.parametrize(
    ("fields", "moved"),
    [
        (["prediction"], {"acc", "gen", "di", "dii", "ci", "cii", "rs", "sa"}),
        (["bare_new", "bare_true"], {"spec"}),
        (["new_probability", "true_probability"], {"spec", "ci", "rs"}),
        (["knows"], {"ci", "rs"}),
    ],
)
def test_columns_shifted_by_a_row_are_seen(fields, moved):
    rows = random_rows(6, edits=60)
    right, wrong = plain(PROTOCOL.score(rows)), plain(PROTOCOL.score(shift(rows, fields)))
    assert {name for name in moved if right[name] != wrong[name]} == moved


def test_other_planted_mistakes_are_seen():
    rows = random_rows(7, edits=60)
    right = plain(PROTOCOL.score(rows))
    bare_for_edited = [replace(r, prediction=r.bare_prediction, bare_prediction=r.prediction) for r in rows]
    new_for_true = [replace(r, new_probability=r.true_probability, true_probability=r.new_probability) for r in rows]
    other_edit = [
        replace(r, test=replace(r.test, edit_id=str((int(r.test.edit_id) + 1) % 60))) if r.test.metric == "acc" else r
        for r in rows
    ]
    assert all(plain(PROTOCOL.score(bare_for_edited))[name] != right[name] for name in COUNTS if name != "spec")
    assert all(plain(PROTOCOL.score(new_for_true))[name] != right[name] for name in ("spec", "ci", "rs"))
    assert all(plain(PROTOCOL.score(other_edit))[name] != right[name] for name in ("ci", "cii", "rs", "sa"))


def test_refusals():
    with pytest.raises(ValueError, match="`rows` must hold one acc test an edit, but got two of edit '1'"):
        PROTOCOL.score([row("acc"), row("acc")])
    with pytest.raises(ValueError, match="an acc test for each rs test, but got none of edit '2'"):
        PROTOCOL.score([row("acc"), row("rs", "2")])
    with pytest.raises(ValueError, match=r"`bare_new` of edit '1' must lie in \[0, 1\], but got -2.3"):
        row("acc", bare_new=-2.3)
    with pytest.raises(ValueError, match=r"`true_probability` of edit '1' must lie in \[0, 1\], but got nan"):
        row("acc", true_probability=math.nan)
