"""A user's own file of edits."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from mega_pl.data import read, write_example
from mega_pl.data.readers.jsonl import EXAMPLE
from mega_pl.edits.request import EditCase, EditRequest, Probe, Query, RippleTest

EDIT: dict[str, Any] = {
    "edit_id": "capital",
    "prompt": "The capital of {} is",
    "subject": "France",
    "target_new": "Oslo",
    "target_true": "Paris",
}


PROBES = (
    "relation_specificity",
    "compositionality_1",
    "compositionality_2",
    "subject_aliasing",
    "locality",
    "portability",
)


def save(folder: Path, *edits: dict[str, Any]) -> Path:
    path = folder / "edits.jsonl"
    path.write_text("\n".join(json.dumps(edit) for edit in edits), encoding="utf-8")
    return path


def test_five_fields_are_enough(tmp_path: Path) -> None:
    assert read(save(tmp_path, EDIT)) == [EditCase(request=EditRequest(**EDIT))]


def test_white_space_around_texts_is_dropped(tmp_path: Path) -> None:
    loose = {**EDIT, "prompt": "The capital of {} is ", "target_new": " Oslo"}
    assert read(save(tmp_path, loose)) == read(save(tmp_path, EDIT))


def test_every_field_is_read(tmp_path: Path) -> None:
    more = {
        "phrasings": ["{} has its capital in"],
        "implications": [["The mayor of the capital of {} is", "Its capital is led by"], "People of France vote in"],
        "contrasts": [["France lies in", "{} is part of"], ["Nothing"]],
        "aliases": [" Gaul", "France", "Gaul"],
    }
    asked = {
        "paraphrase_prompts": ["France is ruled from"],
        "neighborhood_prompts": ["The capital of Gaul is"],
        "attribute_prompts": ["The capital of Norway is"],
        "generation_prompts": ["France is known for"],
    }
    probe = {"prompt": "p", "answers": ["a", "b"], "condition_prompt": "q", "condition_answers": ["c"]}
    probes = {axis: [probe] for axis in PROBES}
    query = {"prompt": "p", "answers": [["a", "b"], ["c"]]}
    ripple = {"ripple": [{"axis": "Forgetfulness", "queries": [query, query], "conditions": [query], "every": True}]}
    path = save(tmp_path, {**EDIT, "edit_id": 3, "relation": "P36", **more, **asked, **probes, **ripple})
    with pytest.warns(UserWarning, match="Left out 2 of the phrasings; .*line 1: `implications.0..1.` must"):
        (case,) = read(path)
    assert case.request.edit_id == "3"
    assert case.request.relation == "P36"
    assert case.request.phrasings == ("{} has its capital in",)
    # a text stands for a question of one phrasing; phrasings without the subject and empty questions are left out
    assert case.request.implications == (("The mayor of the capital of {} is",), ("People of {} vote in",))
    assert case.request.contrasts == (("{} lies in", "{} is part of"),)
    assert case.request.aliases == ("Gaul",)
    assert {name: list(getattr(case, name)) for name in asked} == asked
    for axis in PROBES:
        assert getattr(case, axis) == (
            Probe(prompt="p", answers=("a", "b"), condition_prompt="q", condition_answers=("c",)),
        )
    told = Query(prompt="p", answers=(("a", "b"), ("c",)))
    assert case.ripple == (RippleTest(axis="Forgetfulness", queries=(told, told), conditions=(told,), every=True),)


def test_the_example_shows_every_field_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    write_example(path)
    shortest, fullest = read(path)
    assert set(EXAMPLE[0]) == {"edit_id", "prompt", "subject", "target_new", "target_true"}
    for part in (fullest, fullest.request):
        for field in dataclasses.fields(part):
            assert getattr(part, field.name) != field.default, field.name
    assert shortest == EditCase(request=EditRequest(**EXAMPLE[0]))
    assert fullest.request.filled == "Marie Curie was born in"
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == list(EXAMPLE)


def test_the_example_overwrites_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, EDIT)
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"`path` must be a new file, but '.*edits\.jsonl' exists; choose another name"
    ):
        write_example(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edit_id": None}, "`edit_id` must be an integer or a string, but is missing."),
        ({"target_new": None}, "`target_new` must be a string, but is missing."),
        ({"prompt": "The capital is"}, "prompt"),
        ({"phrasings": "{} has its capital in"}, "`phrasings` must be a list of strings"),
        ({"contrasts": [["{} lies in", 3]]}, "`contrasts[0][1]` must be a string, but got 3."),
        ({"mentions": [["The spouse of {} is", "the spouse of {}"]]}, "but got mentions."),
        ({"aliases": ["Gaul", " "]}, "`aliases[1]` must be a string that is not blank, but got ' '."),
        ({"aliases": "Gaul"}, "`aliases` must be a list of strings, but got 'Gaul'."),
        ({"paraphrases": []}, "but got paraphrases."),
        (
            {"subject_aliasing": [{"prompt": "p"}]},
            "`subject_aliasing[0].answers` must be a list of at least one string",
        ),
        ({"ripple": [{"axis": "Spec", "queries": []}]}, "`axis` must be one of Relation_Specificity, "),
        (
            {"ripple": [{"axis": "Forgetfulness", "queries": [{"prompt": "p", "answers": [[]]}]}]},
            "`answers` of query 'p' must give every entity a name",
        ),
        (
            {"ripple": [{"axis": "Forgetfulness", "queries": [], "every": "yes"}]},
            "`ripple[0].every` must be true or false, but got 'yes'.",
        ),
        ({"subject_aliasing": [{"prompt": "p", "answers": "a"}]}, "`subject_aliasing[0].answers` must be a list of"),
    ],
)
def test_malformed_lines_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = save(tmp_path, EDIT, {**EDIT, "edit_id": "second", **changes})
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
