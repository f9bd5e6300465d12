"""Questions whose subject stands only in the sentence before them."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from mega_pl.asking import BARE, NextToken, next_tokens
from mega_pl.edits import EditCase, EditRequest
from mega_pl.protocols import EvalRow
from mega_pl.protocols.cases import ask_objects
from mega_pl.protocols.mediated import (
    DESCRIPTIONS,
    PROTOCOL,
    RENAMINGS,
    MediatedKind,
    MediatedTest,
    described,
    invented_name,
    mediated_tests,
    other_subjects,
    renamed,
)


def test_the_subject_stands_only_in_the_context():
    for prompts in (described("{} was born in", "Ada"), renamed("{} was born in", "Ada", random.Random(0))):
        texts = list(prompts)
        assert len(texts) == 3
        for text in texts:
            context, question = text.rsplit(". ", 1)
            assert "Ada" in context
            assert "Ada" not in question
            assert question[0].isupper()
            assert question.endswith("was born in")
    assert next(described("The home of {} is", "Ada")).endswith("Ada. The home of the one just mentioned is")
    assert all(sentence.count("{}") == 1 for sentence, _ in DESCRIPTIONS)
    assert all("{name}" in sentence and "{subject}" in sentence for sentence in RENAMINGS)


def test_other_subjects_are_found_in_any_spelling():
    request = EditRequest(prompt="{} is Zo\u00eb's", subject="Ren\u00e9", target_new="aunt", target_true="uncle")
    prompts = ("Ann is\u00a0Zoe\u0308\u2019s", "RENE\u0301 is Zo\u00eb's")
    assert other_subjects(EditCase(request=request, neighborhood_prompts=prompts)) == ("Ann",)


def test_names_are_seeded_and_new():
    names = [invented_name(random.Random(seed)) for seed in range(50)]
    assert names == [invented_name(random.Random(seed)) for seed in range(50)]
    assert len(set(names)) > 45
    assert all(name.isalpha() and name.istitle() for name in names)
    assert invented_name(random.Random(0), {names[0]}) != names[0]


def test_a_subject_with_braces_is_left_alone():
    text = next(renamed("The home of {} is", "{name} of {}", random.Random(0)))
    assert "is another name of {name} of {}." in text
    assert text.endswith(" is")


def test_the_tests_of_a_case(cases):
    case = replace(
        cases[0], neighborhood_prompts=("The capital of Spain is", "Madrid lies in", "Peru has its capital in")
    )
    assert other_subjects(case) == ("Spain", "Peru")
    tests = mediated_tests(case)
    kinds = [test.kind for test in tests]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "description": 3,
        "renaming": 3,
        "description_other": 6,
        "renaming_other": 6,
        "aside": 3,
    }
    assert all(("France" in test.prompt) == (not test.kind.endswith("_other")) for test in tests)
    assert tests == mediated_tests(case)
    assert tests != mediated_tests(case, seed=1)
    assert [test.kind for test in mediated_tests(EditCase(request=case.request))] == ["description"] * 3 + [
        "renaming"
    ] * 3


def test_next_tokens_against_a_slow_twin(backbone, cases, editors):
    prompts = ["The capital of France is", "Rome is a city in the country called", "Rome is a city in"]
    answers = [("Rome", "Paris"), (), ("Italy",)]
    with editors[2].edit(backbone, [case.request for case in cases]) as edited:
        answered = next_tokens(backbone, edited, prompts, answers)
        for prompt, group, answer in zip(prompts, answers, answered, strict=True):
            asked = edited.prompt(prompt)
            chances = backbone.last_logits(backbone.encode([asked]))[0].log_softmax(-1)
            ids = [backbone.answer_ids(asked, name)[0] for name in group]
            assert answer.ids == tuple(ids)
            assert answer.log_probs == pytest.approx([float(chances[i]) for i in ids], abs=1e-4)
            assert answer.prediction == backbone.tokenizer.decode([int(chances.argmax())])
    assert next_tokens(backbone, BARE, [], []) == []
    with pytest.raises(ValueError, match=r"`prompts` and `answers` must be equally long, but got 1 and 0"):
        next_tokens(backbone, BARE, ["Rome"], [])


def hand_made() -> list[EvalRow[MediatedTest, NextToken]]:
    rows = [  # kind, bare, edited
        ("description", " Paris", " Rome"),
        ("description", " Paris", " Paris"),
        ("description", " the", " Roma"),
        ("renaming", " the", " Rome"),
        ("renaming", " Par", " the"),
        ("description_other", " Madrid", " Madrid"),
        ("description_other", " Madrid", " Rome"),
        ("renaming_other", " Madrid", " Madrid"),
        ("aside", " Lima", " Rome"),
    ]
    return [
        EvalRow(
            MediatedTest(edit_id=str(i), kind=kind, prompt="p", new=("Rome", "Roma"), true="Paris"),  # type: ignore[arg-type]
            NextToken(bare, (1, 2), (-1.0, -2.0)),
            NextToken(edited, (1, 2), (-1.0, -2.0)),
        )
        for i, (kind, bare, edited) in enumerate(rows)
    ]


def test_hand_made_scores():
    scores = PROTOCOL.score(hand_made())
    assert {name: (score.value, score.n) for name, score in scores.items()} == {
        "description": (pytest.approx(2 / 3), 3),
        "description_followed": (0.5, 2),
        "renaming": (0.5, 2),
        "renaming_followed": (0.0, 1),
        "description_other": (0.5, 2),
        "renaming_other": (1.0, 1),
        "aside": (0.0, 1),
    }
    assert [scores[name].bare for name in scores] == [0, 0, 0, 0, 1, 1, 1]
    assert all(math.isnan(score.value) and not score.n for score in PROTOCOL.score([]).values())


def test_planted_mistakes_are_seen():
    right = {name: score.value for name, score in PROTOCOL.score(hand_made()).items()}
    swapped = PROTOCOL.score([replace(t, bare=t.edited, edited=t.bare) for t in hand_made()])
    assert swapped["description"].value != right["description"]
    assert swapped["description_followed"].value != right["description_followed"]
    moved = PROTOCOL.score([replace(t, edited=t.bare) for t in hand_made()])
    for kind in ("description_other", "aside"):
        assert moved[kind].value != right[kind]


KINDS: tuple[MediatedKind, ...] = ("description", "renaming", "description_other", "renaming_other", "aside")


def random_rows(seed: int, edits: int = 40) -> list[EvalRow[MediatedTest, NextToken]]:
    rng = random.Random(seed)

    def answer() -> NextToken:
        return NextToken(rng.choice([" Rome", " Ro", " Paris", " P", " the", ""]), (1, 2), (-1.0, -2.0))

    return [
        EvalRow(
            MediatedTest(
                edit_id=str(rng.randrange(edits)),
                kind=rng.choice(KINDS),
                prompt="p",
                new=("Rome", "Urbs"),
                true="Paris",
            ),
            answer(),
            answer(),
        )
        for _ in range(10 * edits)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_slow_ones(seed):
    rows = random_rows(seed)
    scores = PROTOCOL.score(rows)
    sums: dict[str, list[float]] = {}
    for row in rows:
        kind, said, was = row.test.kind, row.edited.prediction.strip(), row.bare.prediction.strip()
        if kind in ("description", "renaming"):
            value = float(said in ("Rome", "Ro"))
            if was in ("Paris", "P"):
                sums.setdefault(f"{kind}_followed", []).append(value)
        else:
            value = float(said == was)
        sums.setdefault(kind, []).append(value)
    assert set(scores) == set(sums)
    for name, values in sums.items():
        assert (scores[name].value, scores[name].n) == pytest.approx((sum(values) / len(values), len(values))), name


def test_the_measure_tells_an_edit_that_follows_the_context(lab_backbone):
    """An edit that answers whatever names the subject succeeds and harms the asides; one that does nothing does not."""
    request = EditRequest(
        edit_id="0", prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris"
    )
    case = EditCase(request=request, neighborhood_prompts=("The capital of Spain is",))
    tests = mediated_tests(case)
    bare = ask_objects(lab_backbone, BARE, tests)
    answers = [replace(b, prediction=" Rome") if "France" in t.prompt else b for t, b in zip(tests, bare, strict=True)]
    greedy = PROTOCOL.score([EvalRow(*columns) for columns in zip(tests, bare, answers, strict=True)])
    idle = PROTOCOL.score([EvalRow(*columns) for columns in zip(tests, bare, bare, strict=True)])
    assert (greedy["description"].value, greedy["renaming"].value, greedy["aside"].value) == (1, 1, 0)
    assert (greedy["description_other"].value, greedy["renaming_other"].value) == (1, 1)
    assert all(score.value == score.bare for score in idle.values() if score.n)
