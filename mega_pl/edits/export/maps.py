"""The maps of one edit of a bank, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mega_pl.backbone import Site
from mega_pl.functional import Transport

if TYPE_CHECKING:
    from mega_pl.edits.bank import EditBank


@dataclass(frozen=True, eq=False)
class EditMap:
    """What an edit does at one site and one token.

    Args:
        site: Where in the model.
        step: 0 at the prompt's last token, j at the j-th token of the object after it.
        transport: The map, on the CPU.
    """

    site: Site
    step: int
    transport: Transport


def maps_of(bank: EditBank, edit: int) -> Iterator[EditMap]:
    """The maps of an edit, steps in order and in each step the sites in the order of a forward pass."""
    for step, row in enumerate(bank.rows(edit)):
        for site, maps in bank.maps.items():
            yield EditMap(site, step, maps[row].cast(device="cpu"))
