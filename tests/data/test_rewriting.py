"""Phrasings from an instruction model: what is read of its answers, and the plumbing with a tiny one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mega_pl.data import with_phrasings
from mega_pl.data.rewriting import INSTRUCTION, ParaphraseModel, read_rewrites
from mega_pl.edits.request import EditCase, EditRequest

REQUEST = EditRequest(
    edit_id="1",
    prompt="{} was made by",
    subject="Ferrari F40",
    target_new="Fiat",
    target_true="Ferrari",
)


@pytest.mark.parametrize(
    ("line", "template"),
    [
        ("The maker of Ferrari F40 is", "The maker of {} is"),
        ("1. The maker of Ferrari F40 is", "The maker of {} is"),
        ("12) The maker of Ferrari F40 is", "The maker of {} is"),
        ("- The maker of Ferrari F40 is", "The maker of {} is"),
        ("* \u201cThe maker of Ferrari F40 is\u201d", "The maker of {} is"),
        ('  "Ferrari F40 came from the works of"', "{} came from the works of"),
        ("The maker of Ferrari F40 is Ferrari", "The maker of {} is"),
        ("The maker of Ferrari F40 is Ferrari.", "The maker of {} is"),
        ("The maker of Ferrari F40 is...", "The maker of {} is"),
        ("The maker of Ferrari F40 is \u2026", "The maker of {} is"),
        ("The maker of Ferrari F40 is ____.", "The maker of {} is"),
        ("Ferrari F40 has one maker,", "{} has one maker,"),
        ("Who made Ferrari F40?", None),
        ("Ferrari F40 was made with care.", None),
        ("The works that made Ferrari F40", None),
        ("The maker of the car is", None),
        ("Ferrari F40 is a Ferrari F40 made by", None),
        ("The famous maker Ferrari built Ferrari F40 in", None),
        ("Not fiat, for Ferrari F40 was made by", None),
        ("", None),
        ("Here are the beginnings:", None),
    ],
)
def test_lines_that_can_be_continued_by_the_object_are_kept(line: str, template: str | None) -> None:
    assert read_rewrites(line, REQUEST) == ((template,) if template else ())


def test_templates_are_kept_in_order_and_once() -> None:
    text = (
        "Sure!\n1. The maker of Ferrari F40 is\n2. Ferrari F40 is a car by\n\n3. The maker of Ferrari F40 is Ferrari.\n"
    )
    assert read_rewrites(text, REQUEST) == ("The maker of {} is", "{} is a car by")


class Fake(ParaphraseModel):
    """Answers without a model, and remembers what it was asked."""

    def __init__(self, answer: str) -> None:
        self.n, self.text = 3, answer
        self.asked: list[str] = []

    def answer(self, instruction: str) -> str:
        self.asked.append(instruction)
        return self.text


def test_a_model_is_told_the_prompt_the_objects_place_and_the_rules() -> None:
    model = Fake("1. The maker of Ferrari F40 is\n2. Ferrari F40 is a car by")
    assert model(REQUEST) == ("The maker of {} is", "{} is a car by")
    (instruction,) = model.asked
    assert "Ferrari F40 was made by\n" in instruction
    assert "Write 3 other beginnings" in instruction
    assert "Fiat" not in instruction  # it cannot leak what it does not know
    assert "{" not in instruction


def test_rewrites_that_an_evaluation_asks_are_left_out() -> None:
    model = Fake("The maker of Ferrari F40 is\nFerrari F40 is a car by")
    case = EditCase(request=REQUEST, paraphrase_prompts=("It rained. The maker of Ferrari F40 is",))
    assert with_phrasings([case], rewrite=model)[0].request.phrasings == ("{} is a car by",)


@pytest.mark.parametrize("chat", [False, True])
def test_a_tiny_model_answers_the_same_every_time(roomy_folder: Callable[[str], Path], chat: bool) -> None:
    model = ParaphraseModel.from_pretrained(str(roomy_folder("llama")), dtype="float32", n=2, max_new_tokens=5)
    if chat:
        model.tokenizer.chat_template = "{% for message in messages %}USER: {{ message.content }} YOU:{% endfor %}"
    seen: list[Any] = []
    generate = model.model.generate

    def spied(**inputs: Any) -> Any:
        seen.append(inputs)
        return generate(**inputs)

    model.model.generate = spied
    answer = model.answer("Rome is in Italy.")
    assert answer == model.answer("Rome is in Italy.")
    asked = model.tokenizer.decode(seen[0]["input_ids"][0])
    assert asked == ("USER: Rome is in Italy. YOU:" if chat else "Rome is in Italy.")
    assert (seen[0]["max_new_tokens"], seen[0]["do_sample"]) == (5, False)
    assert isinstance(model(REQUEST), tuple)


def test_bad_options_are_refused(roomy_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = str(roomy_folder("llama"))
    for name in ("n", "max_new_tokens"):
        with pytest.raises(ValueError, match=f"`{name}` must be at least 1, but got 0"):
            ParaphraseModel.from_pretrained(folder, dtype="float32", **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`name_or_path` must be a folder or a hub name that loads, but got "):
        ParaphraseModel.from_pretrained(str(tmp_path / "none"))


def test_the_instruction_has_no_field_that_is_not_filled() -> None:
    assert "{" not in INSTRUCTION.format(prompt="p", true="t", subject="s", n=1)


@pytest.mark.parametrize(
    "line", ["The land of Ren\u00e9 is C\u00f4te d\u2019Ivoire.", "The land of Rene\u0301 is Co\u0302te d'Ivoire"]
)
def test_names_are_known_in_any_spelling(line: str) -> None:
    request = EditRequest(prompt="{} is from", subject="Ren\u00e9", target_new="Chad", target_true="C\u00f4te d'Ivoire")
    assert read_rewrites(line, request) == ("The land of {} is",)
    assert read_rewrites(f"{line} and of", request) == ()
