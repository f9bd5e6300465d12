"""Other facts about an edit's subject: what counts as unchanged, as kept, and as a misfire."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from mega_pl import EditBank
from mega_pl.asking import BARE
from mega_pl.backbone import Backbone
from mega_pl.editors.protocol import Routed
from mega_pl.edits import EditCase, EditRequest, Probe
from mega_pl.protocols import EvalRow
from mega_pl.protocols.relation_specificity import (
    PROTOCOL,
    RelationAnswer,
    RelationTest,
    ask_relation_specificity,
    relation_specificity_tests,
)


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
    scores = PROTOCOL.score([EvalRow(*columns) for columns in zip(tests, bare, answers, strict=True)])
    assert scores["unchanged"].value == sum(a == b for a, b in zip(answers, bare, strict=True)) / 4
    assert (scores["unchanged"].value == 1) == (which == 0)
    assert (scores["fired"].n, scores["unchanged"].bare) == (0, 1)


ANSWERS = [  # bare, edited, fired; the answers are "French" and "Occitan"
    (" French", " French", ""),
    (" French", " Fr", "e"),  # changed and still right
    (" French", " Italian", "e"),
    (" Oc", " the", "f"),
    (" the", " French", ""),  # changed, not known before
    (" the", " the", ""),
]


def hand_made(routed: bool = True) -> list[EvalRow[RelationTest, RelationAnswer]]:
    return [
        EvalRow(
            RelationTest(edit_id=str(i), prompt="p", answers=("French", "Occitan")),
            RelationAnswer(token=hash(bare), prediction=bare),
            RelationAnswer(token=hash(edited), prediction=edited, fired=fired, routed=routed),
        )
        for i, (bare, edited, fired) in enumerate(ANSWERS)
    ]


def test_hand_made_scores():
    scores = PROTOCOL.score(hand_made())
    assert {name: (round(score.value, 6), score.bare, score.n) for name, score in scores.items()} == {
        "unchanged": (0.333333, 1, 6),
        "kept": (0.5, 1, 4),
        "fired": (0.5, 0, 6),
    }
    assert scores["unchanged"].ci95[0] <= scores["unchanged"].value <= scores["unchanged"].ci95[1]
    unrouted = PROTOCOL.score(hand_made(routed=False))
    assert unrouted["fired"].n == 0
    assert unrouted["kept"] == scores["kept"]


def test_planted_mistakes_are_seen():
    right = {name: score.value for name, score in PROTOCOL.score(hand_made()).items()}
    turned = [replace(row, bare=row.edited, edited=row.bare) for row in hand_made()]
    short = [replace(row, test=replace(row.test, answers=("French",))) for row in hand_made()]
    for rows in (turned, short):
        assert PROTOCOL.score(rows)["kept"].value != right["kept"]
    assert PROTOCOL.score(turned)["fired"].n == 0


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
    assert all(score.n == 0 and math.isnan(score.value) for score in PROTOCOL.score([]).values())
    with pytest.raises(ValueError, match="64"):
        ask_relation_specificity(
            tiny_backbone("gpt2"), BARE, [RelationTest(edit_id="e", prompt="a " * 99, answers=("b",))]
        )


def test_halves_of_characters_are_told_apart():
    halves = [RelationAnswer(token=token, prediction="\ufffd") for token in (1, 2)]
    row = EvalRow(RelationTest(edit_id="e", prompt="p", answers=("French",)), *halves)
    assert PROTOCOL.score([row])["unchanged"].value == 0


SAID = [" French", " Fr", " Oc", " Italian", " the", " "]


def random_rows(seed: int, edits: int = 30) -> list[EvalRow[RelationTest, RelationAnswer]]:
    rng = random.Random(seed)

    def answer(*, fired: str = "", routed: bool = False) -> RelationAnswer:
        token = rng.randrange(len(SAID))
        return RelationAnswer(token=token, prediction=SAID[token], fired=fired, routed=routed)

    return [
        EvalRow(
            RelationTest(edit_id=str(edit), prompt="p", answers=("French", "Occitan")),
            answer(),
            answer(fired=rng.choice(["", "", "e"]), routed=True),
        )
        for edit in range(edits)
        for _ in range(rng.randint(0, 4))
    ]


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_slow_ones(seed):
    rows = random_rows(seed)
    scores = PROTOCOL.score(rows)
    known = [row for row in rows if row.bare.token < 3]
    wanted = {
        "unchanged": [row.bare.prediction == row.edited.prediction for row in rows],
        "kept": [row.edited.prediction in (" French", " Fr", " Oc") for row in known],
        "fired": [row.edited.fired != "" for row in rows],
    }
    for name, values in wanted.items():
        assert scores[name].value == pytest.approx(sum(values) / len(values), abs=1e-12)
        assert scores[name].n == len(values)
        assert scores[name].bare == (name != "fired")
