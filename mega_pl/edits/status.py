"""What a bank holds, as a table for people."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from mega_pl.backbone import Backbone

if TYPE_CHECKING:
    from mega_pl.edits.bank import EditBank

BATCH = 32
"""Prompts that are answered together."""


def status(bank: EditBank, misses: Collection[str]) -> str:
    """A table in Markdown: a line about the whole, and a line an edit.

    Args:
        bank: The bank.
        misses: Ids of edits that do not take.
    """
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
        cells += [_size((len(ids) + 1) * row), "missed" if request.edit_id in misses else ""]
        lines.append(table_row(cells))
    return "\n".join(lines)


@torch.no_grad()
def missed(bank: EditBank, backbone: Backbone) -> set[str]:
    """The edits whose own prompt the router leaves bare or takes for another's, or whose object is not written whole.

    Args:
        bank: The bank.
        backbone: The bare model.
    """
    found: set[str] = set()
    for start in range(0, len(bank), BATCH):
        requests = bank.requests[start : start + BATCH]
        wanted = [backbone.answer_ids(request.filled, request.target_new) for request in requests]
        encoded = backbone.encode([request.filled for request in requests])
        with bank.apply(backbone) as use:
            ids = backbone.model.generate(
                input_ids=encoded.input_ids,
                attention_mask=encoded.attention_mask,
                max_new_tokens=max(map(len, wanted)),
                do_sample=False,
                pad_token_id=backbone.tokenizer.pad_token_id,
            )
        written = ids[:, encoded.input_ids.shape[1] :].tolist()
        for request, fired, answer, tokens in zip(requests, use.fired, wanted, written, strict=True):
            if fired != request.edit_id or tokens[: len(answer)] != answer:
                found.add(request.edit_id)
    return found


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
