"""What a bank holds, as a table for people."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mega_pl.edits.bank import EditBank


def status(bank: EditBank) -> str:
    """A table in Markdown: a line about the whole, and a line an edit."""
    row = sum(t[0].nbytes for of in bank.maps.values() for t in (of.mean, of.shift, of.basis, of.matrix, of.ranks))
    router = sum(tensor.nbytes for tensor in bank.router.state()[1].values())
    count = sum(len(ids) + 1 for ids in bank.objects)
    lines = [
        f"{len(bank)} edits of {bank.backbone['name'] or 'a model'} at {', '.join(map(str, bank.maps))}; "
        f"maps {_size(count * row)}, {bank.router.kind} router {_size(router)}",
        f"history: {'; '.join(map(str, bank.history)) or 'as fitted'}",
        "",
        "| edit | prompt | before | after | maps | size | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for request, ids in zip(bank.requests, bank.objects, strict=True):
        cells = [request.edit_id, request.filled, request.target_true, request.target_new, str(len(ids) + 1)]
        cells += [_size((len(ids) + 1) * row), "not whole" if request.edit_id in bank.missed else ""]
        lines.append(table_row(cells))
    return "\n".join(lines)


def table_row(cells: Collection[str]) -> str:
    """A line of a Markdown table, whatever the cells hold."""
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} MB"
