"""Whether files hold a bank: every value that is read is of its type, in its range, and fits the others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from mega_pl.backbone import Site
from mega_pl.edits.change import Operation
from mega_pl.edits.integrity import PARTS
from mega_pl.edits.request import EditRequest
from mega_pl.edits.routing import RouterConfig
from mega_pl.edits.routing.matcher import EVIDENCE
from mega_pl.errors import MegaValueError

Json = Mapping[str, Any]
Tensors = Mapping[str, Tensor]

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
        raise MegaValueError(
            f"`sites` must be sites of the backbone in their order, but got {_short(config['sites'])}."
        )


def check_missed(part: Json, ids: Collection[str]) -> None:
    """Refuse what does not say of some edits what is written instead of their objects.

    Raises:
        ValueError: If it is not texts by ids.
    """
    missed = member(part, "missed", dict)
    if not set(missed) <= set(ids) or not all(isinstance(text, str) for text in missed.values()):
        raise MegaValueError(f"`missed` must give edits of the bank a text, but got {_short(missed)}.")


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
    _check_indices("objects", objects, config["backbone"]["vocab"])
    count, width = sum(len(ids) + 1 for ids in objects), config["backbone"]["width"]
    for site in config["sites"]:
        _check_maps(f"maps.{site}", tensors, count, width)
    router = member(part, "router", dict)
    kind = member(router, "kind", str)
    if kind not in _ROUTERS:
        raise MegaValueError(f"`router.kind` of a bank must be one of {', '.join(_ROUTERS)}, but got {kind!r}.")
    known = _ROUTERS[kind](router, tensors, len(edits), config["backbone"]["vocab"])
    known |= {f"maps.{site}.{name}" for site in config["sites"] for name in PARTS}
    if tensors.keys() != known:
        raise MegaValueError(f"there must be no other tensors, but got {_short(sorted(tensors.keys() ^ known))}.")


def check_history(history: Sequence[Json], ids: Sequence[str]) -> None:
    """Refuse changes that cannot have led to the edits of a bank, given by their ids."""
    if not isinstance(history, list):
        raise MegaValueError(f"`history` must be a list, but got {_short(history)}.")
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
        _check_indices("places", [places], count + len(gone))
        now = now[:count]
        for place, edit_id in zip(places, gone, strict=True):
            now.insert(place, edit_id)


def member(of: Any, name: str, kind: Any) -> Any:  # noqa: ANN401
    """A member of a JSON object, of a type."""
    if not isinstance(of, Mapping) or name not in of:
        raise MegaValueError(f"`{name}` must be there, but is missing in {_short(of)}.")
    if not _fits(of[name], kind):
        raise MegaValueError(f"`{name}` must be {getattr(kind, '__name__', kind)}, but got {_short(of[name])}.")
    return of[name]


def check_record(value: Any, kind: type, name: str) -> None:  # noqa: ANN401
    """Refuse what does not give a dataclass its fields."""
    hints = _hints(kind)
    if not isinstance(value, Mapping) or not value.keys() <= hints.keys():
        raise MegaValueError(f"`{name}` must hold the fields of {kind.__name__}, but got {_short(value)}.")
    for field in dataclasses.fields(kind):
        if field.name in value or field.default is dataclasses.MISSING:
            member(value, field.name, hints[field.name])


@cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return get_type_hints(kind)


def _fits(value: object, kind: Any) -> bool:  # noqa: ANN401
    """Whether a value is of a type; JSON makes lists of tuples, and numbers are finite."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is list or (origin is tuple and args[-1] is Ellipsis):
        return isinstance(value, list | tuple) and all(_fits(item, args[0]) for item in value)
    if origin is tuple:
        return isinstance(value, list | tuple) and len(value) == len(args) and all(map(_fits, value, args))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, args[1]) for item in value.values())
    if origin in (Union, UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if kind is float:
        return type(value) in (int, float) and -1e300 < value < 1e300  # type: ignore[operator]
    return kind is Any or type(value) is kind


def _check_indices(name: str, groups: Sequence[Sequence[int]], count: int) -> None:
    for group in groups:
        if group and not 0 <= min(group) <= max(group) < count:
            raise MegaValueError(f"`{name}` must lie in [0, {count}), but got {_short(list(group))}.")


def _check_maps(name: str, tensors: Tensors, count: int, width: int) -> None:
    """Refuse tensors that are not of an edit's maps at a site, by their shapes; their values are not read."""
    ranks = _tensor(tensors, f"{name}.ranks", count, dtype=torch.int64)
    if count and not 0 <= int(ranks.min()) <= int(ranks.max()) <= width:
        raise MegaValueError(
            f"`{name}.ranks` must lie in [0, {width}], but got {int(ranks.min())} to {int(ranks.max())}."
        )
    rows, numbers = int(ranks.sum()), int(ranks.square().sum())
    for part, shape in (("mean", (count, width)), ("shift", (count, width)), ("basis", (rows, width))):
        _shaped(tensors, f"{name}.{part}", *shape)
    _shaped(tensors, f"{name}.matrix", numbers)


def _tensor(tensors: Tensors, name: str, *shape: int | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of a shape and a dtype; finite."""
    tensor = _shaped(tensors, name, *shape, dtype=dtype)
    if not math.isfinite(float(tensor.abs().sum(dtype=torch.float64))):
        raise MegaValueError(f"`{name}` must be finite, but is not.")
    return tensor


def _shaped(tensors: Tensors, name: str, *shape: int | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of a shape, None for any size, and a dtype."""
    if name not in tensors:
        raise MegaValueError(f"the tensor `{name}` must be there, but is missing.")
    tensor = tensors[name]
    fits = tensor.dim() == len(shape) and all(n in (None, size) for n, size in zip(shape, tensor.shape, strict=False))
    if tensor.dtype != dtype or not fits:
        raise MegaValueError(f"`{name}` must be {dtype} of {shape}, but got {tensor.dtype} of {tuple(tensor.shape)}.")
    return tensor


def _check_content(router: Json, tensors: Tensors, count: int, vocab: int) -> set[str]:
    """Refuse a content router that does not fit its edits; give the names of its tensors."""
    check_record(member(router, "config", dict), RouterConfig, "router.config")
    shrinkage = RouterConfig(**router["config"]).shrinkage
    if not 0 < shrinkage <= 1:
        raise MegaValueError(f"`shrinkage` must lie in (0, 1], but got {shrinkage}.")
    matcher, scopes = member(router, "matcher", dict), member(router, "scopes", dict)
    relations = len(member(matcher, "relations", list[str]))
    of_relations = [member(matcher, name, list[list[str]]) for name in ("nouns", "words")]
    of_relations += [member(router, "phrasings", list[list[str]])]
    of_relations += [member(scopes, "types", list[tuple[list[str], str]])]
    weights = member(matcher, "weights", list[float])
    for name in ("bias", "threshold", "open_threshold"):
        member(matcher, name, float)
    texts, kind = member(scopes, "texts", list[str]), list[tuple[list[int], bool, list[int], list[int], list[int]]]
    edits = member(scopes, "edits", kind)
    if {relations} != {len(of) for of in of_relations} or len(weights) != len(EVIDENCE) or len(edits) != count:
        raise MegaValueError("the router must have as many relations, weights and scopes as it needs, but has not.")
    if not all(router["phrasings"]) or not all(edit[2] for edit in edits) or len(set(texts)) != len(texts):
        raise MegaValueError(
            "each relation and each scope of the router must have a wording of its own, but one has none."
        )
    _check_indices("router.scopes.edits", [edit[0] for edit in edits], relations)
    _check_indices("router.scopes.edits", [places for edit in edits for places in edit[2:]], len(texts))
    width, space = _tensor(tensors, "router.projection", None, None).shape
    _tensor(tensors, "router.mean", width)
    owners = _tensor(
        tensors, "router.owners", len(_tensor(tensors, "router.references", None, space)), dtype=torch.int64
    )
    _check_indices("router.owners", [owners.tolist()], relations)
    _tensor(tensors, "router.questions", len(texts), space)
    names = {"router.projection", "router.mean", "router.owners", "router.references", "router.questions"}
    heard = member(router, "answer_weights", tuple[float, float] | None)
    if min([*weights, *(heard or [])]) < 0:
        raise MegaValueError("`weights` and `answer_weights` of the router must be at least 0, but one is not.")
    if heard is None:
        return names
    _tensor(tensors, "router.answer_base", count)
    tokens = _tensor(tensors, "router.answer_tokens", count, dtype=torch.int64)
    _check_indices("router.answer_tokens", [tokens.tolist()], vocab)
    return names | {"router.answer_base", "router.answer_tokens"}


def _check_centre(router: Json, tensors: Tensors, count: int, vocab: int) -> set[str]:
    """Refuse a centre router that does not fit its edits; give the names of its tensors."""
    member(router, "layer", int)
    member(router, "encoder", str | None)
    _tensor(tensors, "router.centres", count, None)
    _tensor(tensors, "router.thresholds", count)
    return {"router.centres", "router.thresholds"}


_ROUTERS: dict[str, Callable[[Json, Tensors, int, int], set[str]]] = {
    "content": _check_content,
    "centre": _check_centre,
}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
