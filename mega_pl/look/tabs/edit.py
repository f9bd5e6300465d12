"""Edit: a form for a new fact, its fit, and what has become of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from mega_pl.data.relations import relations
from mega_pl.edits import EditBank, EditRequest
from mega_pl.look.edit import Suggestions, check, counted_passes, lines, put, replaced, rows, suggest, templated
from mega_pl.look.studio import Studio
from mega_pl.look.tabs.common import Part, desk_of, refusals, small, stop_button

WIDTHS: list[str | int] = ["180px", "330px", "190px", "190px", "160px", "130px"]
HEADERS = ["question", "text", "bare", "edited", "edit", "as it should be"]


def edit_tab(studio: Studio, key: Any) -> tuple[Part, list[Any]]:  # noqa: ANN401
    """Lay the part out.

    Args:
        studio: The model and the desks.
        key: The component that knows whose tab it is.

    Returns:
        The part, and the form's fields in the order of `form_of`.
    """
    backbone = studio.backbone
    choices = [("unknown", ""), *sorted((r.label, name) for name, r in relations().items())]
    with gr.Row():
        subject = gr.Textbox(label="Subject", info="whom or what the fact is about", elem_id="subject")
        relation = gr.Dropdown(
            choices, value="", label="Relation", info="tells the router what it asks", elem_id="relation"
        )
        prompt = gr.Textbox(
            label="Wording", info="goes on with the object; with the subject or {} in it", elem_id="wording"
        )
    with gr.Row():
        new = gr.Textbox(label="New object", info="what the edited model says", elem_id="new")
        true = gr.Textbox(label="Old object", info="blank: what the model says now", elem_id="true")
        name = gr.Textbox(label="Name of the edit", info="blank: made from the wording", elem_id="edit_id")
    with gr.Row():
        aliases = gr.Textbox(label="Other names of the subject, one a line", lines=2, elem_id="aliases")
        phrasings = gr.Textbox(label="Other wordings of the fact, one a line", lines=2, elem_id="phrasings")
    form = [subject, relation, prompt, new, true, name, aliases, phrasings]
    with gr.Row():
        hint = small("Suggest", elem_id="suggest")
        go = small("Fit the edit", "primary", elem_id="fit")
        stop_button(studio, key)
    progress = gr.Markdown(elem_id="progress")
    table = gr.Dataframe(
        headers=HEADERS,
        label="Before and after",
        wrap=True,
        interactive=False,
        visible=False,
        column_widths=WIDTHS,
        elem_id="checks",
    )

    def on_suggest(
        subject: str, relation: str, prompt: str, true: str, aliases: str, key: str, request: gr.Request
    ) -> Any:  # noqa: ANN401
        def task(show: Callable[[Suggestions], None]) -> None:
            show(suggest(backbone, subject, _wording(prompt, subject), relation))

        with refusals():
            for found in studio.work(desk_of(studio, key, request), task):
                names = dict.fromkeys([*lines(aliases), *found.aliases])
                return [found.prompt, true or found.target_true, "\n".join(names), "\n".join(found.phrasings)]
        return [gr.skip()] * 4

    hint.click(on_suggest, [subject, relation, prompt, true, aliases, key], [prompt, true, aliases, phrasings])

    def on_fit(
        subject: str,
        relation: str,
        prompt: str,
        new: str,
        true: str,
        name: str,
        aliases: str,
        phrasings: str,
        key: str,
        request: gr.Request,
    ) -> Iterator[Any]:
        fields = (subject, relation, prompt, new, true, name, aliases, phrasings)
        desk = desk_of(studio, key, request)
        with refusals():
            before = desk.edits.bank

            def task(show: Any) -> None:  # noqa: ANN401
                edit = _request(studio, fields)
                gone = replaced(before, edit)
                if gone:
                    show(f"Takes the place of {', '.join(gone)}.")
                with counted_passes(backbone, show):
                    made, notes = put(backbone, before, edit)
                show((made, edit.edit_id, notes))
                show(rows(check(backbone, made, edit.edit_id)))

            done = ""
            for step in studio.work(desk, task):
                if isinstance(step, str):
                    yield f"Fitting: {step}", gr.skip()
                elif isinstance(step, tuple):
                    made, edit_id, notes = step
                    desk.take(made, edit_id, before)
                    done = _outcome(made, edit_id, notes)
                    yield f"{done}\n\nAsking around it …", gr.skip()
                else:
                    yield done, gr.update(value=step, visible=True)

    fitted = go.click(on_fit, [*form, key], [progress, table], show_progress="hidden")
    return Part(changes=[fitted]), form


def form_of(request: EditRequest) -> list[str]:
    """The fields of the form that make a request."""
    return [
        request.subject, request.relation, request.prompt, request.target_new, request.target_true, request.edit_id,
        "\n".join(request.aliases), "\n".join(request.phrasings),
    ]  # fmt: skip


def _request(studio: Studio, fields: Sequence[str]) -> EditRequest:
    """The request that a form makes; what is blank and can be suggested is."""
    subject, relation, prompt, new, true, name, aliases, phrasings = fields
    prompt = _wording(prompt, subject)
    if not prompt or not true.strip():
        found = suggest(studio.backbone, subject, prompt, relation)
        prompt, true = found.prompt, true.strip() or found.target_true
    request = EditRequest(
        subject=subject, relation=relation, prompt=prompt, target_new=new, target_true=true, edit_id=name.strip(),
        aliases=lines(aliases),
    )  # fmt: skip
    return EditRequest(**{**vars(request), "phrasings": tuple(templated(line, request) for line in lines(phrasings))})


def _wording(prompt: str, subject: str) -> str:
    """A wording with `{}` for the subject that it names."""
    prompt, subject = prompt.strip(), subject.strip()
    return prompt.replace(subject, "{}", 1) if subject and "{}" not in prompt else prompt


def _outcome(bank: EditBank, edit_id: str, notes: Sequence[str]) -> str:
    """What has become of an edit."""
    request, instead = bank[edit_id], bank.missed.get(edit_id)
    whole = f"**{edit_id}** is in force: “{request.filled}” goes on with “{request.target_new}”"
    said = f"{whole}, whole." if instead is None else f"{whole}, but not whole: the model writes “{instead}”."
    return "\n\n".join([said, *notes])
