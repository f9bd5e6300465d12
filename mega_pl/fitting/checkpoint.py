"""A fit in a checkpoint: what it takes to go on, small however much has been fitted where that has files of its own."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mega_pl.edits import EditBank
from mega_pl.edits.storage import bank_config, bank_fields, bank_tensors
from mega_pl.errors import MegaValueError
from mega_pl.fitting.fitter import EditFitter, FittedEdit
from mega_pl.fitting.shards import edits_from, edits_state, read_shards

SHARDS, BANK = "fitted", "edits"
"""Folders of a run: edits as they are fitted, and the finished bank."""


def fit_state(fitter: EditFitter, folder: Path | None, *, saved: bool = False) -> dict[str, Any]:
    """What it takes to go on with a fit, for `torch.save` without pickled code.

    Args:
        fitter: What has fitted edits.
        folder: The run's, where it keeps shards and in the end the bank; None puts all of it into the state.
        saved: Whether the bank of all edits lies in the folder.
    """
    state: dict[str, Any] = {
        "fit": identity(fitter),
        "router": asdict(fitter.config.router),
        "folder": None if folder is None else str(folder),
    }
    if folder is not None and not saved:
        return state
    state["records"], tensors = edits_state(list(fitter.fitted.values()))
    if folder is None:
        state["tensors"] = tensors
        if fitter.finished is not None:
            state["bank"] = {"config": bank_config(fitter.finished), "tensors": bank_tensors(fitter.finished)}
    return state


def restore_fit(fitter: EditFitter, state: dict[str, Any], folder: Path | None) -> Path | None:
    """Give a fitter what had been fitted.

    Args:
        fitter: Of the same backbone, sites and settings; another router is fitted again.
        state: Of `fit_state`.
        folder: Where the run lives now; by default where it lived.

    Returns:
        The folder whose shards hold the edits, or None.

    Raises:
        ValueError: Naming the first thing that is not as it was, or a file that is missing or damaged.
    """
    now = identity(fitter)
    for name, value in state["fit"].items():
        if now[name] != value:
            raise MegaValueError(
                f"`{name}` must be what the checkpoint's edits were fitted with, {_short(value)}, but got "
                f"{_short(now[name])}; start a new fit without `ckpt_path`."
            )
    place = folder or Path(state["folder"] or "")
    if "records" not in state:
        fitter.keep(read_shards(place / SHARDS))
        return place
    bank = None
    if "tensors" in state:
        fitter.keep(edits_from(state["records"], state["tensors"]))
        if "bank" in state:
            bank = EditBank(**bank_fields(state["bank"]["config"], state["bank"]["tensors"]))
    else:
        bank = EditBank.from_pretrained(place / BANK)
        fitter.keep(_edits_of(bank, state["records"], place / BANK))
    if bank is not None and state["router"] == asdict(fitter.config.router):
        fitter.adopt(bank)
    return None


def identity(fitter: EditFitter) -> dict[str, Any]:
    """What the maps of edits hang on, besides their requests."""
    config = fitter.config
    return {
        **fitter.backbone.fingerprint,
        "sites": ", ".join(map(str, fitter.sites)),
        "maps": asdict(config.maps),
        "refine": asdict(config.refine),
        "prompts": asdict(config.prompts),
    }


def _edits_of(bank: EditBank, records: list[dict[str, Any]], place: Path) -> list[FittedEdit]:
    """The edits of a finished bank."""
    if list(bank.ids) != [record["request"]["edit_id"] for record in records]:
        raise MegaValueError(
            f"{place} must hold the bank that the checkpoint belongs to, but its edits are others; start a new fit."
        )
    empty = edits_from([{**record, "steps": 0} for record in records], {})
    return [
        replace(edit, steps=tuple({site: maps[row] for site, maps in bank.maps.items()} for row in bank.rows(i)))
        for i, edit in enumerate(empty)
    ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
