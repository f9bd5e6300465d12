"""Whether the maps of an edit are those that were fitted: a digest of each, compared when they are first used.

A bank of many edits opens at once, because its maps are left in their file until an edit is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from mega_pl.backbone import Site
from mega_pl.errors import MegaValueError
from mega_pl.functional import Transports

if TYPE_CHECKING:
    from mega_pl.edits.bank import EditBank

PARTS = ("shift", "basis", "matrix", "center", "ranks")
"""The tensors of maps."""


def digests_of(bank: EditBank, edits: Sequence[int]) -> tuple[str, ...]:
    """SHA-256 of the maps of some edits, by index."""
    return tuple(_digest(bank.maps, bank.rows(edit)) for edit in edits)


def check_intact(bank: EditBank, edits: Sequence[int]) -> None:
    """Refuse edits whose maps are not what they were when they were written, or not finite.

    Raises:
        ValueError: Naming the first such edit.
    """
    for edit, digest in zip(edits, digests_of(bank, edits), strict=True):
        if digest != bank.digests[edit]:
            raise MegaValueError(
                f"the maps of edit {bank.ids[edit]!r} must be as they were written, but they are damaged; save the "
                "bank again where it came from, or remove the edit."
            )
        for site, maps in bank.maps.items():
            if not all(bool(t.isfinite().all()) for row in bank.rows(edit) for t in maps[row].tensors):
                raise MegaValueError(f"the maps of edit {bank.ids[edit]!r} must be finite, but are not at {site}.")


def _digest(maps: Mapping[Site, Transports], rows: range) -> str:
    found = hashlib.sha256()
    for site, of_site in maps.items():
        for row in rows:
            found.update(f"{site} {int(of_site.ranks[row])}".encode())
            for tensor in of_site[row].tensors:
                found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
