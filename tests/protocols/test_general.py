"""What is about no edit: the fixed list, who is asked what of it, and how far answers move."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import asdict, replace

import pytest
import torch
from torch.nn.functional import kl_div

from mega_pl import EditBank
from mega_pl.asking import BARE
from mega_pl.data.relations import relations
from mega_pl.editors.protocol import Routed
from mega_pl.edits import EditCase, EditRequest
from mega_pl.protocols import EvalRow
from mega_pl.protocols.general import (
    PROTOCOL,
    GeneralAnswer,
    GeneralTest,
    ask_general,
    bare_distributions,
    divergence,
    general_prompts,
    general_tests,
)


def case_of(name: str) -> EditCase:
    return EditCase(
        request=EditRequest(edit_id=name, prompt="{} is in", subject=name, target_new="Rome", target_true="Oslo")
    )


def test_the_list():
    prompts = general_prompts()
    assert len(prompts) == len(set(prompts)) == 100
    assert sum(prompt.startswith("Q: ") and prompt.endswith("?\nA:") for prompt in prompts) == 50
    assert all(prompt == prompt.strip() and not prompt.endswith((".", "!")) for prompt in prompts)
    asked = {text for relation in relations().values() for text in relation.references}
    assert not asked & {prompt.removeprefix("Q: ").removesuffix("\nA:") for prompt in prompts}


def test_edits_draw_their_own_and_many_draw_all():
    tests = general_tests(case_of("a"))
    assert len({test.prompt for test in tests}) == len(tests) == 10
    assert all((test.kind == "question") == ("?" in test.prompt) for test in tests)
    assert tests == general_tests(case_of("a"))
    assert {t.prompt for t in tests} != {t.prompt for t in general_tests(case_of("b"))}
    counts = Counter(test.prompt for i in range(200) for test in general_tests(case_of(str(i))))
    assert set(counts) == set(general_prompts())
    assert max(counts.values()) < 45


def test_divergence_is_the_usual_one():
    p, q = torch.randn(2, 5, 300, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    for row, other in zip(p, q, strict=True):
        assert divergence(row, other) == pytest.approx(
            float(kl_div(other, row, log_target=True, reduction="sum")), rel=1e-5
        )
        assert divergence(row, row) == 0
    half, sure = torch.tensor([0.5, 0.5]).log(), torch.tensor([1.0, 0.0]).log()
    assert divergence(sure, half) == pytest.approx(math.log(2))
    assert divergence(half, sure) == math.inf


@pytest.mark.parametrize("which", [0, 1, 2])
def test_against_a_slow_twin(backbone, cases, editors, which):
    tests = [test for case in cases for test in general_tests(case)]
    bare = bare_distributions(backbone)
    logits = {test.prompt: backbone.last_logits(backbone.encode([test.prompt]))[0] for test in tests}
    with editors[which].edit(backbone, [case.request for case in cases]) as edited:
        answers = ask_general(backbone, edited, tests, bare=bare)
        for test, answer in zip(tests, answers, strict=True):
            after = backbone.last_logits(backbone.encode([edited.prompt(test.prompt)]))[0]
            assert answer.token == int(after.argmax())
            assert answer.prediction == backbone.tokenizer.decode([answer.token])
            p, q = logits[test.prompt].double().softmax(-1), after.double().softmax(-1)
            assert answer.divergence == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-3, abs=1e-6)
            assert (answer.fired, answer.routed) == ("", False)
    assert (max(answer.divergence for answer in answers) < 1e-6) == (which == 0)


def test_the_protocol(backbone, cases, editors):
    protocol = PROTOCOL.prepare(backbone, cases)
    bare = protocol.bare(backbone, cases)
    alone = [answer for case in cases for answer in protocol.bare(backbone, [case])]
    assert [answer.prediction for answer in bare] == [answer.prediction for answer in alone]
    scores = {}
    for editor in editors:
        with editor.edit(backbone, [case.request for case in cases]) as edited:
            rows = protocol.rows(backbone, edited, cases, bare)
        json.dumps([asdict(row) for row in rows], allow_nan=False)
        scores[editor.name] = protocol.score(rows)
    assert {*protocol.headline, *protocol.lower_is_better} <= set(scores["idle"])
    idle = scores["idle"]
    assert (idle["unchanged"].value, idle["fired"].n) == (1, 0)
    assert idle["divergence"].value < 1e-6
    for name in ("shaken", "in-context"):
        assert scores[name]["divergence"].value > 0.01
        assert scores[name]["unchanged"].value < 1


def test_a_bank_leaves_all_of_it_alone_and_a_forced_one_does_not(lab_backbone, bank_folder):
    bank, case = EditBank.from_pretrained(bank_folder), case_of("a")
    protocol = PROTOCOL.prepare(lab_backbone, [case])
    bare = protocol.bare(lab_backbone, [case])
    with bank.apply(lab_backbone) as use:
        quiet = protocol.score(protocol.rows(lab_backbone, Routed(use), [case], bare))
    with bank.apply(lab_backbone, forced=True) as use:
        loud = protocol.score(protocol.rows(lab_backbone, Routed(use), [case], bare))
    assert (quiet["fired"].value, quiet["fired"].n, quiet["unchanged"].value) == (0, 10, 1)
    assert quiet["divergence"].value < 1e-6
    assert loud["fired"].value == 1
    assert loud["unchanged"].value < 0.5
    assert loud["divergence"].value > 0.5


def row_of(
    edit: str, prompt: str, bare: str, edited: str, far: float, fired: str = ""
) -> EvalRow[GeneralTest, GeneralAnswer]:
    return EvalRow(
        GeneralTest(edit_id=edit, kind="question" if prompt.endswith("?") else "text", prompt=prompt),
        GeneralAnswer(token=int(bare), prediction=bare, divergence=0.0),
        GeneralAnswer(token=int(edited), prediction=edited, divergence=far, fired=fired, routed=True),
    )


def test_hand_made_scores():
    rows = [
        row_of("a", "x?", "1", "1", 0.25),
        row_of("a", "y?", "1", "2", 0.75, "a"),
        row_of("b", "z", "1", "1", 0.0),
        row_of("b", "y?", "1", "2", 1.0, "a"),
    ]
    scores = PROTOCOL.score(rows)
    assert {name: (round(score.value, 6), score.bare, score.n) for name, score in scores.items()} == {
        "unchanged": (0.5, 1, 4),
        "unchanged_question": (0.333333, 1, 3),
        "unchanged_text": (1, 1, 1),
        "divergence": (0.5, 0, 4),
        "fired": (0.5, 0, 4),
    }
    unrouted = [replace(t, edited=replace(t.edited, routed=False)) for t in rows]
    assert PROTOCOL.score(unrouted)["fired"].n == 0
    assert all(score.n == 0 for score in PROTOCOL.score([]).values())


def test_the_interval_does_not_narrow_where_edits_share_an_answer():
    once = [row_of("a", str(i), "1", "12"[i % 2], 0.0) for i in range(10)]
    often = [replace(t, test=replace(t.test, edit_id=str(i))) for i in range(50) for t in once]
    low, high = PROTOCOL.score(often)["unchanged"].ci95
    assert (low, high) == PROTOCOL.score(once)["unchanged"].ci95
    assert high - low > 0.3


def test_a_prompt_that_is_too_long_is_refused(tiny_backbone):
    test = GeneralTest(edit_id="e", kind="text", prompt="a " * 99)
    with pytest.raises(ValueError, match="64"):
        ask_general(tiny_backbone("gpt2"), BARE, [test], bare={test.prompt: torch.zeros(1)})


def test_a_protocol_that_was_not_prepared_is_refused(backbone, cases):
    with pytest.raises(ValueError, match=r"`bare` must hold .*; prepare the protocol with the bare model first"):
        PROTOCOL.bare(backbone, cases)
    assert PROTOCOL.prepare(backbone, cases).adapted


def random_rows(seed: int, edits: int = 20) -> list[EvalRow[GeneralTest, GeneralAnswer]]:
    rng = random.Random(seed)
    return [
        row_of(
            str(edit),
            rng.choice("uvwxyz") + rng.choice(["", "?"]),
            rng.choice("12"),
            rng.choice("123"),
            rng.random(),
            rng.choice(["", "", "e"]),
        )
        for edit in range(edits)
        for _ in range(5)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_slow_ones(seed):
    rows = random_rows(seed)
    scores = PROTOCOL.score(rows)
    same = [(row.test.prompt.endswith("?"), row.edited.prediction == row.bare.prediction) for row in rows]
    wanted: dict[str, list[float]] = {
        "unchanged": [value for _, value in same],
        "unchanged_question": [value for asks, value in same if asks],
        "unchanged_text": [value for asks, value in same if not asks],
        "divergence": [row.edited.divergence for row in rows],
        "fired": [row.edited.fired == "e" for row in rows],
    }
    for name, values in wanted.items():
        assert scores[name].value == pytest.approx(sum(values) / len(values), abs=1e-12)
        assert scores[name].n == len(values)
