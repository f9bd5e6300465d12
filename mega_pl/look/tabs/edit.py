"""Edit: a form for a new fact, its fit, and what has become of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from mega_pl.data.relations import relations
from mega_pl.edits import EditBank, EditRequest
from mega_pl.edits.request import SLOT
from mega_pl.functional.text import canonical
from mega_pl.look.edit import Suggestions, check, counted_passes, doubts, lines, put, replaced, rows, suggest, templated
from mega_pl.look.studio import Studio
from mega_pl.look.tabs.common import Missing, Part, desk_of, literal, refusals, small, stop_button

WIDTHS: list[str | int] = ["180px", "330px", "190px", "190px", "160px", "130px"]
HEADERS = ["question", "text", "bare", "edited", "edit", "as it should be"]


@dataclass(frozen=True)
class Step:
    """What the page shows of a fit so far.

    Args:
        text: How far it is, or what has come of it.
        table: What was asked around it, once it was.
    """

    text: str
    table: list[list[str]] = field(default_factory=list)


def edit_tab(studio: Studio, key: Any) -> tuple[Part, list[Any]]:  # noqa: ANN401
    """Lay the part out.

    Args:
        studio: The model and the desks.
        key: The component that knows whose tab it is.

    Returns:
        The part, and the form's fields in the order of `form_of`.
    """
    backbone = studio.backbone
    choices = sorted((r.label, name) for name, r in relations().items())
    with gr.Row():
        subject = gr.Textbox(label="Subject", info="whom or what the fact is about", elem_id="subject")
        relation = gr.Dropdown(
            choices,
            value=None,
            label="Relation",
            info="tells the router what it asks; blank if unknown",
            elem_id="relation",
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

    def on_suggest(subject: str, relation: str | None, prompt: str, aliases: str, key: str, request: gr.Request) -> Any:  # noqa: ANN401
        def task(show: Callable[[Suggestions], None]) -> None:
            _check(subject, relation, prompt)
            show(suggest(backbone, subject, templated(prompt.strip(), subject.strip()), relation or ""))

        with refusals():
            for found in studio.work(desk_of(studio, key, request), task):
                names = dict.fromkeys([*lines(aliases), *found.aliases])
                return [found.prompt, found.target_true, "\n".join(names), "\n".join(found.phrasings)]
        return [gr.skip()] * 4

    hint.click(on_suggest, [subject, relation, prompt, aliases, key], [prompt, true, aliases, phrasings])

    def on_fit(
        subject: str,
        relation: str | None,
        prompt: str,
        new: str,
        true: str,
        name: str,
        aliases: str,
        phrasings: str,
        key: str,
        request: gr.Request,
    ) -> Iterator[Any]:
        fields = (subject, relation or "", prompt, new, true, name, aliases, phrasings)
        desk = desk_of(studio, key, request)
        before = desk.edits.bank

        def task(show: Callable[[Step], None]) -> None:
            edit = _request(studio, before, fields)
            gone = replaced(before, edit)
            with counted_passes(backbone, lambda text: show(Step(f"Fitting: {text}"))):
                made, notes = put(backbone, before, edit)
            desk.take(f"{edit.edit_id} fitted", made, [edit.edit_id], before)
            place = [f"It takes the place of {', '.join(gone)}."] if gone else []
            done = [_outcome(made, edit.edit_id), *place, *notes]
            show(Step("\n\n".join([*done, "Asking around it …"])))
            checks = check(backbone, made, edit.edit_id)
            show(Step("\n\n".join([*done, *doubts(made, edit.edit_id, checks)]), rows(checks)))

        yield "Waiting for the model …", gr.update(visible=False)
        step = Step("")
        with refusals():
            for step in studio.work(desk, task):
                yield literal(step.text), gr.update(value=step.table, visible=True) if step.table else gr.skip()
            return
        yield ("", gr.skip()) if step.text.startswith("Fitting") or not step.text else (literal(step.text), gr.skip())

    fitted = go.click(on_fit, [*form, key], [progress, table], show_progress="hidden")
    return Part(changes=[fitted]), form


def form_of(request: EditRequest) -> list[str]:
    """The fields of the form that make a request."""
    return [
        request.subject, request.relation, request.prompt, request.target_new, request.target_true, request.edit_id,
        "\n".join(request.aliases), "\n".join(request.phrasings),
    ]  # fmt: skip


def _request(studio: Studio, bank: EditBank | None, fields: Sequence[str]) -> EditRequest:
    """The request that a form makes; what is blank and can be suggested is."""
    subject, relation, prompt, new, true, name, aliases, phrasings = fields
    _check(subject, relation, prompt)
    if not new.strip():
        raise Missing("Say the new object.")
    prompt = templated(prompt.strip(), subject.strip())
    if not prompt or not true.strip():
        found = suggest(studio.backbone, subject, prompt, relation)
        prompt, true = found.prompt, true.strip() or found.target_true
    request = EditRequest(
        subject=subject, relation=relation, prompt=prompt, target_new=new, target_true=true, edit_id=name.strip(),
        aliases=lines(aliases),
    )  # fmt: skip
    if bank is not None and request.edit_id in bank.ids:
        other = bank[request.edit_id]
        if canonical(other.subject) != canonical(request.subject):
            raise Missing(f"{request.edit_id} is the name of an edit of {other.subject}; take another one.")
    return EditRequest(
        **{**vars(request), "phrasings": tuple(templated(line, subject, *lines(aliases)) for line in lines(phrasings))}
    )


def _check(subject: str, relation: str | None, prompt: str) -> None:
    """Refuse a form that lacks what nothing can be suggested for."""
    if not subject.strip():
        raise Missing("Name the subject.")
    if SLOT in subject:
        raise Missing(f"The subject must be a name, without {SLOT}.")
    if not relation and not prompt.strip():
        raise Missing("Choose a relation, or write a wording.")


def _outcome(bank: EditBank, edit_id: str) -> str:
    """What has become of an edit."""
    request, instead = bank[edit_id], bank.missed.get(edit_id)
    said = f"{edit_id} is in force: “{request.filled}” goes on with “{request.target_new}”"
    return f"{said}." if instead is None else f"{said} in part only: the model writes “{instead}”."
