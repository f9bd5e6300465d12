"""CounterFact's records, real and hand-made."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from mega_pl.data import DataFile, read


def record(**changes: object) -> dict[str, Any]:
    rewrite = {
        "prompt": "The capital of {} is",
        "relation_id": "P36",
        "target_new": {"str": "Oslo", "id": "Q585"},
        "target_true": {"str": "Paris", "id": "Q90"},
        "subject": "France",
    }
    whole = {"case_id": 7, "requested_rewrite": rewrite, "paraphrase_prompts": ["Now. France's capital is"]}
    return {**whole, "neighborhood_prompts": ["The capital of the French Republic is"], **changes}


def test_all_real_records_parse(shared_data: Path) -> None:
    path = shared_data / "counterfact" / "counterfact.json"
    cases = read(DataFile(path, "counterfact"))
    assert len(cases) == 1031
    for case, raw in zip(cases, json.loads(path.read_text(encoding="utf-8")), strict=True):
        rewrite = raw["requested_rewrite"]
        assert case.request.edit_id == str(raw["case_id"])
        assert (case.request.prompt, case.request.subject) == (rewrite["prompt"], rewrite["subject"])
        assert case.request.target_new == rewrite["target_new"]["str"]
        assert case.request.target_true == rewrite["target_true"]["str"]
        assert case.request.relation == rewrite["relation_id"]
        assert list(case.paraphrase_prompts) == raw["paraphrase_prompts"]
        for name in ("neighborhood_prompts", "attribute_prompts", "generation_prompts"):
            assert list(getattr(case, name)) == raw[name]
            assert len(raw[name]) == 10


def test_the_extra_lists_become_templates(write_json: Callable[[object], Path]) -> None:
    sources = ["The capital of France is", "France has its capital in", "Its capital is", "France has its capital in"]
    rich = record(
        source_list=sources,
        implication_list=["The mayor of the capital of France is"],
        contrast_list=[["France lies in", "{} is part of", "Nothing"], "The president of {} is", ["None"]],
    )
    path = write_json([rich])
    with pytest.warns(UserWarning, match="Left out 3 of the phrasings; .*record 0: `source_list.2.`") as warned:
        (case,) = cases = read(DataFile(path, "counterfact"))
    assert warned[0].filename == __file__
    assert cases.refusals == tuple(
        f"{path}, record 0: `{field}` must be a text in which 'France' stands exactly once, but got {text!r}."
        for field, text in (
            ("source_list[2]", "Its capital is"),
            ("contrast_list[0][2]", "Nothing"),
            ("contrast_list[2][0]", "None"),
        )
    )
    assert case.request.phrasings == ("The capital of {} is", "{} has its capital in")  # without the repetition
    assert case.request.implications == (("The mayor of the capital of {} is",),)
    assert case.request.contrasts == (("{} lies in", "{} is part of"), ("The president of {} is",))


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_phrasings_in_another_unicode_form_are_kept_as_written(
    write_json: Callable[[object], Path], form: Literal["NFC", "NFD"], other: Literal["NFC", "NFD"]
) -> None:
    rewrite = {**record()["requested_rewrite"], "subject": unicodedata.normalize(form, "Fr\u00e9d\u00e9ric O'Neill")}
    texts = [
        unicodedata.normalize(other, f"Fr\u00e9d\u00e9ric O\u2019Neill{end}")
        for end in ("\u2019s caf\u00e9 is in", " lives in")
    ]
    path = write_json([record(requested_rewrite=rewrite, source_list=texts, contrast_list=[texts[:1]])])
    request = read(DataFile(path, "counterfact"))[0].request
    assert request.phrasings == (unicodedata.normalize(other, "{}\u2019s caf\u00e9 is in"), "{} lives in")
    assert request.contrasts == (request.phrasings[:1],)


def test_a_record_without_evaluation_prompts_is_an_edit_all_the_same(write_json: Callable[[object], Path]) -> None:
    bare = {key: value for key, value in record().items() if key in ("case_id", "requested_rewrite")}
    case = read(DataFile(write_json([bare]), "counterfact"))[0]
    assert case.paraphrase_prompts == case.neighborhood_prompts == case.request.phrasings == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"case_id": None}, "`case_id` must be an integer or a string, but is missing."),
        ({"requested_rewrite": "x"}, "`requested_rewrite` must be a JSON object, but got 'x'."),
        ({"requested_rewrite": {"subject": 3}}, "`requested_rewrite.subject` must be a string, but got 3."),
        (
            {"requested_rewrite": {**record()["requested_rewrite"], "target_new": {"id": "Q585"}}},
            "`requested_rewrite.target_new.str` must be a string, but is missing.",
        ),
        ({"requested_rewrite": {**record()["requested_rewrite"], "prompt": "No slot is"}}, "prompt"),
        ({"requested_rewrite": {**record()["requested_rewrite"], "target_new": {"str": "Paris"}}}, "target_new"),
        ({"paraphrase_prompts": "France's capital is"}, "`paraphrase_prompts` must be a list of strings"),
        ({"attribute_prompts": [3]}, "`attribute_prompts[0]` must be a string that is not blank, but got 3."),
        ({"generation_prompts": {}}, "`generation_prompts` must be a list of strings, but got {}."),
        ({"neighborhood_prompts": ["a", None]}, "`neighborhood_prompts[1]` must be a string that is not blank"),
    ],
)
def test_malformed_records_are_refused_by_place_and_field(
    write_json: Callable[[object], Path], changes: dict[str, object], message: str
) -> None:
    path = write_json([record(), record(**{"case_id": 8, **changes})])
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(DataFile(path, "counterfact"))
    assert str(caught.value).startswith(f"{path}, record 1: ")
    with pytest.warns(UserWarning, match="Left out 1") as warned:
        cases = read(DataFile(path, "counterfact"), on_bad="skip")
    assert warned[0].filename == __file__
    assert len(cases) == 1
    assert cases.refusals == (str(caught.value),)


def test_a_case_id_that_comes_twice_is_refused(write_json: Callable[[object], Path]) -> None:
    with pytest.raises(ValueError, match="record 1: the edit id must be unique in a file, but '7' came before"):
        read(DataFile(write_json([record(), record()]), "counterfact"))
