"""Edits asked in other languages."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from mega_pl.asking import BARE, continuations, teacher_forced
from mega_pl.protocols import EvalRow
from mega_pl.protocols.crosslingual import (
    FRAMES,
    PROTOCOL,
    CrosslingualAnswer,
    CrosslingualTest,
    ask_crosslingual,
    crosslingual_tests,
)

NAMES = ("success", "exact", "consistency")
TRANSLATED = " Er wurde in der Stadt geboren"


def test_the_tests_of_a_case(cases):
    tests = crosslingual_tests(cases[0])
    assert [(t.language, t.kind, t.prompt, t.new, t.true) for t in tests] == [
        ("de", "question", "Frage: Was ist die Hauptstadt? Antwort:", "Rom", "Paris"),
        ("zh", "question", FRAMES["zh"].format("法国的首都是哪里"), "罗马", "巴黎"),
    ]
    assert crosslingual_tests(cases[1]) == ()


def test_answers_are_forced_and_written(backbone, cases):
    tests = crosslingual_tests(cases[0])
    answers = ask_crosslingual(backbone, BARE, tests, new_tokens=5)
    for test, answer in zip(tests, answers, strict=True):
        new, true = teacher_forced(backbone, [test.prompt] * 2, [test.new, test.true])
        assert answer.new == pytest.approx(new.log_probs, abs=1e-4)
        assert answer.true == pytest.approx(true.log_probs, abs=1e-4)
        assert answer.exact == all(new.matches)
        assert answer.text == continuations(backbone, [test.prompt], 5)[0].text


def trial(i: int, language: str, new: float, exact: bool, text: str, bare_text: str):
    test = CrosslingualTest(edit_id=str(i), kind="question", language=language, prompt="p", new="n", true="t")  # type: ignore[arg-type]
    bare = CrosslingualAnswer(new=(-3.0,), true=(-1.0, -2.0), exact=False, text=bare_text)
    return EvalRow(test, bare, CrosslingualAnswer(new=(new, new), true=(-1.0, -2.0), exact=exact, text=text))


def hand_made():
    english = " He was born in the city"
    return [
        trial(0, "de", -1.0, True, TRANSLATED, TRANSLATED),
        trial(1, "de", -2.0, False, english, TRANSLATED),
        trial(2, "de", -1.4, False, " Rom Rom Rom", TRANSLATED),
        trial(3, "de", -9.0, True, TRANSLATED, " Rom"),
        trial(4, "zh", -1.0, True, " 罗马", english),
    ]


def test_hand_made_scores():
    scores = PROTOCOL.score(hand_made())
    assert set(scores) == {f"{language}_{name}" for language in ("de", "fr", "zh") for name in NAMES}
    assert {name: (s.value, s.n, s.bare) for name, s in scores.items() if s.n} == {
        "de_success": (0.5, 4, 0),
        "de_exact": (0.5, 4, 0),
        "de_consistency": (pytest.approx(1 / 3), 3, 1),
        "zh_success": (1, 1, 0),
        "zh_exact": (1, 1, 0),
        "zh_consistency": (1, 1, 0),
    }
    assert math.isnan(scores["fr_success"].value)


def test_planted_mistakes_are_seen():
    right = PROTOCOL.score(hand_made())
    summed = PROTOCOL.score([replace(t, edited=replace(t.edited, new=(sum(t.edited.new),))) for t in hand_made()])
    assert summed["de_success"].value != right["de_success"].value
    mute = PROTOCOL.score([replace(t, edited=replace(t.edited, text="")) for t in hand_made()])
    assert mute["de_consistency"].value == 0
    assert mute["de_consistency"].n == right["de_consistency"].n
    swapped = PROTOCOL.score([replace(t, edited=t.bare, bare=t.edited) for t in hand_made()])
    assert all(swapped[f"de_{name}"].value != right[f"de_{name}"].value for name in NAMES)
    other = PROTOCOL.score([replace(t, test=replace(t.test, language="fr")) for t in hand_made()])
    assert other["fr_consistency"].value != right["de_consistency"].value


def random_rows(seed: int, edits: int = 30) -> list[EvalRow[CrosslingualTest, CrosslingualAnswer]]:
    rng = random.Random(seed)
    texts = [TRANSLATED, " He was born in the city", " Il est dans la ville", " 罗马", " Rom", ""]

    def answer() -> CrosslingualAnswer:
        new, true = (tuple(-4 * rng.random() for _ in range(rng.randint(1, 3))) for _ in range(2))
        return CrosslingualAnswer(new=new, true=true, exact=rng.random() < 0.4, text=rng.choice(texts))

    return [
        EvalRow(
            CrosslingualTest(edit_id=str(edit), kind="question", language=language, prompt="p", new="n", true="t"),
            answer(),
            answer(),
        )
        for edit in range(edits)
        for language in ("de", "fr", "zh")
    ]


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_slow_ones(seed):
    rows = random_rows(seed)
    spoken = {TRANSLATED: "de", " He was born in the city": "en", " Il est dans la ville": "fr", " 罗马": "zh"}
    scores = PROTOCOL.score(rows)
    for language in ("de", "fr", "zh"):
        sums: dict[str, list[bool]] = {name: [] for name in NAMES}
        for row in rows:
            if row.test.language == language:
                new, true = (sum(side) / len(side) for side in (row.edited.new, row.edited.true))
                sums["success"].append(new > true)
                sums["exact"].append(row.edited.exact)
                if row.bare.text in spoken:
                    sums["consistency"].append(spoken.get(row.edited.text) == language)
        for name, values in sums.items():
            score = scores[f"{language}_{name}"]
            assert (score.value, score.n) == pytest.approx((sum(values) / len(values), len(values))), name
