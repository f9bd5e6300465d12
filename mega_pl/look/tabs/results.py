"""Results: a run's table, and the rows behind each number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from mega_pl.look.results import OUTCOMES, SHOWN, cells, chosen, open_run, runs
from mega_pl.look.tabs.common import literal, refusals, small

WIDTHS: list[str | int] = ["70px", "150px", "130px", "160px", "360px", "200px", "200px", "130px"]
HEADERS = ["row", "editor", "edit", "outcomes", "prompt", "bare", "edited", "fired"]
ALL = ("all", "")

LEGEND = """Of a fit: *own* is the bank's router, *oracle* one that is told which edit a question is about, *subject*
the subject's name alone. Acc asks the edit's prompt, Gen paraphrases, Spec other subjects; DI and DII doubt the edit;
CI and CII build on it; RS asks other facts of its subject, SA names the subject otherwise."""


def results_tab(root: Path) -> tuple[gr.Dropdown, Callable[[], Any]]:
    """Lay the part out.

    Args:
        root: The folder whose runs are offered.

    Returns:
        What offers runs, and how that is brought up to date.
    """
    with gr.Row():
        folder = gr.Dropdown(
            runs(root), value=None, allow_custom_value=True, label="Folder of a run", elem_id="run", scale=3
        )
        go = small("Open", "primary", elem_id="open")
    scores = gr.Markdown(elem_id="scores")
    gr.Markdown(LEGEND)
    with gr.Row():
        editor = gr.Dropdown([ALL], value="", label="Editor", elem_id="row_editor")
        measure = gr.Dropdown([ALL], value="", label="Measure", elem_id="row_measure")
        outcome = gr.Dropdown(list(OUTCOMES), value="all", label="Outcome", elem_id="row_outcome")
        words = gr.Textbox(label="Words in prompt or answers", elem_id="row_words")
    count = gr.Markdown(elem_id="row_count")
    table = gr.Dataframe(
        headers=HEADERS, type="array", wrap=True, interactive=False, max_height=420, column_widths=WIDTHS,
        label="Rows; a click shows all of one", elem_id="rows",
    )  # fmt: skip
    row = gr.Code(language="json", label="Row", visible=False)
    shown = gr.Textbox(visible="hidden", label="the run that is open")
    filters = [shown, editor, measure, outcome, words]

    def on_open(folder: str | None) -> list[Any]:
        with refusals():
            run = open_run(folder or "")
            return [
                str(run.folder),
                "\n".join(
                    line if set(line) <= set("| -") else literal(line, but="|") for line in run.table.splitlines()
                ),
                gr.update(choices=[ALL, *((name, name) for name in run.editors)], value=""),
                gr.update(choices=[ALL, *((name, name) for name in run.measures)], value=""),
                "all",
                "",
            ]
        return [gr.skip()] * 6

    def on_filter(folder: str, editor: str, measure: str, outcome: str, words: str) -> list[Any]:
        hidden = gr.update(visible=False)
        if not folder:
            return ["", [], hidden]
        with refusals():
            run = open_run(folder)
            found = chosen(run, editor, measure, outcome, words)
            more = f", the first {SHOWN} shown" if len(found) > SHOWN else ""
            old = "" if run.measures else " They do not say what answers are worth; made anew, they would."
            return [f"{len(found)} of {len(run.rows)} rows{more}.{old}", cells(run, found), hidden]
        return [gr.skip()] * 3

    def on_select(folder: str, event: gr.SelectData) -> Any:  # noqa: ANN401
        with refusals():
            wanted = open_run(folder).rows[int(event.row_value[0]) - 1]
            return gr.update(value=json.dumps(wanted, ensure_ascii=False, indent=1), visible=True)
        return gr.skip()

    opened = go.click(on_open, folder, [shown, scores, editor, measure, outcome, words])
    opened.success(on_filter, filters, [count, table, row])
    gr.on([editor.input, measure.input, outcome.input, words.change], on_filter, filters, [count, table, row])
    table.select(on_select, shown, row)
    return folder, lambda: gr.update(choices=runs(root))
