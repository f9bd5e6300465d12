"""Whether files hold a bank: every value that is read is of its type, in its range, and fits the others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, get_args

import torch

from mega_pl.backbone import Site
from mega_pl.edits.change import Operation
from mega_pl.edits.integrity import PARTS
from mega_pl.edits.request import EditRequest
from mega_pl.edits.routing import ROUTERS
from mega_pl.edits.values import Json, Tensors, check_indices, check_record, member, shaped, short, tensor
from mega_pl.errors import MegaValueError
from mega_pl.functional import BASIS_DTYPES, SHIFT_DTYPES

FINGERPRINT = {
    **{"name": str, "model_type": str, "tokenizer": str, "weights": str},
    **dict.fromkeys(("layers", "width", "heads", "vocab"), int),
}
"""What a bank says of its backbone, and of which type it is."""


def check_bank(config: Json) -> None:
    """Refuse what is no bank; `check_part` looks at its edits.

    Raises:
        ValueError: Naming the first value that cannot be.
    """
    backbone = member(config, "backbone", dict)
    for name, kind in FINGERPRINT.items():
        member(backbone, name, kind)
    member({"revision": None, **backbone}, "revision", str | None)
    member(config, "settings", dict)
    strength = member(config, "strength", float)
    if not 0 < strength <= 2:
        raise MegaValueError(f"`strength` must lie in (0, 2], but got {strength}.")
    sites = [Site.parse(site) for site in member(config, "sites", list[str])]
    if not sites or sorted(set(sites)) != sites or sites[-1].layer >= config["backbone"]["layers"]:
        raise MegaValueError(f"`sites` must be sites of the backbone in their order, but got {short(config['sites'])}.")


def check_missed(part: Json, ids: Collection[str]) -> None:
    """Refuse what does not say of some edits what is written instead of their objects.

    Raises:
        ValueError: If it is not texts by ids.
    """
    missed = member(part, "missed", dict)
    if not set(missed) <= set(ids) or not all(isinstance(text, str) for text in missed.values()):
        raise MegaValueError(f"`missed` must give edits of the bank a text, but got {short(missed)}.")


def check_part(part: Json, tensors: Tensors, config: Json) -> None:
    """Refuse edits, objects, maps and a router that do not go together.

    Args:
        part: Edits, their objects and a router.
        tensors: The maps and the router's tensors.
        config: The sound rest of a bank, for its sites and sizes.

    Raises:
        ValueError: Naming the first value that cannot be.
    """
    edits, objects = member(part, "edits", list), member(part, "objects", list[list[int]])
    for edit in edits:
        check_record(edit, EditRequest, "edits")
    ids = [edit.get("edit_id") for edit in edits]
    if not edits or None in ids or len(set(ids)) != len(ids):
        raise MegaValueError("`edits` must hold edits of different ids, but one is missing or comes twice.")
    if len(member(part, "digests", list[str])) != len(edits):
        raise MegaValueError(f"`digests` must be one for each of {len(edits)} edits, but got {len(part['digests'])}.")
    if len(objects) != len(edits):
        raise MegaValueError(f"`objects` must be one for each of {len(edits)} edits, but got {len(objects)}.")
    check_indices("objects", objects, config["backbone"]["vocab"])
    count, width = sum(len(ids) + 1 for ids in objects), config["backbone"]["width"]
    for site in config["sites"]:
        _check_maps(f"maps.{site}", tensors, count, width)
    router = member(part, "router", dict)
    kind = member(router, "kind", str)
    if kind not in ROUTERS:
        raise MegaValueError(f"`router.kind` of a bank must be one of {', '.join(ROUTERS)}, but got {kind!r}.")
    known = ROUTERS[kind].check_state(router, tensors, len(edits), config["backbone"]["vocab"])
    known |= {f"maps.{site}.{name}" for site in config["sites"] for name in PARTS}
    if tensors.keys() != known:
        raise MegaValueError(f"there must be no other tensors, but got {short(sorted(tensors.keys() ^ known))}.")


def check_history(history: Sequence[Json], ids: Sequence[str]) -> None:
    """Refuse changes that cannot have led to the edits of a bank, given by their ids."""
    if not isinstance(history, list):
        raise MegaValueError(f"`history` must be a list, but got {short(history)}.")
    now = list(ids)
    for change in reversed(history):
        operation = member(change, "operation", str)
        if operation not in get_args(Operation):
            raise MegaValueError(f"`operation` must be one of {', '.join(get_args(Operation))}, but got {operation!r}.")
        new, places = member(change, "new", list[str]), member(change, "places", list[int])
        lost = member(change, "lost", dict | None)
        gone = [] if lost is None else [member(e, "edit_id", str) for e in member(lost, "edits", list[dict[str, Any]])]
        count = len(now) - len(new)
        if (
            not 0 <= count <= len(now)
            or now[count:] != new
            or len(gone) != len(places)
            or sorted(set(places)) != places
        ):
            raise MegaValueError(f"`history` must lead to the edits of the bank, but its {operation!r} does not.")
        check_indices("places", [places], count + len(gone))
        now = now[:count]
        for place, edit_id in zip(places, gone, strict=True):
            now.insert(place, edit_id)


def _check_maps(name: str, tensors: Tensors, count: int, width: int) -> None:
    """Refuse tensors that are not of an edit's maps at a site, by their shapes; their values are not read."""
    ranks = tensor(tensors, f"{name}.ranks", count, dtype=torch.int64)
    if count and not 0 <= int(ranks.min()) <= int(ranks.max()) <= width:
        raise MegaValueError(
            f"`{name}.ranks` must lie in [0, {width}], but got {int(ranks.min())} to {int(ranks.max())}."
        )
    rows, numbers = int(ranks.sum()), int(ranks.square().sum())
    kept = getattr(tensors.get(f"{name}.basis"), "dtype", None)
    kind = next((kind for kind, dtype in BASIS_DTYPES.items() if dtype == kept), "float32")
    shaped(tensors, f"{name}.shift", count, width, dtype=SHIFT_DTYPES[kind])
    shaped(tensors, f"{name}.basis", rows, width, dtype=BASIS_DTYPES[kind])
    for part, size in (("matrix", numbers), ("center", rows)):
        shaped(tensors, f"{name}.{part}", size)
