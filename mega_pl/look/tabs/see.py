"""See: what an edit does inside the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from mega_pl.attribution import SIGN_CLASSES
from mega_pl.look.see import SIDES, Sight, see
from mega_pl.look.studio import Desk, Studio
from mega_pl.look.tabs.common import Missing, Part, desk_of, literal, refusals, small, stop_button

NEURONS = ["when", "block", "neuron", "nats", "activation", "signs"]
CLASSES = ["block", "neuron", *SIGN_CLASSES]


def see_tab(studio: Studio, key: Any) -> Part:  # noqa: ANN401
    """Lay the part out.

    Args:
        studio: The model and the desks.
        key: The component that knows whose tab it is.
    """
    with gr.Row():
        edit = gr.Dropdown(label="Edit", elem_id="see_edit")
        prompt = gr.Textbox(label="Prompt", info="blank: the edit's own", scale=2, elem_id="see_prompt")
        go = small("Look", "primary", elem_id="look")
        stop_button(studio, key)
    note = gr.Markdown(elem_id="see_note")
    gr.Markdown("Importance of layers before and after; shaded where the edit steers")
    layers = gr.Plot(label="Importance of layers", show_label=False, elem_id="layers")
    gr.Markdown("Importance of heads for the new object, before and after, and how far the edit moves each site")
    with gr.Row():
        heads = [gr.Plot(label=f"Importance of heads, {when}", show_label=False, min_width=280) for when in SIDES]
        steering = gr.Plot(label="Moves of sites", show_label=False, min_width=280)
    neurons = gr.Dataframe(headers=NEURONS, label="Most important neurons for the new object", interactive=False)
    classes = gr.Dataframe(
        headers=CLASSES, wrap=True, column_widths=["70px", "80px", *["220px"] * 4], interactive=False, visible=False,
        label="Sign classes of these neurons: how often each occurs in plain text, and where it is most active",
    )  # fmt: skip

    def on_look(edit_id: str | None, prompt: str, key: str, request: gr.Request) -> Iterator[Any]:
        desk = desk_of(studio, key, request)
        bank = desk.edits.bank

        def task(show: Callable[[Sight], None]) -> None:
            if bank is None or not edit_id:
                raise Missing("Choose an edit; where there is none, make one under Edit.")
            see(studio.backbone, bank, edit_id, prompt, show)

        with refusals():
            for seen in studio.work(desk, task):
                yield _updates(seen)

    go.click(on_look, [edit, prompt, key], [note, layers, *heads, steering, neurons, classes])

    def refresh(desk: Desk) -> list[Any]:
        ids = list(desk.edits.bank.ids) if desk.edits.bank else []
        return [gr.update(choices=ids, value=ids[-1] if ids else None)]

    return Part([edit], refresh)


def _updates(seen: Sight) -> list[Any]:
    figures = [*seen.heads, None, None][:2]
    neurons = [[w, layer, n, round(i, 3), round(a, 2), sign] for w, layer, n, i, a, sign in seen.neurons]
    return [
        literal("\n\n".join(seen.notes)), seen.layers, *figures, seen.steering, neurons,
        gr.update(value=[list(row) for row in seen.classes], visible=bool(seen.classes)),
    ]  # fmt: skip
