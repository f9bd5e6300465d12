"""ROME's protocol against its own formulas written down once more, one text at a time."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import fmean, harmonic_mean
from typing import Any

import pytest
import torch

from mega_pl.asking import BARE, Sampling, TeacherForced, continuations
from mega_pl.backbone import Backbone
from mega_pl.functional.text import generation_entropy
from mega_pl.protocols import EvalRow
from mega_pl.protocols.rome import PROTOCOL, RomeAnswer, RomeKind, RomeTest, ask_rome, magnitude, rome_tests, success

COUNTS = {"rewrite": 1, "paraphrase": 2, "neighborhood": 4, "attribute": 2, "generation": 3}


def nll_slowly(backbone: Backbone, prompt: str, target: str) -> tuple[float, bool]:
    """ROME's `test_batch_prediction` for one prompt and target; also MEMIT's exactness."""
    prefix, total, exact = len(backbone.tokenizer(prompt)["input_ids"]), 0.0, True
    ids = backbone.tokenizer(f"{prompt} {target}")["input_ids"]
    with torch.no_grad():
        logits = backbone.model(torch.tensor([ids]), use_cache=False).logits[0].double()
    for j in range(len(ids) - prefix):
        total -= float(torch.log_softmax(logits[prefix + j - 1], dim=0)[ids[prefix + j]])
        exact = exact and int(logits[prefix + j - 1].argmax()) == ids[prefix + j]
    return total / (len(ids) - prefix), exact


def test_the_tests_of_a_case(cases):
    tests = rome_tests(cases[0])
    assert [t.kind for t in tests] == [k for k, n in zip(COUNTS, (1, 2, 3, 2, 3), strict=True) for _ in range(n)]
    assert tests[0].prompt == "The capital of France is"
    assert {(t.new, t.true, t.edit_id) for t in tests} == {("Rome", "Paris", "france")}
    assert [t.index for t in tests if t.kind == "generation"] == [0, 1, 2]
    assert len(rome_tests(cases[1])) == 4


@pytest.mark.parametrize("editor", range(3), ids=["idle", "shaken", "in-context"])
def test_likelihoods_are_those_of_single_texts(backbone, cases, editors, editor):
    tests = [test for case in cases for test in rome_tests(case)]
    with editors[editor].edit(backbone, [case.request for case in cases]) as edited:
        answers = ask_rome(backbone, edited, tests, total_tokens=12)
        for test, answer in zip(tests, answers, strict=True):
            if test.kind == "generation":
                assert (answer.new, answer.true, answer.exact) == ((), (), False)
                continue
            (new, new_exact), (true, true_exact) = (
                nll_slowly(backbone, edited.prompt(test.prompt), target) for target in (test.new, test.true)
            )
            assert -fmean(answer.new) == pytest.approx(new, abs=1e-5)
            assert -fmean(answer.true) == pytest.approx(true, abs=1e-5)
            assert answer.exact is (true_exact if test.kind == "neighborhood" else new_exact)
            assert answer.text == ""


def test_exactness_is_that_of_the_object_that_is_right(backbone, cases, monkeypatch):
    def forced(backbone, prompts, answers, *, edited):
        ids = {"Rome": (1, 2), "Paris": (3, 4)}
        return [TeacherForced(ids[a], (-1.0, -1.0), (1, 2)) for a in answers]

    monkeypatch.setattr("mega_pl.protocols.rome.teacher_forced", forced)
    tests = [test for test in rome_tests(cases[0]) if test.kind != "generation"]
    exact = [answer.exact for answer in ask_rome(backbone, BARE, tests)]
    assert exact == [test.kind != "neighborhood" for test in tests]  # the model always says the new object
    half = TeacherForced((1, 2), (-1.0, -1.0), (1, 9))
    monkeypatch.setattr("mega_pl.protocols.rome.teacher_forced", lambda *_, edited: [half, half] * len(tests))
    assert not any(answer.exact for answer in ask_rome(backbone, BARE, tests))


def test_texts_have_a_number_of_tokens_with_their_prompts(backbone, cases):
    tests = [test for test in rome_tests(cases[0]) if test.kind == "generation"]
    answers = ask_rome(backbone, BARE, tests, total_tokens=20)
    budgets = [20 - len(backbone.tokenizer(test.prompt)["input_ids"]) for test in tests]
    seeds = Sampling(tuple(f"0 france {i}" for i in range(3)))
    expected = continuations(backbone, [test.prompt for test in tests], budgets, sampling=seeds)
    assert [answer.text for answer in answers] == [text.text for text in expected]
    assert answers[0] != answers[2]  # one prompt twice, drawn twice
    assert answers == ask_rome(backbone, BARE, tests, total_tokens=20)
    assert answers != ask_rome(backbone, BARE, tests, total_tokens=20, seed=1)


def random_rows(seed: int, edits: int = 12) -> list[EvalRow[RomeTest, RomeAnswer]]:
    rng = random.Random(seed)

    def answer(kind: str) -> RomeAnswer:
        if kind == "generation":
            return RomeAnswer(text=" " + " ".join(rng.choices(["Rome", "is", "Paris", "a", "city"], k=12)))
        new, true = (tuple(-4 * rng.random() for _ in range(rng.randint(1, 3))) for _ in range(2))
        return RomeAnswer(new=new, true=true, exact=rng.random() < 0.4)

    tests = [
        RomeTest(edit_id=str(edit), kind=kind, prompt=f"{kind} {i}", new="Rome", true="Paris", index=i)  # type: ignore[arg-type]
        for edit in range(edits)
        for kind, count in COUNTS.items()
        for i in range(rng.randint(1, count))
    ]
    rows = [EvalRow(test, answer(test.kind), answer(test.kind)) for test in tests]
    rng.shuffle(rows)
    return rows


def slow_scores(rows, side):
    """ROME's summary, written down once more: case by case, then the mean over cases."""
    cases: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        cases.setdefault(row.test.edit_id, {}).setdefault(row.test.kind, []).append((row.test, getattr(row, side)))
    columns: dict[str, list[float]] = {}
    for kinds in cases.values():
        for kind, rows in kinds.items():
            if kind == "generation":
                texts = [test.prompt + answer.text for test, answer in rows]
                columns.setdefault("fluency", []).append(fmean(generation_entropy(text) for text in texts))
                continue
            nlls = [(-fmean(answer.new), -fmean(answer.true)) for _, answer in rows]
            sign = -1 if kind == "neighborhood" else 1
            name = {"rewrite": "efficacy"}.get(kind, kind)
            columns.setdefault(f"{name}_score", []).append(fmean(sign * true > sign * new for new, true in nlls))
            columns.setdefault(f"{name}_magnitude", []).append(
                fmean(sign * (math.exp(-new) - math.exp(-true)) for new, true in nlls)
            )
            if kind != "attribute":
                columns.setdefault(f"{kind}_exact", []).append(fmean(answer.exact for _, answer in rows))
    means = {name: fmean(values) for name, values in columns.items()}
    means["score"] = harmonic_mean([means[f"{name}_score"] for name in ("efficacy", "paraphrase", "neighborhood")])
    return means, {name: len(values) for name, values in columns.items()}


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_slow_ones(seed):
    rows = random_rows(seed)
    scores = PROTOCOL.score(rows)
    for side in ("edited", "bare"):
        expected, counts = slow_scores(rows, side)
        assert set(scores) == set(expected)
        for name, value in expected.items():
            found = scores[name].value if side == "edited" else scores[name].bare
            assert found == pytest.approx(value, abs=1e-12), (side, name)
            assert scores[name].n == counts.get(name, 12)
            assert scores[name].ci95[0] <= scores[name].value <= scores[name].ci95[1]


def hand_made() -> list[EvalRow[RomeTest, RomeAnswer]]:
    """Edit a: o* leads where it should and stays behind at one of two neighbours. Edit b: nothing changed."""
    sure, unsure = (math.log(0.5), math.log(0.5)), (math.log(0.1),)
    after_new, after_true = RomeAnswer(new=sure, true=unsure, exact=True), RomeAnswer(new=unsure, true=sure, exact=True)
    rows = {
        "a": {"rewrite": [after_new], "paraphrase": [after_new], "neighborhood": [after_true, after_new]},
        "b": {"rewrite": [after_true], "paraphrase": [after_new, after_true], "neighborhood": [after_true]},
    }
    return [
        EvalRow(RomeTest(edit_id=edit, kind=kind, prompt="p", new="n", true="t", index=i), after_true, answer)  # type: ignore[arg-type]
        for edit, kinds in rows.items()
        for kind, answers in kinds.items()
        for i, answer in enumerate(answers)
    ]


def test_hand_made_scores():
    scores = PROTOCOL.score(hand_made())
    expected = {
        "efficacy_score": (0.5, 0.0),
        "efficacy_magnitude": (0.0, -0.4),
        "paraphrase_score": (0.75, 0.0),
        "paraphrase_magnitude": (0.2, -0.4),
        "neighborhood_score": (0.75, 1.0),
        "neighborhood_magnitude": (0.2, 0.4),
        "score": (3 / (1 / 0.5 + 1 / 0.75 + 1 / 0.75), 0.0),
    }
    for name, (value, bare) in expected.items():
        assert [scores[name].value, scores[name].bare] == pytest.approx([value, bare]), name
        assert scores[name].n == 2


def test_planted_mistakes_are_seen():
    rows, right = hand_made(), PROTOCOL.score(hand_made())

    def wrong(change) -> dict[str, float]:
        changed = [replace(t, edited=change(t.edited)) for t in rows]
        return {name: score.value for name, score in PROTOCOL.score(changed).items()}

    swapped = wrong(lambda a: replace(a, new=a.true, true=a.new))
    summed = wrong(lambda a: replace(a, new=(sum(a.new),), true=(sum(a.true),)))
    unmasked = wrong(lambda a: replace(a, new=(*a.new, 0.0), true=(*a.true, 0.0)))
    for name in ("paraphrase_score", "paraphrase_magnitude", "neighborhood_score", "neighborhood_magnitude"):
        assert swapped[name] != pytest.approx(right[name].value), name
        if name.endswith("magnitude"):  # the total instead of the mean, and a padded place too much
            assert summed[name] != pytest.approx(right[name].value), name
            assert unmasked[name] != pytest.approx(right[name].value), name
    micro = [t for t in rows if t.test.kind == "neighborhood"]
    assert fmean(fmean(t.edited.true) > fmean(t.edited.new) for t in micro) != right["neighborhood_score"].value
    kinds: dict[RomeKind, RomeKind] = {"paraphrase": "neighborhood", "neighborhood": "paraphrase"}
    exchanged = [replace(t, test=replace(t.test, kind=kinds.get(t.test.kind, t.test.kind))) for t in rows]
    assert PROTOCOL.score(exchanged)["paraphrase_score"].value != right["paraphrase_score"].value


def test_what_is_not_asked_is_not_available():
    scores = PROTOCOL.score(hand_made())
    for name in ("attribute_score", "attribute_magnitude", "fluency"):
        assert math.isnan(scores[name].value)
        assert scores[name].n == 0
    assert math.isnan(PROTOCOL.score([t for t in hand_made() if t.test.kind != "paraphrase"])["score"].value)
    assert all(score.n == 0 for score in PROTOCOL.score([]).values())


def test_a_tie_succeeds_nowhere():
    tie = RomeAnswer(new=(-1.0, -3.0), true=(-2.0,))
    for kind in ("rewrite", "paraphrase", "neighborhood", "attribute"):
        test = RomeTest(edit_id="a", kind=kind, prompt="p", new="n", true="t", index=0)
        assert not success(test, tie)
        assert magnitude(test, tie) == 0
