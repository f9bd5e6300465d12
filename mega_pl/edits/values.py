"""Values that are read from files: each of its type and shape, or refused by its name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from mega_pl.errors import MegaValueError

Json = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


def member(of: Any, name: str, kind: Any) -> Any:  # noqa: ANN401
    """A member of a JSON object, of a type."""
    if not isinstance(of, Mapping) or name not in of:
        raise MegaValueError(f"`{name}` must be there, but is missing in {short(of)}.")
    if not _fits(of[name], kind):
        raise MegaValueError(f"`{name}` must be {getattr(kind, '__name__', kind)}, but got {short(of[name])}.")
    return of[name]


def check_record(value: Any, kind: type, name: str) -> None:  # noqa: ANN401
    """Refuse what does not give a dataclass its fields."""
    hints = _hints(kind)
    if not isinstance(value, Mapping) or not value.keys() <= hints.keys():
        raise MegaValueError(f"`{name}` must hold the fields of {kind.__name__}, but got {short(value)}.")
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


def check_indices(name: str, groups: Sequence[Sequence[int]], count: int) -> None:
    """Refuse numbers that are no places among so many."""
    for group in groups:
        if group and not 0 <= min(group) <= max(group) < count:
            raise MegaValueError(f"`{name}` must lie in [0, {count}), but got {short(list(group))}.")


def tensor(tensors: Tensors, name: str, *shape: int | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of a shape and a dtype; finite."""
    tensor = shaped(tensors, name, *shape, dtype=dtype)
    if not math.isfinite(float(tensor.abs().sum(dtype=torch.float64))):
        raise MegaValueError(f"`{name}` must be finite, but is not.")
    return tensor


def shaped(tensors: Tensors, name: str, *shape: int | None, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of a shape, None for any size, and a dtype."""
    if name not in tensors:
        raise MegaValueError(f"the tensor `{name}` must be there, but is missing.")
    tensor = tensors[name]
    fits = tensor.dim() == len(shape) and all(n in (None, size) for n, size in zip(shape, tensor.shape, strict=False))
    if tensor.dtype != dtype or not fits:
        raise MegaValueError(f"`{name}` must be {dtype} of {shape}, but got {tensor.dtype} of {tuple(tensor.shape)}.")
    return tensor


def short(value: object) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
