"""Bank: all edits as a table, to be switched off and on, removed, undone, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from mega_pl.data.relations import labelled
from mega_pl.edits import EditBank
from mega_pl.edits.status import map_sizes
from mega_pl.look.studio import Desk, Studio
from mega_pl.look.tabs.common import Part, desk_of, refusals, small

HEADERS = ["edit", "prompt", "before", "after", "relation", "kB", "comes out", "fired", "in force"]
WIDTHS: list[str | int] = ["150px", "290px", "130px", "130px", "130px", "80px", "110px", "80px", "80px"]
KINDS: list[Any] = ["str", "str", "str", "str", "str", "number", "str", "number", "str"]


def bank_tab(studio: Studio, key: Any) -> tuple[Part, gr.Button, gr.Dropdown]:  # noqa: ANN401
    """Lay the part out.

    Args:
        studio: The model and the desks.
        key: The component that knows whose tab it is.

    Returns:
        The part, the button that asks for an edit's form, and what says which edit.
    """
    table = gr.Dataframe(
        headers=HEADERS, datatype=KINDS, type="array", interactive=False, show_search="search", max_height=420,
        wrap=True, column_widths=WIDTHS,
        label="Edits; a click chooses one", elem_id="bank",
    )  # fmt: skip
    choice = gr.Dropdown(label="Chosen edits", multiselect=True, elem_id="choice")
    with gr.Row():
        off, on = small("Switch off"), small("Switch on")
        change, remove = small("Change …"), small("Remove", "stop", elem_id="remove")
        undo = small("Undo the last change", elem_id="undo")
    with gr.Row():
        folder = gr.Textbox(label="Folder of a bank", placeholder="runs/bank", elem_id="folder")
        save, load = small("Save", elem_id="save"), small("Load", elem_id="load")
    note = gr.Markdown(elem_id="bank_note")

    def on_select(event: gr.SelectData) -> Any:  # noqa: ANN401
        return [str(event.row_value[0])]

    table.select(on_select, None, choice)

    def doing(act: Callable[[Desk, list[str]], str]) -> Callable[..., str]:
        """What a button does with the chosen edits."""

        def on_click(chosen: list[str] | None, key: str, request: gr.Request) -> str:
            desk = desk_of(studio, key, request)
            with refusals():
                return act(desk, _existing(desk, chosen))
            return ""

        return on_click

    def on_save(folder: str, key: str, request: gr.Request) -> str:
        with refusals():
            bank = _bank(desk_of(studio, key, request))
            place = bank.save_pretrained(folder.strip())
            return f'Saved. In Python: `mega_pl.EditBank.from_pretrained("{Path(place).as_posix()}")`'
        return ""

    def on_load(folder: str, key: str, request: gr.Request) -> str:
        with refusals():
            if not folder.strip():
                raise gr.Error("Name the folder of a bank.", print_exception=False)
            bank = EditBank.from_pretrained(folder.strip())
            bank.check(studio.backbone)
            desk_of(studio, key, request).change(bank, frozenset())
            return f"Loaded {len(bank)} edits."
        return ""

    changes = [
        button.click(doing(act), [choice, key], note)
        for button, act in ((off, _switch_off), (on, _switch_on), (remove, _remove))
    ]
    changes += [
        undo.click(doing(_undo), [choice, key], note),
        load.click(on_load, [folder, key], note),
    ]
    save.click(on_save, [folder, key], note)

    def refresh(desk: Desk) -> list[Any]:
        ids = list(desk.edits.bank.ids) if desk.edits.bank else []
        return [gr.update(value=_rows(desk)), gr.update(choices=ids, value=[])]

    return Part([table, choice], refresh, changes), change, choice


def _rows(desk: Desk) -> list[list[Any]]:
    """The table of a desk's edits."""
    bank, off = desk.edits.bank, desk.edits.off
    if bank is None:
        return []
    return [
        [
            r.edit_id, r.filled, r.target_true, r.target_new, labelled(r.relation) if r.relation else "unknown",
            round(size / 1000, 1), f"no: {bank.missed[r.edit_id]}" if r.edit_id in bank.missed else "whole",
            desk.fired[r.edit_id], "off" if r.edit_id in off else "on",
        ]
        for r, size in zip(bank.requests, map_sizes(bank), strict=True)
    ]  # fmt: skip


def _bank(desk: Desk) -> EditBank:
    if desk.edits.bank is None:
        raise gr.Error("There are no edits yet; make one under Edit, or load a bank.", print_exception=False)
    return desk.edits.bank


def _existing(desk: Desk, chosen: list[str] | None) -> list[str]:
    """The chosen edits that are still there."""
    ids = desk.edits.bank.ids if desk.edits.bank else ()
    return [edit for edit in chosen or [] if edit in ids]


def _some(chosen: list[str]) -> list[str]:
    if not chosen:
        raise gr.Error("Choose an edit first: click on its row.", print_exception=False)
    return chosen


def _switch_off(desk: Desk, chosen: list[str]) -> str:
    desk.change(_bank(desk), desk.edits.off.union(_some(chosen)))
    return f"Off: {', '.join(chosen)}."


def _switch_on(desk: Desk, chosen: list[str]) -> str:
    desk.change(_bank(desk), desk.edits.off.difference(_some(chosen)))
    return f"On: {', '.join(chosen)}."


def _remove(desk: Desk, chosen: list[str]) -> str:
    bank, gone = _bank(desk), set(_some(chosen))
    desk.change(None if len(gone) == len(bank) else bank.remove(*gone))
    return f"Removed: {', '.join(chosen)}."


def _undo(desk: Desk, _: list[str]) -> str:
    return "Undone." if desk.undo() else "Nothing to undo."
