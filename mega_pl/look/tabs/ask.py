"""Ask: both models side by side as they write, which edit answered, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from mega_pl.edits.routing import Route
from mega_pl.look.ask import Reply, ask, marked, next_tokens, objects, why
from mega_pl.look.edit import mend
from mega_pl.look.studio import Conversation, Desk, Studio
from mega_pl.look.tabs.common import Missing, Part, bars, desk_of, literal, refusals, small, stop_button

EVIDENCE = {
    "own": "like the relation's wordings",
    "wording": "like the edit's prompt",
    "posterior": "the relation's share among all, in nats",
    "noun": "names the object through the subject",
    "strange noun": "a noun that the edit lacks",
    "strange words": "words that the edit lacks",
    "answer": "the bare model is about to say the old object",
}
"""What the parts of a decision of the router by content are."""


def ask_tab(studio: Studio, key: Any, examples: Sequence[str]) -> Part:  # noqa: ANN401
    """Lay the part out.

    Args:
        studio: The model and the desks.
        key: The component that knows whose tab it is.
        examples: Questions to begin with.
    """
    backbone = studio.backbone
    chats = bool(backbone.tokenizer.chat_template)
    with gr.Row():
        question = gr.Textbox(
            label="Question, or the beginning of a sentence",
            info="Enter asks, Shift+Enter begins a line",
            lines=1,
            max_lines=6,
            scale=4,
            min_width=300,
            elem_id="question",
            autofocus=True,
        )
        with gr.Column(scale=1, min_width=180):
            tokens = gr.Slider(1, 200, 30, step=1, label="Tokens of an answer", elem_id="tokens")
            chat = gr.Checkbox(
                value=False,
                label="Conversation",
                info="in the model's chat template" if chats else "this model has no chat template",
                interactive=chats,
            )
    with gr.Row():
        go = small("Ask", "primary", elem_id="ask")
        stop_button(studio, key)
        clear = small("Clear", elem_id="clear")
    gr.Examples([[example] for example in examples], question, label="For example")
    with gr.Row():
        sides = [
            gr.Chatbot(
                label=label,
                elem_id=name,
                render_markdown=False,
                feedback_options=None,
                buttons=[],
                height=260,
                min_width=280,
            )
            for name, label in (("bare", "Bare model"), ("edited", "Edited model"))
        ]
    reason = gr.Markdown(elem_id="why")
    words = gr.HTML(elem_id="words", padding=False)
    with gr.Row():
        evidence, nearest, both = _columns(3)
    with gr.Row():
        likely = _columns(2)
    with gr.Accordion("An edit should have answered, and did not", open=False), gr.Row(equal_height=True):
        edit = gr.Dropdown(label="The edit", elem_id="mend_edit")
        alias = gr.Textbox(label="Another name of its subject", elem_id="mend_alias")
        phrasing = gr.Textbox(label="Another wording of its fact", info="with the subject or {} in it")
        fix = small("Add to the edit", elem_id="mend")

    def on_ask(text: str, conversing: bool, most: int, key: str, request: gr.Request) -> Iterator[Any]:
        desk = desk_of(studio, key, request)
        edits, said = desk.edits, desk.said
        earlier = said if conversing else None
        reply: Reply | None = None

        def task(show: Callable[[Reply], None]) -> None:
            reply = ask(backbone, edits, text, show, new_tokens=int(most), earlier=earlier)
            desk.fired.update([reply.fired] if reply.fired else [])
            if desk.said is said:  # and was not cleared meanwhile
                desk.said = _grown(said, reply)

        with refusals():
            for reply in studio.work(desk, task):
                yield [*_messages(_grown(said, reply)), *[gr.skip()] * 7]
            if reply is not None:
                yield [*_messages(desk.said), *_reasons(studio, desk, reply)]

    asking = (on_ask, [question, chat, tokens, key], [*sides, reason, words, evidence, nearest, both, *likely])
    gr.on([go.click, question.submit], *asking, show_progress="hidden")

    def on_clear(key: str, request: gr.Request) -> list[Any]:
        desk = desk_of(studio, key, request)
        desk.stop()
        desk.said = Conversation()
        return [[], [], *[""] * 7]

    gr.on(
        [clear.click, chat.change, *(side.clear for side in sides)],
        on_clear,
        key,
        [*sides, reason, words, evidence, nearest, both, *likely],
    )

    def on_mend(edit_id: str | None, name: str, wording: str, key: str, request: gr.Request) -> list[Any]:
        desk = desk_of(studio, key, request)
        bank = desk.edits.bank

        def task(show: Callable[[str], None]) -> None:
            if bank is None or not edit_id or not (name.strip() or wording.strip()):
                raise Missing("Choose the edit, and give it a name or a wording.")
            made, again = mend(backbone, bank, edit_id, alias=name, phrasing=wording)
            desk.take(f"{', '.join(again)} fitted again", made, again, bank)
            show(", ".join(again))

        with refusals():
            for again in studio.work(desk, task):
                gr.Info(f"Fitted again: {literal(again)}.")
            return ["", ""]
        return [gr.skip()] * 2

    mended = fix.click(on_mend, [edit, alias, phrasing, key], [alias, phrasing])
    mended.success(*asking)  # what did not fire is asked again

    def refresh(desk: Desk) -> list[Any]:
        ids = list(desk.edits.bank.ids) if desk.edits.bank else []
        return [*_messages(desk.said), gr.update(choices=ids, value=ids[-1] if ids else None)]

    return Part([*sides, edit], refresh, [mended])


def _columns(count: int) -> list[gr.HTML]:
    """Tables side by side, or below one another where there is no room."""
    tables = []
    for _ in range(count):
        with gr.Column(min_width=300):
            tables.append(gr.HTML(padding=False))
    return tables


def _grown(said: Conversation, reply: Reply) -> Conversation:
    """What was said, with a reply that may still be written."""
    return said.grown(reply.question, reply.bare.text, reply.edited.text)


def _messages(said: Conversation) -> list[list[dict[str, str]]]:
    """What both sides of the page show of what was said."""
    return [
        [
            message
            for question, answer in zip(said.questions, answers, strict=True)
            for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer or "…"})
        ]
        for answers in (said.bare, said.edited)
    ]


def _reasons(studio: Studio, desk: Desk, reply: Reply) -> list[Any]:
    """Why an edit answered or did not, in words and in bars."""
    route = reply.route
    evidence = [(f"{name}: {EVIDENCE.get(name, '')}", value) for name, value in route.evidence.items()] if route else []
    return [
        literal(why(reply, desk.edits)),
        marked(reply.question, route.subject if route else ""),
        bars("Evidence for the nearest edit", [""], evidence),
        bars(_sureness(route), [""], [(f"{r.edit_id} ({r.subject})", sure) for r, sure in reply.nearest], 1),
        bars("The nearest edit's objects", ["bare", "edited"], objects(studio.backbone, reply), 1),
        *(
            bars(f"Likeliest first tokens, {name}", [""], next_tokens(studio.backbone, answer), 1)
            for name, answer in (("bare", reply.bare), ("edited", reply.edited))
        ),
    ]


def _sureness(route: Route | None) -> str:
    """The caption of what the router thinks of the nearest edits."""
    return f"How sure the router is, {route.needed:.2f} needed" if route and route.needed else "Nearest edits"
