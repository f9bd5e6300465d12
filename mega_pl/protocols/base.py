"""What every protocol is: its tests, how they are asked, its measures, and which of them stand for it in a table."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Generic, TypeVar

from torchmetrics import MetricCollection

from mega_pl.asking import BARE, Edited
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.errors import MegaValueError
from mega_pl.protocols.measures import Measure, Score
from mega_pl.protocols.rows import EvalRow

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Protocol(Generic[T, A, R]):
    """A way to judge edits, with columns of its own.

        protocol = PROTOCOLS["rome"].prepare(backbone, cases)
        bare = protocol.bare(backbone, cases)
        with editor.edit(backbone, requests) as edited:
            rows = protocol.rows(backbone, edited, cases, bare)
        scores = protocol.score(rows)

    Args:
        name: The protocol in files and tables: the name of its module.
        tests: The tests of a case; none where the case lacks what the protocol asks.
        ask: Asks tests of a model with edits in force.
        answer: What is asked gives, a dataclass of strings, numbers and tuples of them.
        measures: Makes the measures, by the names of their columns.
        headline: The columns that stand beside other protocols' in one table; all where none are named.
        ask_bare: Asks tests of the bare model, where it is asked more than an edited one, such as conditions.
        row: Makes a row of a test and of what the bare and the edited model answer; `dataclasses.asdict` of it is
            ready for JSON.
        oracle: Whether it tells routed edits what each test is about where they want to know.
        routing: Says by measure which shares of the prompts went to the right edit, to a wrong one (``wrong_edit``) and
            to none (``silent``); where no edit should answer, none is right.
        adapt: Gives the protocol for some cases, where what a case is asked depends on the others or on the backbone.
        adapted: Whether it is such a one, so that its answers belong to its tests and not to the cases alone.
    """

    name: str
    tests: Callable[[EditCase], Sequence[T]]
    ask: Callable[[Backbone, Edited, Sequence[T]], list[A]]
    answer: type[A]
    measures: Callable[[], dict[str, Measure]]
    headline: tuple[str, ...] = ()
    ask_bare: Callable[[Backbone, Sequence[T]], list[A]] | None = None
    row: Callable[[T, A, A], R] = EvalRow  # type: ignore[assignment]
    oracle: bool = False
    routing: Callable[[Sequence[R]], dict[str, dict[str, float]]] | None = None
    adapt: "Callable[[Backbone, Sequence[EditCase]], Protocol[T, A, R]] | None" = None
    adapted: bool = False

    @cached_property
    def lower_is_better(self) -> frozenset[str]:
        """The columns that are better low."""
        return frozenset(name for name, measure in self.measures().items() if measure.higher_is_better is False)

    def prepare(self, backbone: Backbone, cases: Sequence[EditCase]) -> "Protocol[T, A, R]":
        """The protocol with what it must know of all cases before it can ask about one; most need nothing.

        Args:
            backbone: The bare model.
            cases: All cases that it will judge.
        """
        return self.adapt(backbone, cases) if self.adapt else self

    def bare(self, backbone: Backbone, cases: Sequence[EditCase]) -> list[A]:
        """What the bare model answers to the tests of cases; the same for every method."""
        tests = self.all_tests(cases)
        return self.ask_bare(backbone, tests) if self.ask_bare else self.ask(backbone, BARE, tests)

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
        tests = self.all_tests(cases)
        if len(bare) != len(tests):
            raise MegaValueError(f"`bare` must hold an answer for each of {len(tests)} tests, but got {len(bare)}.")
        return [self.row(*columns) for columns in zip(tests, bare, self.ask(backbone, edited, tests), strict=True)]

    def metrics(self) -> MetricCollection:
        """The measures as live metrics, each to be updated with rows."""
        # With compute groups, measures of one class whose first batches agree would silently be merged for good.
        return MetricCollection(dict[str, Any](self.measures()), compute_groups=False)

    def scores(self, metrics: MetricCollection, *, seed: int = 0) -> dict[str, Score]:
        """What the metrics say of the rows of all processes, column by column.

        Args:
            metrics: What `metrics` gave, updated.
            seed: Of the bootstrap.
        """
        found: Any = metrics
        return {name: found[name].score(seed=seed) for name in self.measures()}

    def score(self, rows: Sequence[R], *, seed: int = 0) -> dict[str, Score]:
        """The scores of rows.

        Args:
            rows: One a test, in any order; all of an edit.
            seed: Of the bootstrap.
        """
        metrics = self.metrics()
        metrics.update(rows)
        return self.scores(metrics, seed=seed)

    def outcomes(self, row: R) -> dict[str, float]:
        """What the edited model's answer to one test is worth, by each measure that the test is part of.

        What other rows decide is left out: in `sake` a test counts whether its edit succeeds or not.

        Args:
            row: Of the protocol.
        """
        worth = {name: measure.outcomes([row]).edited.tolist() for name, measure in self._judges.items()}
        return {name: fmean(values) for name, values in worth.items() if values and all(map(math.isfinite, values))}

    @cached_property
    def _judges(self) -> dict[str, Measure]:
        return self.measures()

    def all_tests(self, cases: Sequence[EditCase]) -> list[T]:
        """The tests of cases, case by case."""
        return [test for case in cases for test in self.tests(case)]
