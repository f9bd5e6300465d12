"""What the page says of a question is what both models say, and why."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from mega_pl import EditBank
from mega_pl.backbone import Backbone
from mega_pl.errors import MegaValueError
from mega_pl.look.ask import Reply, ask, marked, next_tokens, objects, why
from mega_pl.look.studio import Conversation, Edits

PROMPTS = ["The capital of France is", "The currency of France is the", "The capital of Spain is", "2 + 2 ="]


def asked(lab: Backbone, edits: Edits, question: str, **options: object) -> tuple[Reply, list[Reply]]:
    steps: list[Reply] = []
    return ask(lab, edits, question, steps.append, **options), steps  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_answers_are_those_of_both_models_and_grow(lab: Backbone, bank: EditBank, prompt: str) -> None:
    bare = lab.generate(prompt, max_new_tokens=6)
    with bank.apply(lab) as use:
        edited, fired = lab.generate(prompt, max_new_tokens=6), use.fired[0]
    reply, steps = asked(lab, Edits(bank), prompt, new_tokens=6)
    assert (reply.bare.text, reply.edited.text, reply.fired) == (bare, edited, fired)
    for earlier, later in pairwise(steps):
        assert later.bare.text.startswith(earlier.bare.text)
        assert later.edited.text.startswith(earlier.edited.text)
    assert steps[-1] == reply


def test_first_tokens_and_objects_have_the_models_own_probabilities(lab: Backbone, bank: EditBank) -> None:
    reply, _ = asked(lab, Edits(bank), PROMPTS[0])
    encoded = lab.encode([PROMPTS[0]])
    bare = lab.last_logits(encoded).softmax(-1)[0]
    with bank.apply(lab):
        edited = lab.last_logits(encoded).softmax(-1)[0]
    for answer, expected in ((reply.bare, bare), (reply.edited, edited)):
        assert answer.log_probs is not None
        torch.testing.assert_close(answer.log_probs.exp(), expected, atol=1e-5, rtol=1e-4)
        assert [p for _, p in next_tokens(lab, answer)] == pytest.approx(expected.topk(10).values.tolist(), abs=1e-5)
    berlin, paris = (lab.answer_ids(PROMPTS[0], name)[0] for name in ("Berlin", "Paris"))
    new, old = objects(lab, reply)
    assert (new[0], old[0]) == ("new object: Berlin", "old object: Paris")
    assert [*new[1:], *old[1:]] == pytest.approx(
        [float(side[token]) for token in (berlin, paris) for side in (bare, edited)], abs=1e-4
    )
    assert new[2] > 0.5 > new[1]


def test_why_tells_each_case(lab: Backbone, bank: EditBank) -> None:
    edits = Edits(bank)
    assert "france answered: the question names “France” and asks for capital" in why(
        asked(lab, edits, PROMPTS[0])[0], edits
    )
    assert "ask closely enough what france changes (capital;" in why(asked(lab, edits, PROMPTS[1])[0], edits)
    assert "names no subject" in why(asked(lab, edits, PROMPTS[3])[0], edits)
    off = replace(edits, off=frozenset({"france"}))
    reply, _ = asked(lab, off, PROMPTS[0])
    assert reply.fired is None
    assert "france would be asked, and is switched off" in why(reply, off)
    assert "no edits yet" in why(asked(lab, Edits(), PROMPTS[0])[0], Edits())


def test_the_nearest_edits_are_named_whether_or_not_one_fires(lab: Backbone, bank: EditBank) -> None:
    for prompt, fired in ((PROMPTS[0], "france"), (PROMPTS[1], None)):
        reply, _ = asked(lab, Edits(bank), prompt)
        assert reply.fired == fired
        assert reply.route is not None
        (nearest, sure), *_ = reply.nearest
        assert (nearest.edit_id, sure) == ("france", reply.route.confidence)
        assert (sure >= reply.route.needed > 0) == (fired == "france")


def test_conversations_have_the_models_template_and_each_side_its_own_answers(
    lab: Backbone, bank: EditBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    monkeypatch.setattr(lab.tokenizer, "chat_template", template)
    earlier = Conversation(("Hello", "Who?"), ("I", "me"), ("You", "you"))
    read: list[str] = []
    generate = lab.generate

    def reading(text: str, **options: Any) -> str:
        read.append(text)
        return str(generate(text, **options))

    monkeypatch.setattr(lab, "generate", reading)
    reply, _ = asked(lab, Edits(bank), "The capital of France is", new_tokens=1, earlier=earlier)
    for text, own in zip(read, (("I", "me"), ("You", "you")), strict=True):
        said = f"user: Hello\nassistant: {own[0]}\nuser: Who?\nassistant: {own[1]}\n"
        assert text == f"{said}user: {PROMPTS[0]}\nassistant:"
    assert earlier.grown(reply.question, "x", "y").questions == ("Hello", "Who?", "The capital of France is")


def test_what_cannot_be_asked_is_refused(lab: Backbone, bank: EditBank) -> None:
    with pytest.raises(MegaValueError, match="question must not be empty"):
        asked(lab, Edits(bank), "  \n")
    with pytest.raises(MegaValueError, match="lab-gpt2 has none; ask plain texts"):
        asked(lab, Edits(bank), "Hello", earlier=Conversation())
    with pytest.raises(MegaValueError, match="max_new_tokens"):
        asked(lab, Edits(bank), "Hello " * 30, new_tokens=200)


def test_marks_survive_markup() -> None:
    assert marked("<b>rome</b> & Rome", "Rome") == "<p>&lt;b&gt;<mark>rome</mark>&lt;/b&gt; &amp; <mark>Rome</mark></p>"
    assert marked("Romeo", "Rome") == marked("Rome", "") == ""
