"""``affine``: dense affine maps in safetensors, which any runtime can apply."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mega_pl.edits.export.maps import maps_of
from mega_pl.edits.storage import write_tensors
from mega_pl.errors import MegaValueError
from mega_pl.functional import affine
from mega_pl.functional.text import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mega_pl.edits.bank import EditBank

MEANING = (
    "KIND.LAYER.STEP.weight W (D, D) and .bias b (D,) move the activation h at that site to W h + b, at the prompt's "
    "last token (step 0) and at the token `object[step - 1]` after it; in a row only while the object is written."
)


def check_dense(bank: EditBank, edits: Sequence[int], lossy: bool, max_gib: float) -> str:
    """Refuse edits whose dense maps take more than a number of GiB; nothing is ever lost.

    Raises:
        ValueError: Saying what they take.
    """
    count = sum(len(bank.objects[edit]) + 1 for edit in edits)
    size = sum(4 * count * maps.shift.shape[1] * (maps.shift.shape[1] + 1) for maps in bank.maps.values()) / 2**30
    if size > max_gib:
        raise MegaValueError(
            f"`max_gib` must be at least {size:.2f} for {counted(len(edits), 'edit')} as dense maps, but got "
            f"{max_gib:g}; name fewer `edits`, allow more, or take the format easysteer."
        )
    return ""


def write_dense(bank: EditBank, edit: int, path: Path) -> None:
    """Write the maps of an edit to a file, which holds them all in memory at once."""
    tensors: dict[str, Tensor] = {}
    for part in maps_of(bank, edit):
        dense = affine(part.transport, bank.strength)
        tensors |= {f"{part.site}.{part.step}.weight": dense.weight, f"{part.site}.{part.step}.bias": dense.bias}
    write_tensors(tensors, path, {"format": "pt"})
