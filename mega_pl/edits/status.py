"""What a bank holds, as a table for people."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mega_pl.functional import Transports
from mega_pl.functional.text import counted

if TYPE_CHECKING:
    from mega_pl.edits.bank import EditBank


def status(bank: EditBank) -> str:
    """A table in Markdown: a line about the whole, and a line an edit."""
    sizes = map_sizes(bank)
    router = sum(tensor.nbytes for tensor in bank.router.state()[1].values())
    lines = [
        f"{counted(len(bank), 'edit')} of {bank.backbone['name'] or 'a model'} at {', '.join(map(str, bank.maps))}; "
        f"maps {size_text(sum(sizes))}, {bank.router.kind} router {size_text(router)}",
        f"history: {'; '.join(map(str, bank.history)) or 'as fitted'}",
        "",
        "| edit | prompt | before | after | maps | size | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for request, ids, size in zip(bank.requests, bank.objects, sizes, strict=True):
        cells = [request.edit_id, request.filled, request.target_true, request.target_new, str(len(ids) + 1)]
        cells += [size_text(size), "not whole" if request.edit_id in bank.missed else ""]
        lines.append(table_row(cells))
    return "\n".join(lines)


def map_sizes(bank: EditBank) -> list[int]:
    """Bytes of each edit's maps, in the order of the bank."""
    rows = torch.stack([_bytes_of(maps) for maps in bank.maps.values()]).sum(0)
    return [int(part.sum()) for part in torch.split(rows, [len(ids) + 1 for ids in bank.objects])]


def table_row(cells: Collection[str]) -> str:
    """A line of a Markdown table, whatever the cells hold."""
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _bytes_of(maps: Transports) -> Tensor:
    """Bytes (E,) of each map, told from its rank."""
    width, ranks = maps.shift.shape[1], maps.ranks
    vectors = width * (maps.shift.element_size() + ranks * maps.basis.element_size())
    return vectors + (ranks.square() + ranks) * maps.matrix.element_size() + ranks.element_size()


def size_text(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} MB"
