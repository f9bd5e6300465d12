"""Conversations that doubt an edit: what is said in which order, when they end, and what is made of them."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from functools import partial

import pytest

from mega_pl.asking import BARE, Edited
from mega_pl.backbone import Backbone
from mega_pl.protocols import EvalRow
from mega_pl.protocols.persistence import (
    DOUBT,
    PROTOCOL,
    PersistenceAnswer,
    PersistenceTest,
    ask_persistence,
    conversation,
    persistence_tests,
)

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_the_test_of_a_case(cases):
    (test,) = persistence_tests(replace(cases[0], request=replace(cases[0].request, relation="P36")))
    assert test.question == "Which city is the seat of government of France?"
    assert (test.new, test.old) == (("Rome", "Roma", "City of Rome"), "Paris")
    assert persistence_tests(cases[1])[0].question == "The mother tongue of Danielle Darrieux is"


def said_slowly(backbone: Backbone, edited: Edited, text: str, new_tokens: int) -> str:
    text = edited.prompt(text)
    ids, new = list(backbone.tokenizer(text)["input_ids"]), ""
    for _ in range(new_tokens):
        ids.append(int(backbone.last_logits(backbone.pad([ids])).argmax()))
        new = str(backbone.tokenizer.decode(ids))[len(text) :]
        if ids[-1] == backbone.tokenizer.eos_token_id:
            break
    return re.split(r"[.\n]|<\|endoftext\|>", new)[0].strip()


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_against_a_slow_twin(backbone, cases, editors, which, template):
    backbone.tokenizer.chat_template = template
    tests = [test for case in cases for test in persistence_tests(case)]
    with editors[which].edit(backbone, [case.request for case in cases]) as edited:
        answers = ask_persistence(backbone, edited, tests, turns=4)
        for test, answer in zip(tests, answers, strict=True):
            asks, replies = ("<user> ", "<assistant> ") if template else ("Q: ", "A: ")
            said = f"{asks}{test.question}\n"
            first = said_slowly(backbone, edited, said + replies[:-1], 20)
            said += f"{replies}{first}\n"
            doubts, again = [], []
            for turn in range(1, 5):
                said += f"{asks}{DOUBT}\n"
                doubts.append(said_slowly(backbone, edited, said + replies[:-1], 5))
                said += f"{replies}{doubts[-1]}\n"
                if turn in (1, 3, 4):
                    again.append(said_slowly(backbone, edited, f"{said}{asks}{test.question}\n{replies[:-1]}", 20))
            assert answer == PersistenceAnswer(first=first, doubts=tuple(doubts), after=(1, 3, 4), again=tuple(again))


@pytest.mark.parametrize("limit", [180, 200, 215, 230, 245])
def test_a_conversation_ends_where_the_model_reads_no_more(tiny_backbone, backbone, cases, limit):
    (test,) = persistence_tests(cases[0])
    roomy = ask_persistence(backbone, BARE, [test], turns=12)[0]
    assert (len(roomy.doubts), roomy.after) == (12, (1, 3, 10, 12))
    tight = Backbone(backbone.model, backbone.tokenizer)
    tight.config.max_position_embeddings = limit
    (answer,) = ask_persistence(tight, BARE, [test], turns=12)
    held = len(answer.doubts)
    assert 0 < held < 12
    assert answer.doubts == roomy.doubts[:held]
    assert answer.after == (*(turn for turn in (1, 3, 10) if turn < held), held)
    turns = [test.question, answer.first, *(said for doubt in answer.doubts for said in (DOUBT, doubt))]
    lengths = [
        len(tight.tokenizer(conversation(tight, [*turns, *more, test.question]))["input_ids"])
        for more in ((), (DOUBT, ""))
    ]
    assert lengths[0] + 20 <= limit < lengths[1] + 25
    (none,) = ask_persistence(tiny_backbone("gpt2"), BARE, [test])
    assert (none.doubts, none.after, none.again) == ((), (), ())
    assert none.first


def test_no_turns_and_refusals(backbone, tiny_backbone, cases):
    (test,) = persistence_tests(cases[0])
    assert ask_persistence(backbone, BARE, [test], turns=0)[0].again == ()
    with pytest.raises(ValueError, match="`turns` must be 0 or more, but got -1"):
        ask_persistence(backbone, BARE, [test], turns=-1)
    with pytest.raises(ValueError, match="at most 64 tokens"):
        ask_persistence(tiny_backbone("gpt2"), BARE, [replace(test, question="a " * 60)])


def test_the_bare_model_as_edited_is_itself(backbone, cases, editors):
    protocol = replace(PROTOCOL, ask=partial(ask_persistence, turns=3))
    bare = protocol.bare(backbone, cases)
    with editors[0].edit(backbone, [case.request for case in cases]) as edited:
        rows = protocol.rows(backbone, edited, cases, bare)
    assert all(row.bare == row.edited for row in rows)
    assert all(score.value == score.bare or score.n == 0 for score in protocol.score(rows).values())


OLD = PersistenceAnswer(first="Paris", doubts=("Yes", "No"), after=(1, 2), again=("Paris", "Paris"))
ANSWERS = [
    PersistenceAnswer(first="It is Rome", doubts=("Yes", "yes, sure"), after=(1, 2), again=("Rome", "Roma")),
    PersistenceAnswer(first="Rome", doubts=("No", "No"), after=(1, 2), again=("Rome, not Paris", "Paris")),
    PersistenceAnswer(first="Rome", doubts=("No", "Yes"), after=(1, 2), again=("Oslo", "Oslo")),
    PersistenceAnswer(first="Paris", doubts=("No", "No"), after=(1, 2), again=("Paris", "Rome, not Paris")),
    PersistenceAnswer(first="Rome"),
]


def hand_made() -> list[EvalRow[PersistenceTest, PersistenceAnswer]]:
    return [
        EvalRow(PersistenceTest(edit_id=str(i), question="q?", new=("Rome", "Roma"), old="Paris"), OLD, answer)
        for i, answer in enumerate(ANSWERS)
    ]


def test_hand_made_scores():
    scores = PROTOCOL.score(hand_made())
    found = {name: (round(s.value, 6), round(s.bare, 6), s.n) for name, s in scores.items() if s.n}
    assert found == {
        "first": (0.8, 0, 5),
        "last": (0.5, 0, 4),
        "sure": (0.375, 0.5, 4),
        "kept": (0.333333, 0, 3),
        "flipped": (0.333333, 1, 3),
        "kept_1": (0.666667, 0, 3),
        "flipped_1": (0, 1, 3),
    }
    assert set(scores) - set(found) == {"kept_3", "flipped_3", "kept_10", "flipped_10"}
    assert all(score.n == 0 for score in PROTOCOL.score([]).values())


def test_planted_mistakes_are_seen():
    right = {name: score.value for name, score in PROTOCOL.score(hand_made()).items()}

    def wrong(change) -> dict[str, float]:
        rows = [replace(row, edited=change(row.edited)) for row in hand_made()]
        return {name: score.value for name, score in PROTOCOL.score(rows).items()}

    backwards = wrong(lambda answer: replace(answer, again=answer.again[::-1]))
    assert backwards["kept_1"] != right["kept_1"]
    assert backwards["flipped"] != right["flipped"]
    assert wrong(lambda answer: replace(answer, doubts=("No",) * len(answer.doubts)))["sure"] != right["sure"]
    assert wrong(lambda answer: replace(answer, first="Paris"))["first"] != right["first"]


PLACES = ["Rome", "in Roma", "Paris", "not Paris on Rome", "Oslo", ""]


def random_rows(seed: int, edits: int = 200) -> list[EvalRow[PersistenceTest, PersistenceAnswer]]:
    rng = random.Random(seed)

    def answer(said: list[str], yes: float) -> PersistenceAnswer:
        turns = rng.choice([0, 2, 3, 7, 10, 10])
        doubts = tuple("Yes, I do" if rng.random() < yes else "No" for _ in range(turns))
        after = tuple(sorted({turn for turn in (1, 3, 10, turns) if 0 < turn <= turns}))
        again = tuple(rng.choice(said) for _ in after)
        return PersistenceAnswer(first=rng.choice(said), doubts=doubts, after=after, again=again)

    return [
        EvalRow(
            PersistenceTest(edit_id=str(edit), question="q?", new=("Rome", "Roma", "Paris on Rome"), old="Paris"),
            answer([*PLACES, "Paris"], 0.3),
            answer([*PLACES, "Rome"], 0.7),
        )
        for edit in range(edits)
    ]


def slow_scores(rows, side):
    found: dict[str, list[float]] = {}
    for row in rows:
        answer = getattr(row, side)
        found.setdefault("first", []).append("Rom" in answer.first)
        if not row.bare.doubts or not row.edited.doubts:
            continue
        said = dict(zip(answer.after, answer.again, strict=True))
        found.setdefault("last", []).append("Rom" in said[len(answer.doubts)])
        found.setdefault("sure", []).append(sum("Yes" in doubt for doubt in answer.doubts) / len(answer.doubts))
        for turn in (None, 1, 3, 10) if "Rom" in row.edited.first else ():
            if turn is None or (turn <= len(row.bare.doubts) and turn <= len(row.edited.doubts)):
                text, suffix = said[turn or len(answer.doubts)], f"_{turn}" if turn else ""
                found.setdefault(f"kept{suffix}", []).append("Rom" in text)
                found.setdefault(f"flipped{suffix}", []).append(text == "Paris")
    return {name: (sum(values) / len(values), len(values)) for name, values in found.items()}


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_slow_ones(seed):
    rows = random_rows(seed)
    scores = PROTOCOL.score(rows)
    for side in ("edited", "bare"):
        wanted = slow_scores(rows, side)
        assert wanted.keys() == scores.keys()
        for name, (value, n) in wanted.items():
            found = scores[name].value if side == "edited" else scores[name].bare
            assert found == pytest.approx(value, abs=1e-12), (side, name)
            assert scores[name].n == n
            assert 0 < found < 1
