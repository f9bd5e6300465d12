"""MQuAKE's records, hand-made after its published description."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mega_pl.data import DataFile, read
from mega_pl.edits.request import EditCase, EditRequest, Probe


def rewrite(subject: str, new: str, true: str) -> dict[str, Any]:
    return {
        "prompt": "{} is a citizen of",
        "relation_id": "P27",
        "target_new": {"str": new, "id": "Q1"},
        "target_true": {"str": true, "id": "Q2"},
        "subject": subject,
        "question": f"What is the country of citizenship of {subject}?",
    }


RECORD: dict[str, Any] = {
    "case_id": 12,
    "requested_rewrite": [rewrite("Ann Lee", "Libya", "Chile"), rewrite("Tom Roe", "Italy", "Spain")],
    "questions": ["Which city governs the country of Ann Lee?", "What is the capital of Ann Lee's country?"],
    "answer": "Santiago",
    "answer_alias": [],
    "new_answer": "Tripoli",
    "new_answer_alias": ["Tarabulus", "", "Tripoli"],
    "single_hops": [],
}


def test_every_rewrite_is_an_edit_and_the_first_has_the_questions(write_json: Callable[[object], Path]) -> None:
    first, second = (
        EditRequest(
            edit_id=edit_id,
            prompt="{} is a citizen of",
            subject=subject,
            target_new=new,
            target_true=true,
            relation="P27",
        )
        for edit_id, subject, new, true in (
            ("12-0", "Ann Lee", "Libya", "Chile"),
            ("12-1", "Tom Roe", "Italy", "Spain"),
        )
    )
    probes = tuple(Probe(prompt=question, answers=("Tripoli", "Tarabulus")) for question in RECORD["questions"])
    assert read(DataFile(write_json([RECORD]), "mquake")) == [
        EditCase(request=first, portability=probes),
        EditCase(request=second),
    ]


def test_skipped_records_are_counted(write_json: Callable[[object], Path]) -> None:
    path = write_json([RECORD, {**RECORD, "new_answer": None}])
    with pytest.warns(UserWarning, match="Left out 1"):
        cases = read(DataFile(path, "mquake"), on_bad="skip")
    assert (len(cases), len(cases.refusals)) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"requested_rewrite": []}, "`requested_rewrite` must be a list of at least one edit, but is missing."),
        ({"new_answer": None}, "`new_answer` must be a string, but is missing."),
        (
            {"requested_rewrite": [{**rewrite("Ann Lee", "Libya", "Chile"), "target_true": None}]},
            "`requested_rewrite[0].target_true.str` must be a string, but is missing.",
        ),
    ],
)
def test_malformed_records_are_refused(
    write_json: Callable[[object], Path], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"record 0: {message}")):
        read(DataFile(write_json([{**RECORD, **changes}]), "mquake"))


def test_a_case_id_that_comes_twice_is_refused_or_left_out(write_json: Callable[[object], Path]) -> None:
    path = write_json([RECORD, {**RECORD, "case_id": 13}, RECORD])
    message = f"{path}, record 2: the edit id must be unique in a file, but '12-0' came before."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read(DataFile(path, "mquake"))
    with pytest.warns(UserWarning, match="Left out 1 of the records") as warned:
        cases = read(DataFile(path, "mquake"), on_bad="skip")
    assert warned[0].filename == __file__
    assert [case.request.edit_id for case in cases] == ["12-0", "12-1", "13-0", "13-1"]
    assert cases.refusals == (message,)
