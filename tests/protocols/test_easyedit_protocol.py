"""EasyEdit's protocol against its own formula written down once more, one text at a time."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean
from typing import get_args

import pytest
import torch

from mega_pl.asking import BARE, TeacherForced
from mega_pl.protocols import EvalRow
from mega_pl.protocols.easyedit import (
    PROTOCOL,
    EasyEditKind,
    EasyEditTest,
    ask_easyedit,
    easyedit_tests,
    token_agreement,
)

GROUPS = {
    "rewrite_acc": ["rewrite"],
    "rephrase_acc": ["rephrase"],
    "subject_aliasing_acc": ["subject_aliasing"],
    "reasoning_acc": ["reasoning"],
    "logical_generalization_acc": ["logical_generalization"],
    "portability_acc": ["portability", "subject_aliasing", "reasoning", "logical_generalization"],
    "relation_specificity_acc": ["relation_specificity"],
    "forgetfulness_acc": ["forgetfulness"],
    "locality_acc": ["locality", "relation_specificity", "forgetfulness"],
}
LOCAL = ("relation_specificity_acc", "forgetfulness_acc", "locality_acc")


def test_the_tests_of_a_case(cases):
    tests = easyedit_tests(cases[0])
    assert [(t.kind, t.prompt, t.answer) for t in tests] == [
        ("rewrite", "The capital of France is", "Rome"),
        ("rephrase", "The city that is the capital of France is", "Rome"),
        ("rephrase", "France has its capital in", "Rome"),
        ("portability", "The language of the capital of France is", "Italian"),
        ("subject_aliasing", "The capital of the French Republic is", "Rome"),
        ("reasoning", "The country of the capital of France is", "Italy"),
        ("reasoning", "The capital of the country of Paris is", "Rome"),
        ("logical_generalization", "Rome is the capital of", "France"),
        ("locality", "Berlin is the capital of", "Germany"),
        ("relation_specificity", "The official language of France is", "French"),
        ("forgetfulness", "A city in France is", "Paris"),
    ]
    neighbours = [(t.prompt, t.answer) for t in easyedit_tests(cases[1]) if t.kind == "locality"]
    assert neighbours == [("The mother tongue of Jean Cocteau is", "French")]


def test_answers_and_scores_on_a_model_are_those_of_single_texts(backbone, cases, editors):
    def predict(prompt: str, answer: str) -> tuple[list[int], list[int]]:
        before = len(backbone.tokenizer(prompt)["input_ids"])
        ids = backbone.tokenizer(f"{prompt} {answer}")["input_ids"]
        with torch.no_grad():
            best = backbone.model(torch.tensor([ids]), use_cache=False).logits[0].argmax(-1).tolist()
        return best[before - 1 : -1], ids[before:]

    tests = [test for case in cases for test in easyedit_tests(case)]
    bare = ask_easyedit(backbone, BARE, tests)
    before = [predict(test.prompt, test.answer) for test in tests]
    for editor in editors:
        with editor.edit(backbone, [case.request for case in cases]) as edited:
            answers = ask_easyedit(backbone, edited, tests)
            after = [predict(edited.prompt(test.prompt), test.answer) for test in tests]
        assert [(list(a.predicted), list(a.ids)) for a in answers] == after
        scores = PROTOCOL.score([EvalRow(*columns) for columns in zip(tests, bare, answers, strict=True)])
        local = [i for i, test in enumerate(tests) if test.kind == "locality"]
        same = {i: fmean(a == b for a, b in zip(after[i][0], before[i][0], strict=True)) for i in local}
        assert scores["locality_acc"].n == 2
        one = [i for i, test in enumerate(tests) if test.edit_id == "france" and test.kind in GROUPS["locality_acc"]]
        france = fmean(fmean(a == b for a, b in zip(after[i][0], before[i][0], strict=True)) for i in one)
        darrieux = next(same[i] for i in local if tests[i].edit_id == "darrieux")
        assert scores["locality_acc"].value == pytest.approx((france + darrieux) / 2)
        assert scores["locality_acc"].bare == 1
        if editor.name == "idle":
            assert all(score.value == score.bare for score in scores.values() if score.n)


def random_rows(seed: int) -> list[EvalRow[EasyEditTest, TeacherForced]]:
    rng = random.Random(seed)
    rows = []
    for edit in range(10):
        for kind in get_args(EasyEditKind):
            for _ in range(rng.randint(1, 3)):
                ids = tuple(rng.randrange(3) for _ in range(rng.randint(1, 4)))
                bare, edited = (
                    TeacherForced(ids, (-1.0,) * len(ids), tuple(rng.randrange(3) for _ in ids)) for _ in range(2)
                )
                rows.append(EvalRow(EasyEditTest(edit_id=str(edit), kind=kind, prompt="p", answer="a"), bare, edited))
    rng.shuffle(rows)
    return rows


def slow_scores(rows, side):
    scores = {}
    for name, kinds in GROUPS.items():
        cases: dict[str, list[float]] = {}
        for row in rows:
            if row.test.kind in kinds:
                wanted = row.bare.predicted if name in LOCAL else row.edited.ids
                said = getattr(row, side).predicted
                share = sum(a == b for a, b in zip(said, wanted, strict=True)) / len(wanted)
                cases.setdefault(row.test.edit_id, []).append(share)
        scores[name] = fmean(fmean(shares) for shares in cases.values())
    return scores


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_slow_ones(seed):
    rows = random_rows(seed)
    scores = PROTOCOL.score(rows)
    assert list(scores) == list(GROUPS)
    for side in ("edited", "bare"):
        for name, value in slow_scores(rows, side).items():
            assert (scores[name].value if side == "edited" else scores[name].bare) == pytest.approx(value, abs=1e-12)
    assert all(score.n == 10 for score in scores.values())


def hand_made() -> list[EvalRow[EasyEditTest, TeacherForced]]:
    """The new object is right at two of three places; the neighbour keeps the wrong answer that it had."""

    def forced(ids, predicted):
        return TeacherForced(ids, (-1.0,) * len(ids), predicted)

    rewrite = EasyEditTest(edit_id="a", kind="rewrite", prompt="p", answer="o")
    neighbour = EasyEditTest(edit_id="a", kind="locality", prompt="q", answer="t")
    return [
        EvalRow(rewrite, forced((1, 2, 3), (9, 9, 9)), forced((1, 2, 3), (1, 2, 9))),
        EvalRow(neighbour, forced((4, 5), (6, 5)), forced((4, 5), (6, 7))),
    ]


def test_hand_made_scores_and_planted_mistakes():
    rows = hand_made()
    scores = PROTOCOL.score(rows)
    assert [scores["rewrite_acc"].value, scores["rewrite_acc"].bare] == pytest.approx([2 / 3, 0])
    assert (scores["locality_acc"].value, scores["locality_acc"].bare) == (0.5, 1)
    assert scores["rephrase_acc"].n == 0

    def wrong(change):
        return PROTOCOL.score([replace(t, edited=change(t.edited)) for t in rows])

    shifted = wrong(lambda a: replace(a, predicted=a.predicted[1:] + a.predicted[:1]))
    assert shifted["rewrite_acc"].value != scores["rewrite_acc"].value
    padded = replace(rows[0].edited, ids=(1, 2, 3, 0), predicted=(1, 2, 9, 0))
    unmasked = PROTOCOL.score([replace(rows[0], bare=padded, edited=padded)])
    assert unmasked["rewrite_acc"].value != scores["rewrite_acc"].value
    # locality judged by the truth instead of by what the model said before
    truth = fmean(rows[1].edited.matches)
    assert truth != scores["locality_acc"].value
    assert fmean(rows[1].bare.matches) != scores["locality_acc"].bare


def test_answers_of_other_lengths_are_never_compared():
    assert token_agreement((1, 2, 3), (1, 2, 9)) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        token_agreement((1,), (1, 2))
