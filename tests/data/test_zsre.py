"""zsRE in MEND's schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mega_pl.data import Cases, DataFile, read
from mega_pl.edits.request import EditCase, EditRequest, Probe

RECORD: dict[str, Any] = {
    "subject": "Ann Lee",
    "src": "Which university did Ann Lee attend?",
    "pred": "Yale",
    "rephrase": "Where did Ann Lee study?",
    "alt": "Oxford",
    "answers": [" Bern"],
    "loc": "nq question: who wrote hamlet",
    "loc_ans": "Shakespeare",
    "cond": "Yale >> Oxford || Which university did Ann Lee attend?",
    "portability": {"New Question": "In which town did Ann Lee study?", "New Answer": "Oxford"},
}


def test_a_record_is_a_case(write_json: Callable[[object], Path]) -> None:
    request = EditRequest(
        edit_id="0",
        prompt="Which university did {} attend?",
        subject="Ann Lee",
        target_new="Oxford",
        target_true="Bern",
    )
    assert read(DataFile(write_json([RECORD]), "zsre")) == [
        EditCase(
            request=request,
            paraphrase_prompts=("Where did Ann Lee study?",),
            locality=(Probe(prompt="nq question: who wrote hamlet", answers=("Shakespeare",)),),
            portability=(Probe(prompt="In which town did Ann Lee study?", answers=("Oxford",)),),
        )
    ]


def test_questions_between_labels(write_json: Callable[[object], Path]) -> None:
    (case,) = read(DataFile(write_json([RECORD]), "zsre", question_form="qa"))
    assert case.request.prompt == "Q: Which university did {} attend?\nA:"
    assert case.request.phrasings == ("Which university did {} attend?",)
    assert case.paraphrase_prompts == ("Q: Where did Ann Lee study?\nA:",)
    assert [probe.prompt for probe in (*case.locality, *case.portability)] == [
        "Q: who wrote hamlet\nA:",
        "Q: In which town did Ann Lee study?\nA:",
    ]
    assert case.locality[0].answers == ("Shakespeare",)


def test_the_published_schema_has_no_portability(write_json: Callable[[object], Path]) -> None:
    published = {key: value for key, value in RECORD.items() if key != "portability"}
    assert read(DataFile(write_json([published]), "zsre"))[0].portability == ()


def test_the_true_object_is_the_first_answer_that_changes(write_json: Callable[[object], Path]) -> None:
    case = read(DataFile(write_json([{**RECORD, "answers": ["Oxford", "Bern", "Basel"]}]), "zsre"))[0]
    assert case.request.target_true == "Bern"


def test_all_real_records_parse_save_those_that_change_nothing(shared_data: Path, zsres: Cases) -> None:
    path = shared_data / "zsre" / "zsre_eval.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    same = [i for i, raw in enumerate(records) if {answer.strip() for answer in raw["answers"]} == {raw["alt"].strip()}]
    assert (len(records), len(zsres), len(same)) == (700, 679, 21)
    assert [int(refusal.split("record ")[1].split(":")[0]) for refusal in zsres.refusals] == same
    assert all("must differ from `target_true`" in refusal for refusal in zsres.refusals)
    for case in zsres:
        raw = records[int(case.request.edit_id)]
        assert case.request.filled == raw["src"]
        assert case.request.target_new == raw["alt"].strip()
        assert case.request.target_true in [answer.strip() for answer in raw["answers"]]
    with pytest.raises(ValueError, match=f"record {same[0]}: `target_new` of edit '{same[0]}' must differ"):
        read(DataFile(path, "zsre"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"src": "Where did she study?"}, "`src` must contain the subject 'Ann Lee' exactly once, but got 'Where did"),
        ({"answers": []}, "`answers` must be a list of at least one string, but is missing."),
        ({"answers": ["Oxford"]}, "`target_new` of edit '0' must differ from `target_true`, but both are 'Oxford'."),
        ({"loc_ans": 3}, "`loc_ans` must be a string, but got 3."),
        ({"portability": {"New Question": "Where?"}}, "`portability.New Answer` must be a string, but is missing."),
    ],
)
def test_malformed_records_are_refused(
    write_json: Callable[[object], Path], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"record 0: {message}")):
        read(DataFile(write_json([{**RECORD, **changes}]), "zsre"))


def test_an_answer_that_only_spells_the_new_object_is_not_the_true_one(write_json: Callable[[object], Path]) -> None:
    case = read(
        DataFile(
            write_json([{**RECORD, "alt": "Bogot\u00e1", "answers": ["Bogota\u0301", "bogot\u00e1", "Cali"]}]), "zsre"
        )
    )[0]
    assert case.request.target_true == "Cali"
