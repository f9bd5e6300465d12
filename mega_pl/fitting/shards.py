"""Fitted edits on disk: some in each file, written as they are ready, so that a fit is never lost nor written twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mega_pl.backbone import Site
from mega_pl.edits.storage import request_from
from mega_pl.edits.tensor_files import damaged, read_tensor_file, write_tensor_file
from mega_pl.fitting.fitter import FittedEdit
from mega_pl.functional import Transport


def write_shard(folder: Path, edits: Sequence[FittedEdit], rank: int = 0) -> Path:
    """Write edits into a new file of a folder; it appears complete or not at all.

    Args:
        folder: Where shards live.
        edits: At least one.
        rank: Of the process; no other writes files of this rank.

    Returns:
        The file.
    """
    path = folder / f"{len(list(folder.glob(f'*-{rank:04}.safetensors'))):08}-{rank:04}.safetensors"
    records, tensors = edits_state(edits)
    write_tensor_file(path, tensors, {"edits": records})
    return path


def read_shards(folder: Path) -> list[FittedEdit]:
    """The edits of all files of a folder, in the order in which they were written; tensors are read when used.

    Raises:
        ValueError: If a file is damaged.
    """
    edits = []
    for path in sorted(folder.glob("[!.]*.safetensors")):
        tensors, facts = read_tensor_file(path, "fitted edits")
        try:
            edits += edits_from(facts["edits"], tensors)
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(path, "fitted edits", error) from error
    return edits


def clear_shards(folder: Path) -> None:
    """Remove the files of a folder that hold fitted edits, and the folder if nothing else is in it."""
    for path in folder.glob("*.safetensors"):
        path.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def edits_state(edits: Sequence[FittedEdit]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Edits as records for JSON, and their maps as tensors by the edit's place, step, site and part."""
    records = [{"request": asdict(e.request), "followed": asdict(e.followed), "steps": len(e.steps)} for e in edits]
    return records, {
        f"{i}.{step}.{site}.{name}": tensor.detach().cpu().contiguous()
        for i, edit in enumerate(edits)
        for step, maps in enumerate(edit.steps)
        for site, transport in maps.items()
        for name, tensor in vars(transport).items()
    }


def edits_from(records: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> list[FittedEdit]:
    """Edits again."""
    parts: dict[tuple[int, int, Site], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        place, step, kind, layer, name = key.split(".")
        parts.setdefault((int(place), int(step), Site.parse(f"{kind}.{layer}")), {})[name] = tensor
    steps: list[list[dict[Site, Transport]]] = [[{} for _ in range(record["steps"])] for record in records]
    for (edit, step_of, site), of_map in sorted(parts.items(), key=lambda item: item[0]):
        steps[edit][step_of][site] = Transport(**of_map)
    return [
        FittedEdit(request_from(record["request"]), request_from(record["followed"]), tuple(of_edit))
        for record, of_edit in zip(records, steps, strict=True)
    ]
