"""Bank: all edits as a table, to be switched off and on, removed, undone, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from mega_pl.data.relations import labelled
from mega_pl.edits import EditBank
from mega_pl.edits.status import map_sizes
from mega_pl.functional.text import counted
from mega_pl.look.studio import Desk, Studio
from mega_pl.look.tabs.common import Missing, Part, desk_of, literal, refusals, small

HEADERS = ["edit", "prompt", "before", "after", "relation", "kB", "comes out", "fired", "in force"]
WIDTHS: list[str | int] = ["150px", "290px", "130px", "130px", "130px", "80px", "110px", "80px", "80px"]
KINDS: list[Any] = ["str", "str", "str", "str", "str", "number", "str", "number", "str"]

USE = """
```python
import mega_pl

lm = mega_pl.load("{model}")
bank = mega_pl.EditBank.from_pretrained("{place}")
with bank.apply(lm) as use:
    print(lm.generate("...", max_new_tokens=5), use.fired)
```
"""
"""How a saved bank is used."""


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
        undo = small("Undo", elem_id="undo")
    with gr.Row():
        folder = gr.Textbox(label="Folder of a bank", placeholder="runs/bank", elem_id="folder")
        save, load = small("Save", elem_id="save"), small("Load", elem_id="load")
    note = gr.Markdown(elem_id="bank_note")

    def on_select(event: gr.SelectData) -> Any:  # noqa: ANN401
        return [str(event.row_value[0])]

    table.select(on_select, None, choice)

    def doing(act: Callable[[Desk, list[str], str], str]) -> Callable[..., str]:
        """What a button does with the chosen edits, and with the folder."""

        def on_click(chosen: list[str] | None, folder: str, key: str, request: gr.Request) -> str:
            desk = desk_of(studio, key, request)
            with refusals():
                return literal(act(desk, _existing(desk, chosen), folder.strip()))
            return ""

        return on_click

    def on_load(desk: Desk, _: list[str], folder: str) -> str:
        place = _place(folder)
        if not place.is_dir():
            raise Missing(f"There is no folder {folder}.")
        bank = EditBank.from_pretrained(place)
        bank.check(studio.backbone)
        desk.change(f"{folder} loaded", bank, frozenset())
        desk.folders.add(place)
        return f"Loaded {counted(len(bank), 'edit')}."

    def on_save(chosen: list[str] | None, folder: str, key: str, request: gr.Request) -> str:
        desk = desk_of(studio, key, request)
        with refusals():
            bank, place = _bank(desk), _place(folder)
            if (place / "edit_config.json").exists() and place not in desk.folders:
                raise Missing(f"{folder} holds another bank; load it first, or name another folder.")
            bank.save_pretrained(place)
            desk.folders.add(place)
            off = f" On there, though off here: {counted(len(desk.edits.off), 'edit')}." if desk.edits.off else ""
            return f"Saved.{off} In Python:\n{USE.format(model=studio.backbone.name, place=place.as_posix())}"
        return ""

    given = [choice, folder, key]
    acts = ((off, _switch_off), (on, _switch_on), (remove, _remove), (undo, _undo), (load, on_load))
    changes = [button.click(doing(act), given, note) for button, act in acts]
    save.click(on_save, given, note)

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
        raise Missing("There are no edits yet; make one under Edit, or load a bank.")
    return desk.edits.bank


def _existing(desk: Desk, chosen: list[str] | None) -> list[str]:
    """The chosen edits that are still there."""
    ids = desk.edits.bank.ids if desk.edits.bank else ()
    return [edit for edit in chosen or [] if edit in ids]


def _place(folder: str) -> Path:
    """The folder that a person names."""
    if not folder.strip():
        raise Missing("Name the folder of a bank.")
    return Path(folder.strip()).expanduser()


def _some(chosen: list[str]) -> list[str]:
    if not chosen:
        raise Missing("Choose an edit first: click on its row.")
    return chosen


def _switch_off(desk: Desk, chosen: list[str], _: str) -> str:
    return _done(desk, f"{', '.join(_some(chosen))} off", _bank(desk), desk.edits.off.union(chosen))


def _switch_on(desk: Desk, chosen: list[str], _: str) -> str:
    return _done(desk, f"{', '.join(_some(chosen))} on", _bank(desk), desk.edits.off.difference(chosen))


def _remove(desk: Desk, chosen: list[str], _: str) -> str:
    bank, gone = _bank(desk), set(_some(chosen))
    return _done(desk, f"{', '.join(chosen)} removed", None if len(gone) == len(bank) else bank.remove(*gone))


def _done(desk: Desk, what: str, bank: EditBank | None, off: frozenset[str] | None = None) -> str:
    desk.change(what, bank, off)
    return f"Done: {what}."


def _undo(desk: Desk, *_: object) -> str:
    what = desk.undo()
    return f"Undone: {what}." if what else "Nothing to undo."
