"""The rows of a protocol: a test, and what both models answer to it; and what they are worth."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor


class OfEdit(Protocol):
    """A test of an edit."""

    @property
    def edit_id(self) -> str:
        """The edit that the test belongs to."""


T = TypeVar("T", bound=OfEdit)
A = TypeVar("A")


@dataclass(frozen=True)
class EvalRow(Generic[T, A]):
    """A test with two answers; `dataclasses.asdict` makes it a line of `cases.jsonl`.

    It holds what the models said, not what was made of it, so that any score can be recomputed.

    Args:
        test: The test.
        bare: What the bare model answers.
        edited: What the edited model answers.
    """

    test: T
    bare: A
    edited: A


@dataclass(frozen=True)
class Outcomes:
    """What some rows are worth.

    Args:
        edited: (N,) numbers or truth values of the edited model.
        bare: (N,) the same of the bare model.
        edits: The N edit ids, or other names of what is drawn together by the bootstrap.
        notes: What a `Deferred` must know of each outcome, ready for JSON; empty, or N of them.
    """

    edited: Tensor
    bare: Tensor
    edits: list[str]
    notes: list[Any] = field(default_factory=list)


def outcomes(rows: Iterable[EvalRow[T, A]], judge: Callable[[T, A], float]) -> Outcomes:
    """Judge both models' answers.

    Args:
        rows: N of them.
        judge: The worth of an answer to a test.
    """
    kept = list(rows)
    edited, bare = (
        torch.tensor([judge(row.test, answer) for row, answer in zip(kept, side, strict=True)], dtype=torch.float64)
        for side in ([row.edited for row in kept], [row.bare for row in kept])
    )
    return Outcomes(edited, bare, [row.test.edit_id for row in kept])
