"""Both forms of RippleEdits' Popular split, real and hand-made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mega_pl.data import read_knowedit, read_rippleedits
from mega_pl.data.popular import PHRASES, Edited, condition_of_second_hop
from mega_pl.edits.request import EditCase, Probe

AXES = ("relation_specificity", "compositionality_1", "compositionality_2", "subject_aliasing")

DRIFTED = {"170", "574"}
"""Edits whose tests use another name of the subject, so that KnowEdit's form cannot tell the two-hop kinds apart."""


def query(prompt: str, *answers: list[str]) -> dict[str, Any]:
    return {"prompt": prompt, "answers": [{"value": value, "aliases": aliases} for value, *aliases in answers]}


def ripple(**changes: object) -> dict[str, Any]:
    edit = {
        "prompt": "The name of the mother of Ann Lee is Eve.",
        "subject_id": "Q1",
        "relation": "MOTHER",
        "target_id": "Q2",
        "original_fact": {"prompt": "The name of the mother of Ann Lee is Mary Lee.", "target_id": "Q3"},
    }
    return {"example_type": "popular", "edit": edit, **changes}


def axis(tests: list[Any], conditions: list[Any] | None = None) -> list[dict[str, Any]]:
    return [{"test_queries": tests, "test_condition": "OR", "condition_queries": conditions or []}]


def test_both_real_forms_agree(ripples: list[EditCase], knowedits: list[EditCase]) -> None:
    assert len(ripples) == len(knowedits) == 600
    assert [case.request for case in ripples] == [case.request for case in knowedits]
    for ours, theirs in zip(ripples, knowedits, strict=True):
        if ours.request.edit_id not in DRIFTED:
            assert ours == theirs


def test_every_real_test_with_an_answer_is_read(ripples: list[EditCase]) -> None:
    read = {name: [probe for case in ripples for probe in getattr(case, name)] for name in AXES}
    conditioned = {name: sum(bool(probe.condition_prompt) for probe in probes) for name, probes in read.items()}
    assert [len(read[name]) for name in AXES] == [3672, 1114, 300, 1598]
    assert [conditioned[name] for name in AXES] == [3672, 1052, 278, 1598]


def test_real_labels_are_told_without_the_label_fields(
    shared_data: Path, ripples: list[EditCase], write_json: Callable[[object], Path]
) -> None:
    path = shared_data / "popular" / "popular_rippleedits.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    for record in records:
        for name in ("cloze", "subject", "target_new"):
            del record["edit"][name]
        del record["edit"]["original_fact"]["ground_truth"]
    with pytest.warns(UserWarning, match="Left out 1 of the records"):  # one original sentence lacks its object
        told = {case.request.edit_id: case.request for case in read_rippleedits(write_json(records), on_bad="skip")}
    differ = [case for case in ripples if told.get(case.request.edit_id) != case.request]
    # in two more the original sentence has another name of the object than the label
    assert [case.request.edit_id for case in differ] == ["299", "473", "585"]


def test_labels_are_read_off_a_known_cloze(write_json: Callable[[object], Path]) -> None:
    request = read_rippleedits(write_json([ripple()]))[0].request
    assert (request.edit_id, request.relation) == ("0", "P25")
    assert (request.prompt, request.subject) == ("The name of the mother of {} is", "Ann Lee")
    assert (request.target_new, request.target_true) == ("Eve", "Mary Lee")


def test_an_unknown_cloze_is_the_shared_words_of_both_sentences(write_json: Callable[[object], Path]) -> None:
    edit = {
        "prompt": "Ann Lee is fond of New York.",
        "relation": "FONDNESS",
        "original_fact": {"prompt": "Ann Lee is fond of New York City."},
    }
    with pytest.raises(ValueError, match=r"record 0: `edit.subject` must be given .* 'Ann Lee is fond of New York'"):
        read_rippleedits(write_json([ripple(edit=edit)]))
    edit = {**edit, "subject": "Ann Lee", "original_fact": {"prompt": "Ann Lee is fond of Rome."}}
    request = read_rippleedits(write_json([ripple(edit=edit)]))[0].request
    assert (request.prompt, request.relation) == ("{} is fond of", "FONDNESS")
    assert (request.target_new, request.target_true) == ("New York", "Rome")


def test_label_fields_win(write_json: Callable[[object], Path]) -> None:
    edit = {
        "prompt": "Question: Where does Ann Lee live? Answer: Bern.",
        "relation": "P551",
        "subject": "Ann Lee",
        "target": "Bern",
        "original_fact": {"prompt": "Question: Where does Ann Lee live? Answer: Biel.", "target": "Biel/Bienne"},
    }
    request = read_rippleedits(write_json([ripple(case_id=12, edit=edit)]))[0].request
    assert (request.edit_id, request.relation) == ("12", "P551")
    assert request.prompt == "Question: Where does {} live? Answer:"
    assert (request.target_new, request.target_true) == ("Bern", "Biel/Bienne")


def test_first_queries_and_first_answers_are_read_and_unanswered_tests_left_out(
    write_json: Callable[[object], Path],
) -> None:
    tests = [query("The gender of Ann Lee is", ["female", "woman", " ", "woman"], ["other"]), query("Not read")]
    given = [query("The sex of Ann Lee is", ["f"]), query("Not read")]
    record = ripple(Relation_Specificity=axis(tests, given) + axis([query("No answer is")]) + axis([]))
    case = read_rippleedits(write_json([record]))[0]
    assert case.relation_specificity == (
        Probe(
            prompt="The gender of Ann Lee is",
            answers=("female", "woman"),
            condition_prompt="The sex of Ann Lee is",
            condition_answers=("f",),
        ),
    )


@pytest.mark.parametrize(
    ("name", "prompt", "condition", "answers"),
    [
        ("Relation_Specificity", "The gender of Ann Lee is", "The gender of Ann Lee is", ("x",)),
        ("Subject_Aliasing", "The name of the mother of Annie is", "The name of the mother of Annie is", ("x",)),
        ("Compositionality_I", "The gender of the mother of Ann Lee is", "The gender of Eve is", ("x",)),
        ("Compositionality_I", "The name of the maternal aunt of Ann Lee is", "", ()),
        (
            "Compositionality_II",
            "The name of the mother of the spouse of Tom is",
            "The name of the spouse of Tom is",
            ("Ann Lee",),
        ),
        ("Compositionality_II", "The name of the mother in law of Tom is", "", ()),
        ("Compositionality_II", "The name of the mother of the spouse of  is", "", ()),
    ],
)
def test_missing_conditions_are_rebuilt(
    write_json: Callable[[object], Path], name: str, prompt: str, condition: str, answers: tuple[str, ...]
) -> None:
    case = read_rippleedits(write_json([ripple(**{name: axis([query(prompt, ["x"])])})]))[0]
    (probe,) = (probe for axis_name in AXES for probe in getattr(case, axis_name))
    assert (probe.condition_prompt, probe.condition_answers) == (condition, answers)


def test_noun_phrases_lead_back_to_their_own_cloze() -> None:
    edited = Edited("The gender of {} is", "Eve", "male")
    for cloze, phrase in PHRASES.items():
        prompt = f"The gender of {phrase.replace('{}', 'Tom')} is"
        assert condition_of_second_hop(prompt, edited) == (cloze.replace("{}", "Tom"), ("Eve",))


def test_an_object_that_does_not_end_the_sentence_is_refused(write_json: Callable[[object], Path]) -> None:
    edit = {**ripple()["edit"], "target_new": "Eva"}
    with pytest.raises(ValueError, match=r"record 0: `edit.prompt` must end with the new object 'Eva', but got"):
        read_rippleedits(write_json([ripple(edit=edit)]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edit": None}, "`edit.prompt` must be a string, but is missing."),
        ({"edit": {"prompt": "x."}}, "`edit.original_fact.prompt` must be a string, but is missing."),
        ({"edit": {**ripple()["edit"], "subject": "Bob"}}, "`edit.prompt` must contain the subject exactly once"),
        ({"Subject_Aliasing": {}}, "`Subject_Aliasing` must be a list, but got {}."),
        (
            {"Subject_Aliasing": axis([{"answers": [{"value": "x"}]}])},
            "`Subject_Aliasing[0].test_queries[0].prompt` must be a string, but is missing.",
        ),
        (
            {"Subject_Aliasing": axis([{"prompt": "p", "answers": [{"value": 3}]}])},
            "`Subject_Aliasing[0].test_queries[0].answers[0].value` must be a string, but got 3.",
        ),
    ],
)
def test_malformed_ripple_records_are_refused(
    write_json: Callable[[object], Path], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"record 0: {message}")):
        read_rippleedits(write_json([ripple(**changes)]))


def knowedit(**changes: object) -> dict[str, Any]:
    edit = {"subject": "Ann Lee", "prompt": "The name of the mother of Ann Lee is", "target_new": "Eve"}
    return {**edit, "ground_truth": "Mary Lee", **changes}


def test_reasoning_is_told_apart(write_json: Callable[[object], Path]) -> None:
    prompts = [
        "The gender of the mother of Ann Lee is",
        "The name of the maternal aunt of Ann Lee is",
        "The name of the mother of the founder of Ann Lee and Sons is",
        "The name of the mother in law of Tom is",
    ]
    reasoning = [{"prompt": prompt, "ground_truth": [[], ["x", "y"]]} for prompt in prompts]
    reasoning.append({"prompt": "No answer is", "ground_truth": []})
    case = read_knowedit(write_json([knowedit(portability={"Reasoning": reasoning})]))[0]
    assert [probe.prompt for probe in case.compositionality_1] == prompts[:2]
    assert [probe.prompt for probe in case.compositionality_2] == prompts[2:]
    assert case.compositionality_1[0].condition_prompt == "The gender of Eve is"
    assert case.compositionality_2[0].condition_prompt == "The name of the founder of Ann Lee and Sons is"


def test_another_prompt_needs_the_subject_once(write_json: Callable[[object], Path]) -> None:
    assert read_knowedit(write_json([knowedit(prompt="Ann Lee is from")]))[0].request.prompt == "{} is from"
    with pytest.raises(ValueError, match="record 0: `prompt` must contain the subject 'Ann Lee' exactly once, but got"):
        read_knowedit(write_json([knowedit(prompt="She is from")]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ground_truth": ["Mary Lee"]}, "`ground_truth` must be a string, but got ['Mary Lee']."),
        ({"portability": []}, "`portability` must be a JSON object, but got []."),
        (
            {"locality": {"Relation_Specificity": [{"prompt": "p", "ground_truth": [3]}]}},
            "`locality.Relation_Specificity[0].ground_truth[0]` must be a list of strings, but got 3.",
        ),
    ],
)
def test_malformed_knowedit_records_are_refused(
    write_json: Callable[[object], Path], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"record 0: {message}")):
        read_knowedit(write_json([knowedit(**changes)]))
