"""What every protocol is: its tests, how they are asked, and the scores of what is answered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from mega_pl.asking import Edited
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.errors import MegaValueError
from mega_pl.metrics import Score

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Protocol(Generic[T, A, R]):
    """A way to judge edits, with columns of its own.

        bare = protocol.bare(backbone, cases)
        with editor.edit(backbone, requests) as edited:
            rows = protocol.rows(backbone, edited, cases, bare)
        scores = protocol.score(rows)

    Args:
        name: The protocol in files and tables.
        tests: The tests of a case; none where the case lacks what the protocol asks.
        ask_bare: Asks tests of the bare model, conditions included.
        ask: Asks tests of a model with edits in force.
        answer: What is asked gives, a dataclass of strings, numbers and tuples of them.
        row: Makes a row of a test and of what the bare and the edited model answer; `dataclasses.asdict` of it is
            ready for JSON.
        score: Makes scores of rows.
        headline: The columns that stand beside other protocols' in one table; all where none are named.
        lower_is_better: The columns that are better low.
    """

    name: str
    tests: Callable[[EditCase], Sequence[T]]
    ask_bare: Callable[[Backbone, Sequence[T]], list[A]]
    ask: Callable[[Backbone, Edited, Sequence[T]], list[A]]
    answer: type[A]
    row: Callable[[T, A, A], R]
    score: Callable[[Sequence[R]], dict[str, Score]]
    headline: tuple[str, ...] = ()
    lower_is_better: tuple[str, ...] = ()

    def bare(self, backbone: Backbone, cases: Sequence[EditCase]) -> list[A]:
        """What the bare model answers to the tests of cases; the same for every method."""
        return self.ask_bare(backbone, self._all(cases))

    def rows(self, backbone: Backbone, edited: Edited, cases: Sequence[EditCase], bare: Sequence[A]) -> list[R]:
        """Ask the tests of cases of the edited model.

        Args:
            backbone: The model, within its edits.
            edited: The edits in force.
            cases: What to ask about.
            bare: What `bare` gave for these cases.

        Returns:
            A row for each test.

        Raises:
            ValueError: If `bare` belongs to other cases.
        """
        tests = self._all(cases)
        if len(bare) != len(tests):
            raise MegaValueError(f"`bare` must hold an answer for each of {len(tests)} tests, but got {len(bare)}.")
        return [self.row(*columns) for columns in zip(tests, bare, self.ask(backbone, edited, tests), strict=True)]

    def _all(self, cases: Sequence[EditCase]) -> list[T]:
        return [test for case in cases for test in self.tests(case)]
