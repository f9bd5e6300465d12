"""The rows of a protocol: a test, and what both models answer to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor


class OfEdit(Protocol):
    """A test of an edit."""

    @property
    def edit_id(self) -> str:
        """The edit that the test belongs to."""


T = TypeVar("T", bound=OfEdit)
A = TypeVar("A")


@dataclass(frozen=True)
class Trial(Generic[T, A]):
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


def measured(
    trials: Sequence[Trial[T, A]], measure: Callable[[list[T], list[A]], Tensor]
) -> tuple[Tensor, Tensor, list[str]]:
    """Measure both models' answers.

    Args:
        trials: N of them.
        measure: Maps tests and answers to outcomes (N,).

    Returns:
        The edited and the bare model's outcomes, and the N edit ids: what a score is made of.
    """
    tests = [trial.test for trial in trials]
    edited, bare = [trial.edited for trial in trials], [trial.bare for trial in trials]
    return measure(tests, edited), measure(tests, bare), [test.edit_id for test in tests]
