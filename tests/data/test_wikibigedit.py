"""WikiBigEdit's questions as edits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mega_pl.data import DataFile, read
from mega_pl.edits.request import EditCase, EditRequest, Probe

RECORD: dict[str, Any] = {
    "prompt": "In which county does Ann Lee live?",
    "target_new": "Kent",
    "subject": "Ann Lee",
    "rephrase_prompt": "Which county is Ann Lee's home in?",
    "locality_prompt": "In which county does Tom Roe live?",
    "locality_ground_truth": "Devon",
}
CASE = EditCase(
    request=EditRequest(
        edit_id="0",
        prompt="In which county does {} live?",
        subject="Ann Lee",
        target_new="Kent",
        target_true="Surrey",
    ),
    paraphrase_prompts=("Which county is Ann Lee's home in?",),
    locality=(Probe(prompt="In which county does Tom Roe live?", answers=("Devon",)),),
)


def test_the_object_before_is_what_a_model_says(write_json: Callable[[object], Path]) -> None:
    path = write_json([RECORD])
    assert read(
        DataFile(path, "wikibigedit"), ask=lambda prompts: [{RECORD["prompt"]: "Surrey"}[prompt] for prompt in prompts]
    ) == [CASE]
    with pytest.raises(ValueError, match=r"`ground_truth` must tell the object before, but is missing; name a model"):
        read(DataFile(path, "wikibigedit"))
    with pytest.raises(ValueError, match=r"`ask` must name a model that completes 'In which .*', but it gives nothing"):
        read(DataFile(path, "wikibigedit"), ask=lambda prompts: ["" for prompt in prompts])
    with pytest.raises(ValueError, match="must differ from `target_true`, but both are 'Kent'"):
        read(DataFile(path, "wikibigedit"), ask=lambda prompts: ["Kent" for prompt in prompts])
    with pytest.raises(ValueError, match="`prompt` must contain the subject 'Ann' exactly once, but got 'Who is"):
        read(DataFile(write_json([{**RECORD, "subject": "Ann", "prompt": "Who is it?"}]), "wikibigedit"))


def test_questions_between_labels(write_json: Callable[[object], Path]) -> None:
    posed = {"Q: In which county does Ann Lee live?\nA:": "Surrey"}
    file = DataFile(write_json([RECORD]), "wikibigedit", question_form="qa")
    assert read(file, ask=lambda prompts: [posed[prompt] for prompt in prompts]) == [
        replace(
            CASE,
            request=replace(CASE.request, prompt=f"Q: {CASE.request.prompt}\nA:", phrasings=(CASE.request.prompt,)),
            paraphrase_prompts=("Q: Which county is Ann Lee's home in?\nA:",),
            locality=(Probe(prompt="Q: In which county does Tom Roe live?\nA:", answers=("Devon",)),),
        )
    ]


def test_all_real_records_parse(shared_data: Path) -> None:
    file = DataFile(shared_data / "scale" / "wikibigedit_1500.json", "wikibigedit")
    for form in ("bare", "qa"):
        cases = read(
            replace(file, question_form=form), ask=lambda prompts: ["nothing" for prompt in prompts], on_bad="skip"
        )
        assert (len(cases), cases.refusals) == (1500, ())
