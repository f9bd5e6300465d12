"""Results: a run's table, and the rows behind each number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from mega_pl.look.results import OUTCOMES, SHOWN, cells, chosen, open_run, runs
from mega_pl.look.tabs.common import Part, refusals, small

WIDTHS: list[str | int] = ["130px", "160px", "360px", "200px", "200px", "130px"]
HEADERS = ["edit", "outcomes", "prompt", "bare", "edited", "fired"]
ALL = ("all", "")


def results_tab(root: Path) -> Part:
    """Lay the part out.

    Args:
        root: The folder whose runs are offered.
    """
    with gr.Row():
        folder = gr.Dropdown(
            runs(root), value=None, allow_custom_value=True, label="Folder of a run", elem_id="run", scale=3
        )
        go = small("Open", "primary", elem_id="open")
    scores = gr.Markdown(elem_id="scores")
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
    filters = [folder, editor, measure, outcome, words]

    def on_open(folder: str | None) -> list[Any]:
        with refusals():
            run = open_run(folder or "")
            return [
                run.table,
                gr.update(choices=[ALL, *((name, name) for name in run.editors)], value=""),
                gr.update(choices=[ALL, *((name, name) for name in run.measures)], value=""),
                "all",
                "",
            ]
        return [gr.skip()] * 5

    def on_filter(folder: str | None, editor: str, measure: str, outcome: str, words: str) -> list[Any]:
        if not folder:
            return ["", []]
        with refusals():
            run = open_run(folder)
            found = chosen(run, editor, measure, outcome, words)
            more = f", the first {SHOWN} shown" if len(found) > SHOWN else ""
            return [f"{len(found)} of {len(run.rows)} rows{more}", cells(found)]
        return [gr.skip()] * 2

    def on_select(folder: str | None, editor: str, measure: str, outcome: str, words: str, event: gr.SelectData) -> Any:  # noqa: ANN401
        with refusals():
            found = chosen(open_run(folder or ""), editor, measure, outcome, words)
            wanted = next((r for r in found[:SHOWN] if cells([r])[0] == [str(v) for v in event.row_value]), None)
            return gr.update(value=json.dumps(wanted, ensure_ascii=False, indent=1), visible=wanted is not None)
        return gr.skip()

    opened = go.click(on_open, folder, [scores, editor, measure, outcome, words])
    opened.success(on_filter, filters, [count, table])
    gr.on([f.input for f in (editor, measure, outcome)] + [words.submit], on_filter, filters, [count, table])
    table.select(on_select, filters, row)
    return Part()
