"""Free-running answers: what is asked, and how continuations become scores."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from statistics import fmean

import pytest

from mega_pl.asking import BARE, Continuation, continuations
from mega_pl.protocols import EvalRow
from mega_pl.protocols.cases import new_names
from mega_pl.protocols.generation import (
    PROTOCOL,
    GenerationTest,
    ask_generation,
    generation_tests,
    named_early,
    reverts,
)


def test_the_tests_of_a_case(cases):
    tests = generation_tests(cases[0])
    assert [(t.kind, t.prompt) for t in tests] == [
        ("rewrite", "The capital of France is"),
        ("paraphrase", "The city that is the capital of France is"),
        ("paraphrase", "France has its capital in"),
    ]
    assert {(t.new, t.old) for t in tests} == {(("Rome", "Roma", "City of Rome"), "Paris")}
    assert new_names(cases[1]) == ("English",)


def test_answers_are_greedy_continuations(backbone, cases, editors):
    tests = [test for case in cases for test in generation_tests(case)]
    prompts = [test.prompt for test in tests]
    assert ask_generation(backbone, BARE, tests) == continuations(backbone, prompts, 30)
    with editors[2].edit(backbone, [case.request for case in cases]) as edited:
        told = ask_generation(backbone, edited, tests, new_tokens=4)
    assert told == continuations(backbone, [edited.prompt(prompt) for prompt in prompts], 4)


TEXTS = [  # text, exact start, alias start, exact sentence, alias sentence, relapse
    (" Rome. Paris was the capital before.", 1, 1, 1, 1, 1),
    (" Roma, in Italy.", 0, 1, 0, 1, 0),
    (" the city of Rome", 0, 0, 1, 1, 0),
    (" Rome, and Rome again", 1, 1, 1, 1, 0),
    (" the city of Roma\nand Paris", 0, 0, 0, 1, 1),
    (" Paris. Not Rome", 0, 0, 0, 0, None),
    (" Romeo and Paris", 0, 0, 0, 0, None),
    (" ROME", 0, 0, 0, 0, None),
    ("", 0, 0, 0, 0, None),
]
NAMES = ["exact_start", "alias_start", "exact_sentence", "alias_sentence", "relapse"]


def hand_made(kind: str = "rewrite") -> list[EvalRow[GenerationTest, Continuation]]:
    return [
        EvalRow(
            GenerationTest(edit_id=str(i), kind=kind, prompt="p", new=("Rome", "Roma"), old="Paris"),  # type: ignore[arg-type]
            Continuation(" Paris"),
            Continuation(text),
        )
        for i, (text, *_) in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("kind", ["rewrite", "paraphrase"])
def test_hand_made_scores(kind):
    scores = PROTOCOL.score(hand_made(kind))
    assert set(scores) == {f"{k}_{name}" for k in ("rewrite", "paraphrase") for name in NAMES}
    for i, name in enumerate(NAMES, start=1):
        outcomes = [bool(row[i]) for row in TEXTS if row[i] is not None]
        score = scores[f"{kind}_{name}"]
        assert score.value == pytest.approx(sum(outcomes) / len(outcomes)), name
        assert score.n == len(outcomes)
        assert score.bare == 0
        assert score.ci95[0] <= score.value <= score.ci95[1]
    other = "paraphrase" if kind == "rewrite" else "rewrite"
    assert all(math.isnan(scores[f"{other}_{name}"].value) for name in NAMES)


def test_planted_mistakes_are_seen():
    trials = hand_made()
    right = {name: score.value for name, score in PROTOCOL.score(trials).items()}

    def wrong(change) -> dict[str, float]:
        return {name: score.value for name, score in PROTOCOL.score([change(t) for t in trials]).items()}

    swapped = wrong(lambda t: replace(t, test=replace(t.test, new=(t.test.old,), old=t.test.new[0])))
    bare = wrong(lambda t: replace(t, edited=t.bare, bare=t.edited))
    prompted = wrong(lambda t: replace(t, edited=Continuation("It is" + t.edited.text)))
    no_alias = wrong(lambda t: replace(t, test=replace(t.test, new=t.test.new[:1])))
    for name in NAMES[:4]:
        assert bare[f"rewrite_{name}"] != right[f"rewrite_{name}"], name
    assert swapped["rewrite_alias_start"] != right["rewrite_alias_start"]
    assert swapped["rewrite_relapse"] != right["rewrite_relapse"]
    assert prompted["rewrite_exact_start"] != right["rewrite_exact_start"]
    assert no_alias["rewrite_alias_sentence"] != right["rewrite_alias_sentence"]


PLACES = ["Rome", "Paris", "New York", "York", "Oslo"]


def random_rows(seed: int, edits: int = 20) -> list[EvalRow[GenerationTest, Continuation]]:
    rng = random.Random(seed)

    def text() -> Continuation:
        return Continuation(
            " " + "".join(rng.choices([*PLACES, ". ", " and ", "\n", "s"], k=6)) + f" {rng.choice(PLACES)}"
        )

    rows = []
    for edit in range(edits):
        new = tuple(rng.sample(PLACES, 2))
        old = rng.choice([place for place in PLACES if place not in new])
        for kind in ["rewrite", *["paraphrase"] * rng.randint(1, 3)]:
            test = GenerationTest(edit_id=str(edit), kind=kind, prompt="p", new=new, old=old)  # type: ignore[arg-type]
            rows.append(EvalRow(test, text(), text()))
    rng.shuffle(rows)
    return rows


def whole(name):
    return rf"(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])"


def slow_sentence_length(text):
    """Characters up to the end of the first sentence, one by one."""
    started = False
    for i, character in enumerate(text):
        if character == "\n" and started:
            return i
        if character == "." and (i + 1 == len(text) or text[i + 1].isspace()):
            return i + 1
        started = started or not character.isspace()
    return len(text)


def slow_mention(text, names):
    """Where the first mention in the first sentence ends, of two at one place the longer one's."""
    found = [(m.start(), -m.end()) for n in names for m in re.finditer(whole(n), text)]
    early = [span for span in found if span[0] < slow_sentence_length(text)]
    return -min(early)[1] if early else None


def slow_reverts(text, new, old):
    rest = text[slow_mention(text, new) or 0 :] if slow_mention(text, new) is not None else ""
    for name in sorted(new, key=len, reverse=True):
        rest = re.sub(whole(name), "#", rest)
    return re.search(whole(old), rest) is not None


def slow_scores(rows, side):
    scores = {}
    for kind in ("rewrite", "paraphrase"):
        own = [(row.test, getattr(row, side).text, row.edited.text) for row in rows if row.test.kind == kind]
        for reach, count in {"exact": 1, "alias": 2}.items():
            scores[f"{kind}_{reach}_start"] = fmean(
                any(re.match(r"\s*" + whole(name), text) for name in test.new[:count]) for test, text, _ in own
            )
            scores[f"{kind}_{reach}_sentence"] = fmean(
                slow_mention(text, test.new[:count]) is not None for test, text, _ in own
            )
        scores[f"{kind}_relapse"] = fmean(
            slow_reverts(text, test.new, test.old)
            for test, text, edited in own
            if slow_mention(edited, test.new) is not None
        )
    return scores


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_slow_ones(seed):
    rows = random_rows(seed, edits=60)
    scores = PROTOCOL.score(rows)
    for side in ("edited", "bare"):
        for name, value in slow_scores(rows, side).items():
            found = scores[name].value if side == "edited" else scores[name].bare
            assert found == pytest.approx(value, abs=1e-12), (side, name)
            assert 0 < scores[name].value < 1


@pytest.mark.parametrize(
    ("text", "start", "sentence", "back"),
    [
        (" Rome, and once Paris", True, True, True),
        (" Paris. Rome", False, False, False),
        (" in Rome. Paris", False, True, True),
        (" Rome and New Paris", True, True, False),
        (" Rome\nParis", True, True, True),
        (" Romeo of Paris", False, False, False),
        (" St. Rome. Paris", True, True, True),  # an abbreviation within the name ends no sentence before it
    ],
)
def test_hand_made_continuations(text, start, sentence, back):
    new = ("Rome", "New Paris", "St. Rome")
    test = GenerationTest(edit_id="a", kind="rewrite", prompt="p", new=new, old="Paris")
    score = PROTOCOL.score([EvalRow(test, Continuation(""), Continuation(text))])
    assert score["rewrite_alias_start"].value == start
    assert (named_early(text, new) is not None) is sentence
    assert reverts(text, new, ("Paris",)) is back
