"""RippleEdits' protocol against its test runner written down once more."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import fmean
from typing import get_args

import pytest

from mega_pl.asking import continuations
from mega_pl.edits import Query, RippleAxis
from mega_pl.protocols import EvalRow
from mega_pl.protocols.rippleedits import (
    PROTOCOL,
    RippleAnswer,
    RippleQuestion,
    ask_ripple,
    ask_ripple_bare,
    names_all,
    passes,
    ripple_tests,
)

NAMES = ("Rome", "Paris", "7", "x", "Oslo")


def test_the_tests_of_a_case(cases):
    fact, *tests = ripple_tests(cases[0])
    assert (fact.axis, fact.queries[0].prompt) == ("Fact", "The capital of France is")
    assert fact.queries[0].answers == (("Rome", "Roma", "City of Rome"),)  # not "R"
    assert [test.axis for test in tests] == [test.axis for test in cases[0].ripple]
    assert [(t.queries, t.conditions, t.every, t.filterable) for t in tests] == [
        (t.queries, t.conditions, t.every, t.filterable) for t in cases[0].ripple
    ]
    assert ripple_tests(cases[1]) == ()


def test_answers_are_greedy_continuations_and_the_bare_model_is_asked_the_conditions(backbone, cases, editors):
    tests = ripple_tests(cases[0])

    def written(prompts, **edited):
        return tuple(text.text for text in continuations(backbone, prompts, 30, **edited))

    bare = ask_ripple_bare(backbone, tests)
    for test, answer in zip(tests, bare, strict=True):
        assert answer.texts == written([query.prompt for query in test.queries])
        assert answer.conditions == written([query.prompt for query in test.conditions])
    with editors[1].edit(backbone, []) as edited:
        answers = ask_ripple(backbone, edited, tests)
        for test, answer in zip(tests, answers, strict=True):
            assert answer.texts == written([query.prompt for query in test.queries])
            assert answer.conditions == ()
    assert [answer.texts for answer in answers] != [answer.texts for answer in bare]
    assert ask_ripple_bare(backbone, tests) == bare


def random_rows(seed: int, edits: int = 25) -> list[EvalRow[RippleQuestion, RippleAnswer]]:
    rng = random.Random(seed)

    def queries(least: int) -> tuple[Query, ...]:
        return tuple(
            Query(prompt="p", answers=tuple((rng.choice(NAMES), rng.choice(NAMES)) for _ in range(rng.randint(1, 2))))
            for _ in range(rng.randint(least, 2))
        )

    def texts(asked: tuple[Query, ...]) -> tuple[str, ...]:
        return tuple(" " + " ".join(rng.sample(NAMES, 3)) for _ in asked)

    rows = []
    for edit in range(edits):
        axes = ["Fact", *(axis for axis in get_args(RippleAxis) for _ in range(rng.randint(0, 3)))]
        for axis in axes:
            test = RippleQuestion(
                edit_id=str(edit),
                axis=axis,
                queries=queries(1),
                conditions=queries(0) if axis != "Fact" else (),
                every=rng.random() < 0.5,
                filterable=rng.random() < 0.8,
            )
            bare = RippleAnswer(texts=texts(test.queries), conditions=texts(test.conditions))
            rows.append(EvalRow(test, bare, RippleAnswer(texts=texts(test.queries))))
    rng.shuffle(rows)
    return rows


def answered(text: str, query: Query) -> bool:
    """RippleEdits' `_verify_answer`, with its filter of short names."""
    found = [True in [name in text for name in names if len(name) > 1 or name.isdigit()] for names in query.answers]
    return False not in found


def slow_scores(rows, side):
    """Its runner and its summary: example by example and axis by axis."""
    scores, passed_facts = {}, {}
    for row in rows:
        if row.test.axis == "Fact":
            passed_facts[row.test.edit_id] = ran(row.test, row.edited)
    for axis in get_args(RippleAxis):
        precisions = []
        for edit in passed_facts:
            successes = fails = 0
            for row in rows:
                if (row.test.edit_id, row.test.axis) != (edit, axis) or not row.test.filterable:
                    continue
                if any(not answered(*pair) for pair in zip(row.bare.conditions, row.test.conditions, strict=True)):
                    continue
                if ran(row.test, getattr(row, side)):
                    successes += 1
                else:
                    fails += 1
            if successes + fails and passed_facts[edit]:
                precisions.append(successes / (successes + fails))
        scores[axis.lower()] = (fmean(precisions), len(precisions))
    facts = [ran(t.test, getattr(t, side)) for t in rows if t.test.axis == "Fact"]
    scores["edit_success"] = (fmean(facts), len(facts))
    return scores


def ran(test, answer):
    results = [answered(text, query) for text, query in zip(answer.texts, test.queries, strict=True)]
    return False not in results if test.every else True in results


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_slow_ones(seed):
    rows = random_rows(seed)
    scores = PROTOCOL.score(rows)
    for side in ("edited", "bare"):
        expected = slow_scores(rows, side)
        assert set(scores) == {*expected, "average"}
        for name, (value, n) in expected.items():
            assert (scores[name].value if side == "edited" else scores[name].bare) == pytest.approx(value, abs=1e-12)
            assert scores[name].n == n
    axes = [scores[axis.lower()].value for axis in get_args(RippleAxis)]
    assert scores["average"].value == pytest.approx(fmean(axes))
    assert all(s.ci95[0] <= s.value <= s.ci95[1] for s in scores.values())


def hand_made() -> list[EvalRow[RippleQuestion, RippleAnswer]]:
    """Edit a succeeds and passes one of its two executed tests; b fails; c succeeds without an executed test."""
    rome, paris = (Query(prompt="q", answers=((name,),)) for name in ("Rome", "Paris"))
    names = {"rome": rome, "paris": paris}

    def row(edit, axis, said, conditions=(), known=(), asked=("rome",), **fields):
        test = RippleQuestion(
            edit_id=edit,
            axis=axis,
            queries=tuple(names[name] for name in asked),
            conditions=tuple(names[name] for name in conditions),
            **fields,
        )
        bare = RippleAnswer(texts=(" nothing",) * len(asked), conditions=known)
        return EvalRow(test, bare, RippleAnswer(texts=said))

    axis = "Compositionality_I"
    return [
        row("a", "Fact", (" Rome",)),
        row("a", axis, (" Rome",), ("paris",), (" in Paris",)),
        row("a", axis, (" Oslo",)),
        row("a", axis, (" Rome",), ("paris", "rome"), (" Paris", " Oslo")),
        row("a", axis, (" Rome",), filterable=False),
        row("b", "Fact", (" Oslo",)),
        row("b", axis, (" Rome",)),
        row("c", "Fact", (" Rome",)),
        row("c", axis, (" Rome",), ("paris",), (" Oslo",)),
        row("c", "Subject_Aliasing", (" Rome", " Oslo"), asked=("rome", "paris"), every=True),
    ]


def test_hand_made_scores_and_planted_mistakes():
    rows = hand_made()
    scores = PROTOCOL.score(rows)
    first = scores["compositionality_i"]
    assert (first.value, first.n, first.bare) == (0.5, 1, 0)
    assert (scores["subject_aliasing"].value, scores["subject_aliasing"].n) == (0, 1)
    assert scores["edit_success"].value == pytest.approx(2 / 3)
    assert scores["edit_success"].n == 3
    assert (scores["average"].value, scores["average"].n) == (0.25, 2)
    assert math.isnan(scores["forgetfulness"].value)

    def wrong(change):
        return PROTOCOL.score([change(t) for t in rows])

    unfiltered = wrong(
        lambda t: replace(t, test=replace(t.test, conditions=(), filterable=True), bare=replace(t.bare, conditions=()))
    )
    assert unfiltered["compositionality_i"].value != first.value
    ungated = wrong(lambda t: replace(t, edited=replace(t.edited, texts=(" Rome",))) if t.test.axis == "Fact" else t)
    assert ungated["compositionality_i"].value != first.value
    any_query = wrong(lambda t: replace(t, test=replace(t.test, every=False)))
    assert any_query["subject_aliasing"].value != scores["subject_aliasing"].value
    prompt_too = wrong(lambda t: replace(t, edited=replace(t.edited, texts=tuple("Rome?" + s for s in t.edited.texts))))
    assert prompt_too["compositionality_i"].value != first.value  # a name in the prompt is no answer
    micro = [passes(t.test, t.edited) for t in rows[1:5]]
    assert fmean(micro) != first.value


def test_refusals():
    with pytest.raises(ValueError, match="`rows` must hold a Fact test for each edit, but got none of edit 'a'"):
        PROTOCOL.score(hand_made()[1:])
    assert all(score.n == 0 for score in PROTOCOL.score([]).values())
    with pytest.raises(ValueError, match="`entities` must hold at least one entity, but got none"):
        names_all("x", [])


@pytest.mark.parametrize(
    ("text", "entities", "named"),
    [
        (" Rome", [["Rome"]], True),
        (" Romeo", [["Rome"]], True),
        (" rome", [["Rome"]], False),
        (" Rome", [["Rome"], ["Paris"]], False),
        (" Paris, Rome", [["Rome", "Roma"], ["Paris"]], True),
        (" Roma", [["Rome", "Roma"]], True),
        (" A B", [["A"]], False),
        (" A B", [["A", "B "]], False),
        (" 7 times", [["7"]], True),
    ],
)
def test_every_entity_must_be_named(text, entities, named):
    assert names_all(text, entities) is named
