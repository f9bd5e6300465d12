"""Asking the bare and the edited model the same thing, as both write, and saying why an edit answered or did not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from mega_pl.asking import chat_prompt
from mega_pl.backbone import Backbone
from mega_pl.data.relations import labelled
from mega_pl.edits import EditRequest
from mega_pl.edits.routing import Route
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import find_all
from mega_pl.look.studio import Conversation, Edits

TOP = 10
"""Next tokens that are shown."""


@dataclass(frozen=True)
class Answer:
    """What a model writes.

    Args:
        text: So far.
        log_probs: (V,) of its first token.
    """

    text: str = ""
    log_probs: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Reply:
    """Both models on one question.

    Args:
        question: What was asked.
        bare: The bare model's answer.
        edited: The edited model's; the bare one's where no edit is in force.
        fired: The edit that answered, or None.
        route: The router's decision; None as long as there is none.
        nearest: The edits that came into question, the nearest first, each with the router's confidence.
    """

    question: str
    bare: Answer = field(default_factory=Answer)
    edited: Answer = field(default_factory=Answer)
    fired: str | None = None
    route: Route | None = None
    nearest: tuple[tuple[EditRequest, float], ...] = ()


def ask(
    backbone: Backbone,
    edits: Edits,
    question: str,
    show: Callable[[Reply], None],
    *,
    new_tokens: int = 30,
    earlier: Conversation | None = None,
) -> Reply:
    """Ask both models, greedily.

    Args:
        backbone: The bare model.
        edits: What is in force.
        question: A text that both go on from, or what a person says.
        show: Is given the reply after each token.
        new_tokens: The most tokens of an answer.
        earlier: What was said before; the question is then put in the model's chat template. None for a plain text.

    Returns:
        The whole reply.

    Raises:
        ValueError: If the question is empty or too long, or the model has no chat template.
    """
    if not question.strip():
        raise MegaValueError("the question must not be empty; write something, or take an example.")
    if earlier is not None and not backbone.tokenizer.chat_template:
        raise MegaValueError(
            f"a conversation must have a chat template, but {backbone.name} has none; ask plain texts."
        )
    text = question.strip()
    reply = Reply(text)

    def shown(changed: Reply) -> None:
        nonlocal reply
        reply = changed
        show(reply)

    def prompt(answers: Sequence[str]) -> str:
        if earlier is None:
            return text
        turns = [turn for pair in zip(earlier.questions, answers, strict=True) for turn in pair]
        return chat_prompt(backbone, [*turns, text])

    own, other = ((), ()) if earlier is None else (earlier.bare, earlier.edited)
    _write(backbone, prompt(own), new_tokens, lambda answer: shown(replace(reply, bare=answer)))
    with edits.apply(backbone) as use:
        _write(backbone, prompt(other), new_tokens, lambda answer: shown(replace(reply, edited=answer)))
        if use is not None and edits.bank is not None:
            (route,), (fired,) = use.routes, use.fired
            near = tuple((edits.bank.requests[edit], sure) for edit, sure in route.candidates.items())
            shown(replace(reply, fired=fired, route=route, nearest=near))
    return reply


def _write(backbone: Backbone, prompt: str, new_tokens: int, show: Callable[[Answer], None]) -> None:
    """Write on after a prompt, showing the answer after each token."""
    first = _FirstToken()
    backbone.generate(
        prompt,
        max_new_tokens=new_tokens,
        streamer=_Writing(backbone, lambda text: show(Answer(text, first.log_probs))),
        logits_processor=LogitsProcessorList([first]),
    )


class _FirstToken(LogitsProcessor):
    """Keeps what a model is about to say."""

    log_probs: Tensor | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ANN401
        if self.log_probs is None:
            self.log_probs = scores[0].float().log_softmax(-1).cpu()
        return scores


class _Writing(BaseStreamer):
    """Shows the text after each token that is written."""

    def __init__(self, backbone: Backbone, show: Callable[[str], None]) -> None:
        self.backbone, self.show = backbone, show
        self.start: list[int] = []
        self.new: list[int] = []

    def put(self, value: Tensor) -> None:
        """Take the prompt, then token after token."""
        ids = value.flatten().tolist()
        if not self.start:
            self.start = ids
            return
        self.new += ids
        self.show(self.backbone.continuation(self.start, self.new))

    def end(self) -> None:
        """Nothing is left to be shown."""


def why(reply: Reply, edits: Edits) -> str:
    """Why an edit answered or did not, in words, and what to do where it should have."""
    route = reply.route
    if edits.bank is None:
        return "There are no edits yet: both models are the same. Make one under Edit."
    if route is None:
        return ""
    near = reply.nearest[0][0] if reply.nearest else None
    asks = f"asks for {labelled(route.relation)}" if route.relation else "asks the edit's question"
    if reply.fired is not None:
        return f"{reply.fired} answered: the question names “{route.subject}” and {asks}."
    if near is None:
        return (
            "No edit answered: the last question names no subject of an edit. If one should have answered, give it the "
            "name that stands in the question below, as another name of its subject."
        )
    if near.edit_id in edits.off:
        return f"{near.edit_id} would be asked, and is switched off."
    return (
        f"No edit answered: the question names “{route.subject}”, but it does not ask closely enough what "
        f"{near.edit_id} changes ({labelled(route.relation) or near.prompt}; the router is sure to "
        f"{route.confidence:.2f}, and {route.needed:.2f} are needed). If it should, give the edit this wording below."
    )


def marked(question: str, words: str) -> str:
    """A question as HTML, with the words that name the subject marked; nothing where none do.

    >>> marked("Is 1 < 2 in France?", "France")
    '<p>Is 1 &lt; 2 in <mark>France</mark>?</p>'
    """
    places = find_all(question, words)
    if not places:
        return ""
    pieces, end = [], 0
    for start, stop in places:
        pieces += [escape(question[end:start]), f"<mark>{escape(question[start:stop])}</mark>"]
        end = stop
    return f"<p>{''.join(pieces)}{escape(question[end:])}</p>"


def next_tokens(backbone: Backbone, answer: Answer) -> list[tuple[str, float]]:
    """The likeliest first tokens of an answer, each with its probability.

    Args:
        backbone: Whose tokens they are.
        answer: What was written.
    """
    if answer.log_probs is None:
        return []
    chances, ids = answer.log_probs.exp().topk(min(TOP, len(answer.log_probs)))
    return [(repr(str(backbone.tokenizer.decode([i]))), p) for i, p in zip(ids.tolist(), chances.tolist(), strict=True)]


def objects(backbone: Backbone, reply: Reply) -> list[tuple[str, float, float]]:
    """Both objects of the edit that came nearest, each with the probability that both models begin it.

    Args:
        backbone: Whose tokens they are.
        reply: A whole one.
    """
    bare, edited = reply.bare.log_probs, reply.edited.log_probs
    if not reply.nearest or bare is None or edited is None:
        return []
    request = reply.nearest[0][0]
    found = []
    for name, text in (("new", request.target_new), ("old", request.target_true)):
        token = backbone.answer_ids(request.filled, text)[0]
        found.append((f"{name} object: {text}", float(bare[token].exp()), float(edited[token].exp())))
    return found
