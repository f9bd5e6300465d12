"""Other facts about an edit's subject: what counts as unchanged, as kept, and as a misfire."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mega_pl import EditBank
from mega_pl.asking import BARE
from mega_pl.backbone import Backbone
from mega_pl.editors.protocol import Routed
from mega_pl.edits import EditCase, EditRequest, Probe
from mega_pl.evaluation import PROTOCOLS, Trial
from mega_pl.evaluation.relation_specificity import (
    RelationAnswer,
    RelationTest,
    ask_relation_specificity,
    relation_specificity_tests,
    score_relation_specificity,
)

PROTOCOL = PROTOCOLS["relation_specificity"]


def test_every_probe_is_a_test_whatever_its_condition(cases):
    free = Probe(prompt="The king of France is", answers=("none", "nobody"))
    case = replace(cases[0], relation_specificity=(*cases[0].relation_specificity, free))
    assert [(t.edit_id, t.prompt, t.answers) for t in relation_specificity_tests(case)] == [
        ("france", "The official language of France is", ("French",)),
        ("france", "The king of France is", ("none", "nobody")),
    ]
    assert relation_specificity_tests(cases[1]) == ()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_against_a_slow_twin(backbone, cases, editors, which):
    tests = [
        RelationTest(edit_id="france", prompt=prompt, answers=("x",))
        for prompt in ("The official language of France is", "France", "Rome is a city in", "France is a country")
    ]
    bare = ask_relation_specificity(backbone, BARE, tests)
    with editors[which].edit(backbone, [case.request for case in cases]) as edited:
        answers = ask_relation_specificity(backbone, edited, tests)
        for test, answer in zip(tests, answers, strict=True):
            logits = backbone.last_logits(backbone.encode([edited.prompt(test.prompt)]))
            token = int(logits.argmax())
            assert answer == RelationAnswer(token=token, prediction=str(backbone.tokenizer.decode(token)))
    scores = score_relation_specificity([Trial(*columns) for columns in zip(tests, bare, answers, strict=True)])
    assert scores["unchanged"].value == sum(a == b for a, b in zip(answers, bare, strict=True)) / 4
    assert (scores["unchanged"].value == 1) == (which == 0)
    assert (scores["fired"].n, scores["unchanged"].bare) == (0, 1)


TRIALS = [  # bare, edited, fired; the answers are "French" and "Occitan"
    (" French", " French", ""),
    (" French", " Fr", "e"),  # changed and still right
    (" French", " Italian", "e"),
    (" Oc", " the", "f"),
    (" the", " French", ""),  # changed, not known before
    (" the", " the", ""),
]


def hand_made(routed: bool = True) -> list[Trial[RelationTest, RelationAnswer]]:
    return [
        Trial(
            RelationTest(edit_id=str(i), prompt="p", answers=("French", "Occitan")),
            RelationAnswer(token=hash(bare), prediction=bare),
            RelationAnswer(token=hash(edited), prediction=edited, fired=fired, routed=routed),
        )
        for i, (bare, edited, fired) in enumerate(TRIALS)
    ]


def test_hand_made_scores():
    scores = score_relation_specificity(hand_made())
    assert {name: (round(score.value, 6), score.bare, score.n) for name, score in scores.items()} == {
        "unchanged": (0.333333, 1, 6),
        "kept": (0.5, 1, 4),
        "fired": (0.5, 0, 6),
    }
    assert scores["unchanged"].ci95[0] <= scores["unchanged"].value <= scores["unchanged"].ci95[1]
    unrouted = score_relation_specificity(hand_made(routed=False))
    assert unrouted["fired"].n == 0
    assert unrouted["kept"] == scores["kept"]


def test_planted_mistakes_are_seen():
    right = {name: score.value for name, score in score_relation_specificity(hand_made()).items()}
    turned = [replace(trial, bare=trial.edited, edited=trial.bare) for trial in hand_made()]
    short = [replace(trial, test=replace(trial.test, answers=("French",))) for trial in hand_made()]
    for trials in (turned, short):
        assert score_relation_specificity(trials)["kept"].value != right["kept"]
    assert score_relation_specificity(turned)["fired"].n == 0


def test_a_bank_fires_on_its_own_question_and_not_on_another(lab_backbone: Backbone, bank_folder):
    """Control: the same protocol, given the edit's own question for a probe, reports the change."""
    bank = EditBank.from_pretrained(bank_folder)
    request: EditRequest = bank.requests[0]
    probes = (
        Probe(prompt=request.filled, answers=(request.target_true,)),
        Probe(prompt="The capital of France is", answers=("Paris",)),
    )
    case = EditCase(request=request, relation_specificity=probes)
    bare = PROTOCOL.bare(lab_backbone, [case])
    with bank.apply(lab_backbone) as use:
        rows = PROTOCOL.rows(lab_backbone, Routed(use), [case], bare)
    assert [row.edited.fired for row in rows] == [request.edit_id, ""]
    scores = PROTOCOL.score(rows)
    assert (scores["unchanged"].value, scores["fired"].value, scores["kept"].value) == (0.5, 0.5, 0.5)
    idle = PROTOCOL.score([replace(row, edited=replace(row.bare, routed=True)) for row in rows])
    assert (idle["unchanged"].value, idle["fired"].value, idle["kept"].value) == (1, 0, 1)


def test_empty_and_too_long(tiny_backbone):
    assert all(score.n == 0 and math.isnan(score.value) for score in score_relation_specificity([]).values())
    with pytest.raises(ValueError, match="64"):
        ask_relation_specificity(
            tiny_backbone("gpt2"), BARE, [RelationTest(edit_id="e", prompt="a " * 99, answers=("b",))]
        )


def test_halves_of_characters_are_told_apart():
    halves = [RelationAnswer(token=token, prediction="\ufffd") for token in (1, 2)]
    trial = Trial(RelationTest(edit_id="e", prompt="p", answers=("French",)), *halves)
    assert score_relation_specificity([trial])["unchanged"].value == 0
