"""Free-running answers: what is asked, and how continuations become scores."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mega_pl.asking import BARE, Continuation, continuations
from mega_pl.evaluation import Trial
from mega_pl.evaluation.generation import (
    GenerationTest,
    ask_generation,
    generation_tests,
    new_names,
    score_generation,
)
from mega_pl.metrics import generation_metrics


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


def hand_made(kind: str = "rewrite") -> list[Trial[GenerationTest, Continuation]]:
    return [
        Trial(
            GenerationTest(edit_id=str(i), kind=kind, prompt="p", new=("Rome", "Roma"), old="Paris"),  # type: ignore[arg-type]
            Continuation(" Paris"),
            Continuation(text),
        )
        for i, (text, *_) in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("kind", ["rewrite", "paraphrase"])
def test_hand_made_scores(kind):
    scores = score_generation(hand_made(kind))
    assert set(scores) == set(generation_metrics().keys())
    for i, name in enumerate(NAMES, start=1):
        outcomes = [bool(row[i]) for row in TEXTS if row[i] is not None]
        score = scores[f"{kind}_{name}"]
        assert score.value == pytest.approx(sum(outcomes) / len(outcomes)), name
        assert score.n == len(outcomes)
        assert score.bare == 0
        assert score.ci95[0] <= score.value <= score.ci95[1]
    other = "paraphrase" if kind == "rewrite" else "rewrite"
    assert all(math.isnan(scores[f"{other}_{name}"].value) for name in NAMES)


def test_scores_agree_with_the_metric_classes():
    trials, metrics = hand_made(), generation_metrics()
    scores = score_generation(trials)
    texts = [trial.edited.text for trial in trials]
    for name in NAMES:
        names = [trial.test.new[: 1 if name.startswith("exact") else None] for trial in trials]
        old = [[(trial.test.old,) for trial in trials]] if name == "relapse" else []
        metrics[f"rewrite_{name}"].update(texts, names, *old)
        assert metrics[f"rewrite_{name}"].compute().item() == pytest.approx(scores[f"rewrite_{name}"].value)
        assert metrics[f"rewrite_{name}"].n == scores[f"rewrite_{name}"].n


def test_planted_mistakes_are_seen():
    trials = hand_made()
    right = {name: score.value for name, score in score_generation(trials).items()}

    def wrong(change) -> dict[str, float]:
        return {name: score.value for name, score in score_generation([change(t) for t in trials]).items()}

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
