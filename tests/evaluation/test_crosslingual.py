"""Edits asked in other languages."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mega_pl.asking import BARE, continuations, teacher_forced
from mega_pl.evaluation import Trial
from mega_pl.evaluation.crosslingual import (
    FRAMES,
    CrosslingualAnswer,
    CrosslingualTest,
    ask_crosslingual,
    crosslingual_tests,
    score_crosslingual,
)
from mega_pl.functional.language import language_of
from mega_pl.metrics.crosslingual import crosslingual_metrics, in_language

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
    return Trial(test, bare, CrosslingualAnswer(new=(new, new), true=(-1.0, -2.0), exact=exact, text=text))


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
    scores = score_crosslingual(hand_made())
    assert set(scores) == set(crosslingual_metrics().keys())
    assert {name: (s.value, s.n, s.bare) for name, s in scores.items() if s.n} == {
        "de_success": (0.5, 4, 0),
        "de_exact": (0.5, 4, 0),
        "de_consistency": (pytest.approx(1 / 3), 3, 1),
        "zh_success": (1, 1, 0),
        "zh_exact": (1, 1, 0),
        "zh_consistency": (1, 1, 0),
    }
    assert math.isnan(scores["fr_success"].value)


def test_scores_agree_with_the_metric_classes():
    trials, metrics = [t for t in hand_made() if t.test.language == "de"], crosslingual_metrics()
    scores = score_crosslingual(trials)
    new, true = (
        torch.tensor([-sum(v) / len(v) for v in side])
        for side in zip(*((t.edited.new, t.edited.true) for t in trials), strict=True)
    )
    metrics["de_success"].update(new, true)
    metrics["de_exact"].update(torch.tensor([t.edited.exact for t in trials]))
    told = torch.tensor([language_of(t.bare.text) is not None for t in trials])
    metrics["de_consistency"].update([t.edited.text for t in trials], ["de"] * 4, told)
    for name in ("success", "exact", "consistency"):
        assert metrics[f"de_{name}"].compute().item() == pytest.approx(scores[f"de_{name}"].value)
        assert metrics[f"de_{name}"].n == scores[f"de_{name}"].n


def test_planted_mistakes_are_seen():
    right = score_crosslingual(hand_made())
    summed = score_crosslingual([replace(t, edited=replace(t.edited, new=(sum(t.edited.new),))) for t in hand_made()])
    assert summed["de_success"].value != right["de_success"].value
    mute = score_crosslingual([replace(t, edited=replace(t.edited, text="")) for t in hand_made()])
    assert mute["de_consistency"].value == 0
    assert mute["de_consistency"].n == right["de_consistency"].n
    with pytest.raises(ValueError, match=r"`texts` and `languages` must be equally long, but got 1 and 0"):
        in_language([""], [])
