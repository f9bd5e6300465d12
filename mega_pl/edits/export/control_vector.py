"""``gguf``: control vectors of llama.cpp, one for each edit; little of an edit fits into them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mega_pl.edits.export.maps import maps_of
from mega_pl.errors import MegaValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mega_pl.edits.bank import EditBank

MEANING = "direction.N is added to the output of block N (0-based) at every token, by llama.cpp's --control-vector."
LOST = (
    "a control vector keeps one constant shift a layer; lost are the routing (it acts on every prompt and token), the "
    "low-rank part of each map and the steps after the first"
)


def check_control_vector(bank: EditBank, edits: Sequence[int], lossy: bool, max_gib: float) -> str:
    """Refuse what llama.cpp cannot read, and what nobody should take for the edit itself; tell what is lost.

    Raises:
        ValueError: Unless ``lossy``; if the package gguf is missing, or the bank steers block 0.
    """
    if not lossy:
        raise MegaValueError(f"a control vector must be asked for with --lossy, but it was not: {LOST}.")
    if any(site.layer == 0 for site in bank.maps):
        raise MegaValueError(
            "control vectors must lie in blocks from 1 on, but the bank steers block 0; fit it elsewhere."
        )
    if importlib.util.find_spec("gguf") is None:
        raise MegaValueError(
            "control vectors must be written by the package gguf, but it is not installed; pip install 'mega_pl[gguf]'."
        )
    return LOST


def shifts(bank: EditBank, edit: int) -> dict[int, Tensor]:
    """By block the constant (D,) float32 that an edit adds at a prompt's last token: what it does to the mean."""
    found: dict[int, Tensor] = {}
    for part in maps_of(bank, edit):
        if part.step == 0:
            shift = bank.strength * part.transport.shift.float()
            found[part.site.layer] = found.get(part.site.layer, torch.zeros_like(shift)) + shift
    return found


def write_control_vector(bank: EditBank, edit: int, path: Path) -> None:
    """Write the control vector of an edit."""
    from gguf import GGUFWriter

    beside = path.with_name(f".{path.name}")
    writer = GGUFWriter(beside, "controlvector")
    writer.add_string("controlvector.model_hint", str(bank.backbone["model_type"]))
    writer.add_uint32("controlvector.layer_count", int(bank.backbone["layers"] or 0))
    for layer, shift in shifts(bank, edit).items():
        writer.add_tensor(f"direction.{layer}", shift.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(beside, path)
