"""A fit in a checkpoint: what it takes to go on, small however much has been fitted where that has files of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mega_pl.edits import EditBank
from mega_pl.edits.storage import bank_config, bank_fields, bank_tensors
from mega_pl.errors import MegaValueError
from mega_pl.fitting.fitter import EditFitter, FittedEdit, settings
from mega_pl.fitting.shards import edits_from, edits_state, read_shards

SHARDS, BANK = "fitted", "edits"
"""Folders of a run: edits as they are fitted, and the finished bank."""

SETTINGS = ("maps", "refine", "prompts")
"""What an edit's maps hang on, besides the backbone and the sites."""


def fit_state(fitter: EditFitter, bank: EditBank | None, folder: Path | None) -> dict[str, Any]:
    """What it takes to go on with a fit, for `torch.save` without pickled code.

    Args:
        fitter: What has fitted edits.
        bank: The bank of them, if it is complete.
        folder: The run's, where it keeps shards and in the end the bank; None puts all of it into the state.
    """
    chosen = settings(fitter.backbone, fitter.config)
    state: dict[str, Any] = {
        "backbone": dict(fitter.backbone.fingerprint),
        "sites": [str(site) for site in fitter.sites],
        "settings": {name: chosen[name] for name in (*SETTINGS, "router")},
        "folder": None if folder is None else str(folder),
    }
    if folder is not None and bank is None:
        return state
    records, tensors = edits_state(list(fitter.fitted.values()))
    state["records"] = records
    if folder is None:
        state["tensors"] = tensors
    if folder is None and bank is not None:
        state["bank"] = {"config": bank_config(bank), "tensors": bank_tensors(bank)}
    return state


def restore_fit(fitter: EditFitter, state: dict[str, Any], folder: Path | None) -> None:
    """Give a fitter what had been fitted.

    Args:
        fitter: Of the same backbone, sites and settings; another router is fitted again.
        state: Of `fit_state`.
        folder: Where the run lives now; by default where it lived.

    Raises:
        ValueError: Naming the first thing that is not as it was, or a file that is missing or damaged.
    """
    now = fit_state(EditFitter(fitter.backbone, fitter.config), None, Path())
    for part in ("backbone", "settings"):
        for name, value in state[part].items():
            if name != "router" and now[part][name] != value:
                raise MegaValueError(
                    f"`{name}` must be what the checkpoint's edits were fitted with, {_short(value)}, but got "
                    f"{_short(now[part][name])}; start a new fit without `ckpt_path`."
                )
    if now["sites"] != state["sites"]:
        raise MegaValueError(
            f"`sites` must be those of the checkpoint's edits, {', '.join(state['sites'])}, but got "
            f"{', '.join(now['sites'])}; start a new fit without `ckpt_path`."
        )
    same_router = now["settings"]["router"] == state["settings"]["router"]
    place = folder or Path(state["folder"] or "")
    if "tensors" in state:
        fitter.keep(edits_from(state["records"], state["tensors"]))
        if "bank" in state and same_router:
            fitter.adopt(EditBank(**bank_fields(state["bank"]["config"], state["bank"]["tensors"])))
    elif "records" in state:
        bank = EditBank.from_pretrained(place / BANK)
        fitter.keep(_edits_of(bank, state["records"], place / BANK))
        if same_router:
            fitter.adopt(bank)
    else:
        fitter.keep(read_shards(place / SHARDS))


def _edits_of(bank: EditBank, records: list[dict[str, Any]], place: Path) -> list[FittedEdit]:
    """The edits of a finished bank."""
    if list(bank.ids) != [record["request"]["edit_id"] for record in records]:
        raise MegaValueError(
            f"{place} must hold the bank that the checkpoint belongs to, but its edits are others; start a new fit."
        )
    empty = edits_from([{**record, "steps": 0} for record in records], {})
    ends = [*bank.places[1:], sum(len(ids) + 1 for ids in bank.objects)]
    return [
        FittedEdit(edit.request, edit.followed, tuple({s: m[row] for s, m in bank.maps.items()} for row in range(a, b)))
        for edit, a, b in zip(empty, bank.places, ends, strict=True)
    ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
