"""EasyEdit's flat records, and what it adds to CounterFact's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mega_pl.data import Cases, DataFile, add, join, read
from mega_pl.edits.request import EditCase, EditRequest, Probe

FLAT: dict[str, Any] = {
    "case_id": 2,
    "prompt": "Ann Lee plays the",
    "target_new": "piano",
    "subject": "Ann Lee",
    "ground_truth": "guitar",
    "rephrase_prompt": "Ann Lee is good at the",
    "locality_prompt": "Tom Roe plays the",
    "locality_ground_truth": "guitar",
}
REQUEST = EditRequest(edit_id="2", prompt="{} plays the", subject="Ann Lee", target_new="piano", target_true="guitar")


def test_a_flat_record_is_a_case(write_json: Callable[[object], Path]) -> None:
    assert read(DataFile(write_json([FLAT]), "easyedit")) == [
        EditCase(
            request=REQUEST,
            paraphrase_prompts=("Ann Lee is good at the",),
            locality=(Probe(prompt="Tom Roe plays the", answers=("guitar",)),),
        )
    ]


def test_a_rephrase_that_repeats_the_prompt_is_no_paraphrase(write_json: Callable[[object], Path]) -> None:
    assert (
        read(DataFile(write_json([{**FLAT, "rephrase_prompt": FLAT["prompt"]}]), "easyedit"))[0].paraphrase_prompts
        == ()
    )
    respelt = {**FLAT, "rephrase_prompt": "Ann\u00a0Lee plays  the"}
    assert read(DataFile(write_json([respelt]), "easyedit"))[0].paraphrase_prompts == ()


def test_all_real_records_parse(easyedits: Cases) -> None:
    assert (len(easyedits), easyedits.refusals) == (9753, ())
    assert sum(len(case.paraphrase_prompts) for case in easyedits) == 9738
    assert sum(len(case.locality) for case in easyedits) == 9753


def test_real_records_join_with_those_of_rome_by_case_id(shared_data: Path, easyedits: Cases) -> None:
    full = read(DataFile(shared_data / "counterfact" / "counterfact.json", "counterfact"))
    joined = join(full, easyedits)
    assert len(joined) == 9753
    flat = {case.request.edit_id: case for case in easyedits}
    for case, alone in zip(joined, full, strict=False):
        assert case.request == alone.request
        assert case.paraphrase_prompts == alone.paraphrase_prompts  # two of ROME's, not EasyEdit's one
        assert case.locality == flat[case.request.edit_id].locality


def test_real_portability_and_aliases_are_added(counterfacts: Cases) -> None:
    assert sum(len(case.portability) for case in counterfacts) == 1031
    assert sum(len(case.subject_aliasing) for case in counterfacts) == 115
    assert sum(len(case.request.aliases) for case in counterfacts) == 115
    edinburgh = next(case for case in counterfacts if case.request.subject == "Edinburgh")
    prompt = edinburgh.request.prompt.replace("{}", "Edinburg")
    assert edinburgh.request.aliases == ("Edinburg",)
    assert edinburgh.subject_aliasing == (Probe(prompt=prompt, answers=(edinburgh.request.target_new,)),)


def test_additions_are_made_by_case_id_and_others_passed_over(write_json: Callable[[object], Path]) -> None:
    cases = [EditCase(request=REQUEST)]
    new = {"New Question": "Who built the instrument of Ann Lee?", "New Answer": "Steinway"}
    path = write_json([{"case_id": 2, "portability": new}, {"case_id": 9, "portability": {}}])
    asked = add(cases, DataFile(path, "portability"))
    assert asked[0].portability == (Probe(prompt="Who built the instrument of Ann Lee?", answers=("Steinway",)),)
    named = add(asked, DataFile(write_json([{"case_id": "2", "alternative_subject": "Annie Lee"}]), "aliases"))
    assert named[0].subject_aliasing == (Probe(prompt="Annie Lee plays the", answers=("piano",)),)
    assert named[0].request.aliases == ("Annie Lee",)
    assert named[0].portability == asked[0].portability


def test_malformed_additions_are_refused_or_counted(write_json: Callable[[object], Path]) -> None:
    cases = [EditCase(request=REQUEST)]
    path = write_json([{"case_id": 2, "alternative_subject": "Annie"}, {"case_id": 2, "alternative_subject": 3}])
    with pytest.raises(ValueError, match="record 1: `alternative_subject` must be a string, but got 3"):
        add(cases, DataFile(path, "aliases"))
    with pytest.warns(UserWarning, match="Left out 1"):
        assert len(add(cases, DataFile(path, "aliases"), on_bad="skip").refusals) == 1
    blank = write_json([{"case_id": 2, "alternative_subject": "Annie"}, {"case_id": 2, "alternative_subject": " "}])
    with pytest.raises(ValueError, match="record 1: `aliases` of edit '2' must not be blank, but got ''"):
        add(cases, DataFile(blank, "aliases"))
    with pytest.warns(UserWarning, match="Left out 1"):
        (named,) = add(cases, DataFile(blank, "aliases"), on_bad="skip")
    assert named.request.aliases == ("Annie",)
    assert len(named.subject_aliasing) == 1
    with pytest.raises(ValueError, match="must have the `case_id` of one of the 0 cases, but none has"):
        add([], DataFile(path, "aliases"), on_bad="raise")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "She plays the"}, "`prompt` must contain the subject 'Ann Lee' exactly once, but got 'She plays"),
        ({"ground_truth": "piano"}, "`target_new` of edit '2' must differ"),
        ({"locality_ground_truth": None}, "`locality_ground_truth` must be a string, but is missing."),
        ({"rephrase_prompt": [3]}, "`rephrase_prompt[0]` must be a string that is not blank, but got 3."),
    ],
)
def test_malformed_records_are_refused(
    write_json: Callable[[object], Path], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"record 0: {message}")):
        read(DataFile(write_json([{**FLAT, **changes}]), "easyedit"))
