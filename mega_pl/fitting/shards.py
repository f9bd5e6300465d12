"""Fitted edits on disk: some in each file, written as they are ready, so that a fit is never lost nor written twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mega_pl.backbone import Site
from mega_pl.edits.storage import request_from, write_tensors
from mega_pl.errors import MegaValueError
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
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(list(folder.glob(f'*-{rank:04}.safetensors'))):08}-{rank:04}.safetensors"
    records, tensors = edits_state(edits)
    beside = path.with_name(f".{path.name}")
    write_tensors(tensors, beside, {"edits": json.dumps(records, ensure_ascii=False)})
    os.replace(beside, path)
    return path


def read_shards(folder: Path) -> list[FittedEdit]:
    """The edits of all files of a folder, in the order in which they were written; tensors are read when used.

    Raises:
        ValueError: If a file is damaged.
    """
    edits = []
    for path in sorted(folder.glob("[!.]*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                records = json.loads(file.metadata()["edits"])
            edits += edits_from(records, load_file(path))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise MegaValueError(
                f"{path} must hold fitted edits, but {reason}; delete it, and its edits are fitted again."
            ) from error
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
