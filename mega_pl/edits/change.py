"""What happens to a bank, one change after the other, each with what it takes to undo it to the bit.

Every change puts new edits behind the old ones and takes some of the old ones out. So its record is the names of the
new ones, and the lost ones themselves with their places: a history costs what the edits took that the bank has lost.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from mega_pl.errors import MegaValueError
from mega_pl.functional import join

if TYPE_CHECKING:
    from mega_pl.edits.bank import EditBank

Operation = Literal["add", "merge", "replace", "remove"]


@dataclass(frozen=True, eq=False)
class Change:
    """One change of a bank.

    Args:
        operation: What was asked for.
        new: Ids of the edits that it put behind the others.
        places: Where the edits that it took out had been, in ascending order.
        lost: These edits, a bank without history; None if it took none out.
    """

    operation: Operation
    new: tuple[str, ...] = ()
    places: tuple[int, ...] = ()
    lost: EditBank | None = None

    def __str__(self) -> str:
        lost = self.lost.ids if self.lost else ()
        parts = [f"{sign}{', '.join(ids)}" for sign, ids in (("+", self.new), ("-", lost)) if ids]
        return " ".join([self.operation, *parts])


def subset(bank: EditBank, edits: Sequence[int]) -> EditBank:
    """Some edits of a bank, by index and in that order, with its history."""
    rows = [row for edit in edits for row in bank.rows(edit)]
    return replace(
        bank,
        requests=tuple(bank.requests[edit] for edit in edits),
        objects=tuple(bank.objects[edit] for edit in edits),
        missed={name: bank.missed[name] for edit in edits if (name := bank.ids[edit]) in bank.missed},
        digests=tuple(bank.digests[edit] for edit in edits),
        maps={site: maps.select(rows) for site, maps in bank.maps.items()},
        router=bank.router.select(edits),
    )


def both(bank: EditBank, other: EditBank) -> EditBank:
    """The edits of a bank and then those of another, whatever they are called."""
    return replace(
        bank,
        requests=(*bank.requests, *other.requests),
        objects=(*bank.objects, *other.objects),
        missed={**bank.missed, **other.missed},
        digests=(*bank.digests, *other.digests),
        maps={site: join([maps, other.maps[site]]) for site, maps in bank.maps.items()},
        router=bank.router.merge(other.router),
    )


def changed(bank: EditBank, operation: Operation, gone: Collection[int], more: EditBank | None = None) -> EditBank:
    """A bank with more edits and without some of its own, by index, and with the change in its history."""
    places = tuple(sorted(gone))
    whole = bank if more is None else both(bank, more)
    change = Change(
        operation,
        () if more is None else more.ids,
        places,
        replace(subset(bank, places), history=()) if places else None,
    )
    kept = [edit for edit in range(len(whole)) if edit not in set(places)]
    return replace(subset(whole, kept), history=(*bank.history, change))


def undone(bank: EditBank) -> EditBank:
    """A bank before its last change."""
    *earlier, last = bank.history
    count = len(bank) - len(last.new)
    old = replace(subset(bank, range(count)), history=tuple(earlier))
    if last.lost is None:
        return old
    kept, lost = iter(range(count)), dict(zip(last.places, range(count, count + len(last.places)), strict=True))
    order = [lost[place] if place in lost else next(kept) for place in range(count + len(lost))]
    return subset(both(old, last.lost), order)


def check_alike(bank: EditBank, other: EditBank) -> None:
    """Refuse a bank whose edits cannot be in force with those of another.

    Raises:
        ValueError: Naming the first thing in which they differ.
    """
    own, others = (
        {
            **of.backbone,
            "strength": of.strength,
            "sites": ", ".join(map(str, of.maps)),
            "maps.dtype": next(iter(of.maps.values())).basis.dtype,
        }
        for of in (bank, other)
    )
    for name in own:
        if own[name] != others.get(name) and name not in ("name", "revision"):
            raise MegaValueError(
                f"banks must have the same `{name}` to be merged, but got {own[name]} and {others.get(name)}."
            )
