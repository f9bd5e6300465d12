"""How sure of the new object a model is under other wordings and names."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean, pstdev

import pytest
import torch

from mega_pl.asking import BARE, NextToken
from mega_pl.edits import EditCase
from mega_pl.fitting.prompts import PREFIXES
from mega_pl.functional.statistics import auroc, coefficient_of_variation
from mega_pl.protocols import EvalRow
from mega_pl.protocols.confidence import (
    NEUTRAL,
    PROTOCOL,
    ConfidenceKind,
    ConfidenceTest,
    ask_confidence,
    confidence_tests,
    objects_by_relation,
)

FAMILIES: tuple[ConfidenceKind, ...] = ("prefix", "surface", "paraphrase")
KINDS: list[ConfidenceKind] = ["plain", "prefix", "prefix", "surface", "surface", "paraphrase"]


def test_the_tests_of_a_case(cases):
    tests = confidence_tests(cases[0])
    assert [test.kind for test in tests] == ["plain"] + ["prefix"] * 4 + ["surface"] * 4 + ["paraphrase"] * 2
    assert len({test.prompt for test in tests}) == len(tests)
    assert tests[0].prompt == "The capital of France is"
    assert tests[5].prompt == "the capital of France is"
    assert {(test.same, test.other) for test in tests} == {(("Rome", "Roma", "City of Rome"), ("Paris",))}
    assert tests == confidence_tests(cases[0])
    assert tests != confidence_tests(cases[0], seed=1)
    assert not {*NEUTRAL} & {*PREFIXES}


def test_objects_of_another_meaning(cases):
    request = cases[0].request
    cities = ["Bonn", "Roma", "Lima", "Oslo", "Bern", "Kyiv", "Baku", "Doha", "Male", "Suva"]
    more = [EditCase(request=replace(request, edit_id=city, target_true=city)) for city in cities]
    objects = objects_by_relation([*cases, *more])
    assert objects["The capital of {} is"] == ("Paris", "Rome", *cities)
    assert objects["The mother tongue of {} is"] == ("French", "English")
    others = confidence_tests(cases[0], objects=objects)[0].other
    assert others[0] == "Paris"
    assert len(others) == len(set(others)) == 8
    assert not {*others} & {"Rome", "Roma"}


def test_functions_against_slow_tauroc():
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        a, b = torch.rand(5, generator=draw), torch.rand(4, generator=draw)
        a[0] = b[0]
        assert coefficient_of_variation(a) == pytest.approx(pstdev(a.tolist()) / fmean(a.tolist()), rel=1e-6)
        slow = fmean((x > y) + 0.5 * (x == y) for x in a.tolist() for y in b.tolist())
        assert auroc(a, b) == pytest.approx(slow)
        assert auroc(a, b) == pytest.approx(1 - auroc(b, a))
        assert coefficient_of_variation(a * 0.5) == pytest.approx(coefficient_of_variation(a), rel=1e-6)
    assert math.isnan(coefficient_of_variation(torch.tensor([0.5])))
    assert math.isnan(coefficient_of_variation(torch.zeros(3)))
    assert math.isnan(auroc(torch.ones(2), torch.ones(0)))


def slow_edit(new: list[float], same: list[list[float]], other: list[list[float]]) -> dict[str, float]:
    """Each measure of an edit by its equation, in loops."""
    chances = {kind: [math.exp(v) for k, v in zip(KINDS, new, strict=True) if k == kind] for kind in set(KINDS)}
    values = {"plain": chances["plain"][0]}
    for kind in FAMILIES:
        both = chances["plain"] + chances[kind]
        values[f"{kind}_mean"], values[f"{kind}_variation"] = fmean(chances[kind]), pstdev(both) / fmean(both)
    rows = range(len(new))
    values["separation"] = fmean(new[k] > o for k in rows for o in other[k])
    values["log_odds"] = fmean(new[k] - o for k in rows for o in other[k])
    values["agreement"] = fmean(a > o for k in rows for a in same[k] for o in other[k])
    values["alias_gap"] = fmean(abs(new[k] - a) for k in rows for a in same[k])
    return values


def hand_made(seed: int = 0, edits: int = 2) -> list[EvalRow[ConfidenceTest, NextToken]]:
    draw = torch.Generator().manual_seed(seed)

    def answer() -> NextToken:
        # the third name begins as the first does, and so does the last object
        chances = torch.randn(7, generator=draw).log_softmax(-1).tolist()
        return NextToken("", (1, 2, 1, 3, 4, 5, 1), tuple(chances))

    return [
        EvalRow(
            ConfidenceTest(
                edit_id=str(edit), kind=kind, prompt="p", same=("a", "b", "aa"), other=("c", "d", "e", "ab")
            ),
            answer(),
            answer(),
        )
        for edit in range(edits)
        for kind in KINDS
    ]


def test_scores_against_a_slow_twin():
    trials = hand_made()
    scores = PROTOCOL.score(trials)
    assert set(scores) == {*slow_edit([0.0] * 6, [[0.0]] * 6, [[0.0]] * 6)}
    for side in ("edited", "bare"):
        expected = []
        for edit in ("0", "1"):
            answers = [getattr(trial, side).log_probs for trial in trials if trial.test.edit_id == edit]
            same, other = [[a[1]] for a in answers], [list(a[3:6]) for a in answers]
            expected.append(slow_edit([a[0] for a in answers], same, other))
        for name, score in scores.items():
            value = score.value if side == "edited" else score.bare
            assert value == pytest.approx(fmean(values[name] for values in expected)), name
            assert score.n == 2
    shuffled = PROTOCOL.score([trials[i] for i in torch.randperm(len(trials)).tolist()])
    assert {n: s.value for n, s in shuffled.items()} == pytest.approx({n: s.value for n, s in scores.items()})


def answered(new: list[float], alias: float, other: float) -> dict[str, float]:
    """The measures of an edit whose new object has these probabilities."""
    rows = [
        EvalRow(
            ConfidenceTest(edit_id="0", kind=kind, prompt="p", same=("a", "b"), other=("c",)),
            NextToken("", (1, 2, 3), (-1.0, -2.0, -3.0)),
            NextToken("", (1, 2, 3), (math.log(probability), math.log(alias), math.log(other))),
        )
        for kind, probability in zip(KINDS, new, strict=False)
    ]
    return {name: score.value for name, score in PROTOCOL.score(rows).items()}


def test_the_measures_react():
    steady, shaky = answered([0.8] * 6, 0.1, 0.01), answered([0.8, 0.1, 0.7, 0.02, 0.5, 0.3], 0.1, 0.01)
    for kind in FAMILIES:
        assert steady[f"{kind}_variation"] == pytest.approx(0)
        assert shaky[f"{kind}_variation"] > 0.2
        assert shaky[f"{kind}_mean"] < steady[f"{kind}_mean"]
    assert steady["separation"] == 1
    assert answered([0.1] * 6, 0.1, 0.6)["separation"] == 0
    assert answered([0.8] * 6, 0.01, 0.1)["agreement"] == 0 < steady["agreement"]
    assert answered([0.8] * 6, 0.79, 0.1)["alias_gap"] < steady["alias_gap"]
    assert answered([0.8] * 6, 0.1, 0.1)["log_odds"] == pytest.approx(math.log(8)) != steady["log_odds"]


def test_what_an_edit_lacks_is_not_counted():
    trials = [t for t in hand_made(edits=1) if t.test.kind == "plain"]
    scores = PROTOCOL.score(trials)
    assert {name for name, score in scores.items() if score.n} == {
        "plain",
        "separation",
        "log_odds",
        "agreement",
        "alias_gap",
    }
    alone = [replace(t, test=replace(t.test, same=("a",), other=("b",))) for t in trials]
    alone = [replace(t, edited=NextToken("", (1, 1), (-1.0, -1.0)), bare=t.bare) for t in alone]
    assert {name for name, score in PROTOCOL.score(alone).items() if score.n} == {"plain"}


def test_planted_mistakes_are_seen():
    rows = hand_made(edits=3)
    right = {name: score.value for name, score in PROTOCOL.score(rows).items()}

    def wrong(change) -> set[str]:
        scores = PROTOCOL.score([replace(row, edited=change(row.edited)) for row in rows])
        return {name for name, score in scores.items() if score.value != pytest.approx(right[name])}

    every = set(right)
    assert wrong(lambda a: replace(a, log_probs=a.log_probs[1:] + a.log_probs[:1])) == every  # another name's
    probabilities = {name for name in every if name.endswith(("plain", "mean", "variation"))}
    assert wrong(lambda a: replace(a, ids=(1, 2, 3, 4, 5, 6, 7))) == every - probabilities  # names that begin alike
    in_bits = wrong(lambda a: replace(a, log_probs=tuple(p / math.log(2) for p in a.log_probs)))
    assert {"log_odds", "alias_gap", "plain"} <= in_bits
    bare = PROTOCOL.score([replace(row, edited=row.bare, bare=row.edited) for row in rows])
    assert all(bare[name].value != right[name] for name in every)
    pooled = PROTOCOL.score([replace(row, test=replace(row.test, edit_id="0")) for row in rows])
    assert all(pooled[f"{kind}_variation"].value != right[f"{kind}_variation"] for kind in FAMILIES)  # across edits


def test_all_cases_give_the_objects_of_another_meaning(backbone, cases):
    request = cases[0].request
    more = [EditCase(request=replace(request, edit_id=city, target_true=city)) for city in ("Bonn", "Lima", "Oslo")]
    alone, prepared = PROTOCOL.tests(cases[0]), PROTOCOL.prepare(backbone, [*cases, *more]).tests(cases[0])
    assert {test.other for test in alone} == {("Paris",)}
    assert {frozenset(test.other) for test in prepared} == {frozenset({"Paris", "Bonn", "Lima", "Oslo"})}
    assert [test.prompt for test in prepared] == [test.prompt for test in alone]


def test_a_model_is_asked_about_all_objects(backbone, cases):
    tests = [test for case in cases for test in confidence_tests(case)]
    answers = ask_confidence(backbone, BARE, tests)
    assert all(len(a.log_probs) == len(t.same + t.other) for t, a in zip(tests, answers, strict=True))
    scores = PROTOCOL.score([EvalRow(t, a, a) for t, a in zip(tests, answers, strict=True)])
    assert all(score.value == score.bare for score in scores.values() if score.n)
    assert scores["plain"].n == 2
