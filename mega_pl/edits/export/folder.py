"""Writing some edits of a bank into a folder in the format of another runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mega_pl.edits.export import control_vector, dense, easysteer
from mega_pl.edits.storage import write_text
from mega_pl.errors import MegaValueError

if TYPE_CHECKING:
    from mega_pl.edits.bank import EditBank

Form = Literal["affine", "easysteer", "gguf"]
"""The formats: dense affine maps, requests of EasySteer, control vectors of llama.cpp."""

INDEX = "index.json"
"""Tells which file is whose."""


@dataclass(frozen=True)
class Exporter:
    """One format.

    Args:
        suffix: Of its files.
        check: Refuses edits that it cannot express, or only with a loss or beyond a number of GiB that are not allowed,
            and gives in words what is lost.
        write: Writes the file of an edit.
        meaning: What the files say, in words.
    """

    suffix: str
    check: Callable[[EditBank, Sequence[int], bool, float], str]
    write: Callable[[EditBank, int, Path], None]
    meaning: str


EXPORTERS: dict[Form, Exporter] = {
    "affine": Exporter("safetensors", dense.check_dense, dense.write_dense, dense.MEANING),
    "easysteer": Exporter("json", easysteer.check_easysteer, easysteer.write_easysteer, easysteer.MEANING),
    "gguf": Exporter(
        "gguf", control_vector.check_control_vector, control_vector.write_control_vector, control_vector.MEANING
    ),
}


def export_bank(
    bank: EditBank,
    folder: str | Path,
    form: Form,
    *,
    edits: Sequence[str] | None = None,
    lossy: bool = False,
    max_gib: float = 8.0,
) -> str:
    """Write a file for each edit, and `INDEX`; the edits are written one after the other.

    Args:
        bank: The edits.
        folder: A new or an empty folder.
        form: The format.
        edits: Which edits; by default all.
        lossy: Whether what the format cannot express may be lost.
        max_gib: The most that dense maps may take, in GiB.

    Returns:
        What is lost, in words; "" if nothing is.

    Raises:
        ValueError: If an edit is unknown, the folder holds something, the format cannot express the bank, or its files
            would be too large.
    """
    if form not in EXPORTERS:
        raise MegaValueError(f"`format` must be one of {', '.join(get_args(Form))}, but got {form!r}.")
    chosen = _chosen(bank, edits)
    exporter = EXPORTERS[form]
    lost = exporter.check(bank, chosen, lossy, max_gib)
    out = _new_folder(Path(folder))
    names = [f"edit-{place:04}.{exporter.suffix}" for place in range(len(chosen))]
    for edit, name in zip(chosen, names, strict=True):
        exporter.write(bank, edit, out / name)
    index = _index(bank, chosen, names, form, lost)
    write_text(out / INDEX, json.dumps(index, ensure_ascii=False, indent=1) + "\n")
    return lost


def _chosen(bank: EditBank, edits: Sequence[str] | None) -> list[int]:
    """The places of some edits of a bank."""
    place = {edit_id: i for i, edit_id in enumerate(bank.ids)}
    unknown = [edit_id for edit_id in edits or () if edit_id not in place]
    if unknown:
        few = ", ".join(bank.ids[:5]) + (", ..." if len(bank) > 5 else "")
        raise MegaValueError(f"`edits` must name edits of the bank, {few}, but got {', '.join(map(repr, unknown))}.")
    if edits is not None and len(set(edits)) < max(1, len(edits)):
        raise MegaValueError(f"`edits` must name edits, each once, but got {list(edits)}.")
    return [place[edit_id] for edit_id in (bank.ids if edits is None else edits)]


def _new_folder(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MegaValueError(f"`output` must be a new or an empty folder, but {str(folder)!r} holds something.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _index(bank: EditBank, chosen: Sequence[int], names: Sequence[str], form: Form, lost: str) -> dict[str, Any]:
    """Everything that the files themselves do not tell."""
    return {
        "format_version": 1,
        "format": form,
        "meaning": EXPORTERS[form].meaning,
        "lost": lost,
        "backbone": dict(bank.backbone),
        "sites": [str(site) for site in bank.maps],
        "strength": bank.strength,
        "edits": [_entry(bank, edit, name) for edit, name in zip(chosen, names, strict=True)],
    }


def _entry(bank: EditBank, edit: int, name: str) -> dict[str, Any]:
    request = bank.requests[edit]
    return {
        "edit_id": request.edit_id,
        "file": name,
        "prompt": request.filled,
        "target_new": request.target_new,
        "object": list(bank.objects[edit]),
    }
