"""The live measures that every number of a protocol comes from, and the entries of `metrics.json` that they give.

A measure is a torchmetrics `Metric` that is updated with the rows of a protocol, picks those that it is about, and
keeps one outcome a test of the edited and of the bare model beside the edit's id, so that rows may come in batches cut
anywhere and on several processes. Ids are kept as text, not as digests: a bootstrap draws edits in the order of their
ids, and a refusal names them.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mega_pl.functional.statistics import arithmetic_mean, bootstrap_interval, edit_means, harmonic_mean
from mega_pl.protocols.rows import Outcomes

R = TypeVar("R")


@dataclass(frozen=True)
class Score:
    """One entry of `metrics.json`.

    Args:
        value: What the measure makes of the edited model, in its own unit; nan if nothing is counted.
        n: Number of what is counted: kept tests where every test counts once, edits where every edit does.
        ci95: Ends of the 95% bootstrap interval over edits.
        bare: The bare model's value on the same tests.
    """

    value: float
    n: int
    ci95: tuple[float, float]
    bare: float

    def to_json(self) -> dict[str, Any]:
        """The entry; JSON has no nan, so that null stands for it."""
        value, low, high, bare = (x if math.isfinite(x) else None for x in (self.value, *self.ci95, self.bare))
        return {"value": value, "n": self.n, "ci95": [low, high], "bare": bare}


NOT_AVAILABLE = Score(math.nan, 0, (math.nan, math.nan), math.nan)
"""The score of a measure that the data cannot tell."""


def format_value(value: float) -> str:
    """A value in a table: three digits, or a dash where there is none."""
    return f"{value:.3f}" if math.isfinite(value) else "-"


NOTHING = Outcomes(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64), [])
"""Outcomes of no row."""


@dataclass(frozen=True)
class Deferred:
    """What is made of outcomes at the end, where rows of other batches decide what an outcome is worth.

    Args:
        facts: What rows tell about others, ready for JSON.
        settle: Makes of all outcomes and all facts the outcomes that count.
    """

    facts: Callable[[Sequence[Any]], list[Any]]
    settle: Callable[[Outcomes, list[Any]], Outcomes]


class Measure(Metric):
    """A number of a protocol, with its interval and the bare model's value beside it.

    Args:
        outcomes: What rows are worth; it picks those that the measure is about.
        deferred: What is made of them once all rows are there; by default they count as they are.
        higher_is_better: None where neither is.
    """

    is_differentiable = False
    full_state_update = False

    edited: list[Tensor]
    """(N,) float64 outcomes of the edited model."""
    bare: list[Tensor]
    """(N,) float64 outcomes of the bare model."""
    edits: list[Tensor]
    """Their edit ids, and below their notes and what other rows tell: JSON, an item a line, as uint8."""
    notes: list[Tensor]
    facts: list[Tensor]

    def __init__(
        self,
        outcomes: Callable[[Sequence[Any]], Outcomes],
        *,
        deferred: Deferred | None = None,
        higher_is_better: bool | None = True,
    ) -> None:
        super().__init__()
        self.outcomes, self.deferred, self._higher_is_better = outcomes, deferred, higher_is_better
        for name in ("edited", "bare", "edits", "notes", "facts"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """Which way is better; None where neither is."""
        return self._higher_is_better

    def update(self, rows: Sequence[Any]) -> None:
        """Take in rows of the protocol.

        Args:
            rows: Some of them, of any tests; what the measure is not about is passed over.
        """
        self._add(self.outcomes(rows), self.deferred.facts(rows) if self.deferred else [])

    def _add(self, found: Outcomes, facts: list[Any]) -> None:
        # Apple's devices lack float64, and know no processes that would have to exchange it
        device = torch.device("cpu") if self.device.type == "mps" else self.device
        self.edited.append(found.edited.double().to(device))
        self.bare.append(found.bare.double().to(device))
        for state, items in ((self.edits, found.edits), (self.notes, found.notes), (self.facts, facts)):
            state.append(_packed(items).to(device))

    def sync(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Exchange the states; a process that had no row has empty ones of the right kind."""
        if len(self.edited) == 0:
            self._add(NOTHING, [])
        super().sync(*args, **kwargs)

    def counted(self) -> Outcomes:
        """The outcomes that count, of the rows seen so far, on the CPU."""
        if len(self.edited) == 0:
            return NOTHING
        edited, bare = (dim_zero_cat(state).cpu() for state in (self.edited, self.bare))
        found = Outcomes(edited, bare, _unpacked(self.edits), _unpacked(self.notes))
        return self.deferred.settle(found, _unpacked(self.facts)) if self.deferred else found

    def compute(self) -> Tensor:
        """The value of all processes, () float64; nan where nothing is counted."""
        return torch.tensor(self._score(0).value, dtype=torch.float64)

    def score(self, *, seed: int = 0) -> Score:
        """The value of all processes with its interval and the bare model's.

        Args:
            seed: Of the bootstrap.
        """
        with self.sync_context():
            return self._score(seed)

    @abstractmethod
    def _score(self, seed: int) -> Score:
        """What the rows seen so far, or those of all processes where they are synced, are worth."""


class Mean(Measure):
    """Mean of outcomes over tests (micro), or over edits of each one's mean over its tests (macro).

    Args:
        outcomes: As for `Measure`.
        over: What counts once.
        within: What an edit's value is, instead of the mean of its outcomes: maps (K,) outcomes to a number; nan where
            they tell nothing, and then the edit does not count. Only over edits.
        deferred: As for `Measure`.
        higher_is_better: As for `Measure`.
    """

    def __init__(
        self,
        outcomes: Callable[[Sequence[Any]], Outcomes],
        *,
        over: Literal["tests", "edits"] = "tests",
        within: Callable[[Tensor], float] | None = None,
        deferred: Deferred | None = None,
        higher_is_better: bool | None = True,
    ) -> None:
        super().__init__(outcomes, deferred=deferred, higher_is_better=higher_is_better)
        self.over, self.within = over, within

    def values(self) -> Outcomes:
        """What the mean is taken of: an outcome for each test, or for each edit."""
        found = self.counted()
        if self.over == "tests" or not found.edits:
            return found
        if self.within is None:
            (edited, names), (bare, _) = (edit_means(side, found.edits) for side in (found.edited, found.bare))
            return Outcomes(edited, bare, names)
        places: dict[str, list[int]] = {}
        for i, edit in enumerate(found.edits):
            places.setdefault(edit, []).append(i)
        names = sorted(places)
        edited, bare = (
            torch.tensor([self.within(side[places[edit]]) for edit in names], dtype=torch.float64)
            for side in (found.edited, found.bare)
        )
        return kept(Outcomes(edited, bare, names), (~(edited + bare).isnan()).tolist())

    def _score(self, seed: int) -> Score:
        found = self.values()
        if not found.edits:
            return NOT_AVAILABLE
        interval = bootstrap_interval(found.edited.tolist(), found.edits, seed=seed)
        return Score(float(found.edited.mean()), len(found.edits), interval, float(found.bare.mean()))


class Combined(Measure):
    """Arithmetic mean of those of several measures that count something, or harmonic mean of all of them.

    The harmonic mean is not available where a part counts nothing, and n counts its edits; of the arithmetic mean it
    sums the parts'. In the interval all parts see the same draws of edits.

    Args:
        parts: What is combined; they are copied, so that a collection may hold them too.
        mean: How.
    """

    def __init__(self, parts: Iterable[Mean], mean: Literal["arithmetic", "harmonic"]) -> None:
        super().__init__(_of_no_row)
        self.parts = nn.ModuleList(cast(Mean, part.clone()) for part in parts)
        self.mean = mean

    def update(self, rows: Sequence[Any]) -> None:
        """Take in rows of the protocol, as each part does."""
        for part in self._means():
            part.update(rows)

    def forward(self, rows: Sequence[Any]) -> Tensor:
        """Take in rows of the protocol, and give the value of these alone."""
        batch = self.clone()
        batch.reset()
        batch.update(rows)
        self.update(rows)
        value: Tensor = batch.compute()
        return value

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        for part in self._means():
            part.reset()

    def compute(self) -> Tensor:
        """As `Measure`."""
        return torch.tensor(self.score().value, dtype=torch.float64)

    def score(self, *, seed: int = 0) -> Score:
        """As `Measure`."""
        with ExitStack() as stack:
            for part in self._means():
                stack.enter_context(part.sync_context())
            return self._score(seed)

    def _score(self, seed: int) -> Score:
        every = [part.values() for part in self._means()]
        present = [part for part in every if part.edits]
        if not present or (self.mean == "harmonic" and len(present) < len(every)):
            return NOT_AVAILABLE
        value, bare = (
            self._average([float(side.mean()) for side in sides])
            for sides in ([part.edited for part in present], [part.bare for part in present])
        )
        edits = [edit for part in present for edit in part.edits]
        interval = bootstrap_interval(
            [outcome for part in present for outcome in part.edited.tolist()],
            edits,
            parts=[str(i) for i, part in enumerate(every) for _ in part.edits],
            seed=seed,
            combine=arithmetic_mean if self.mean == "arithmetic" else harmonic_mean,
        )
        return Score(value, len(edits) if self.mean == "arithmetic" else len(set(edits)), interval, bare)

    def _average(self, values: list[float]) -> float:
        if self.mean == "arithmetic":
            return fmean(values)
        return float(harmonic_mean(torch.tensor(values, dtype=torch.float64)))

    def _means(self) -> list[Mean]:
        return [cast(Mean, part) for part in self.parts]


def kept(found: Outcomes, mask: Sequence[bool]) -> Outcomes:
    """The outcomes where a mask is true."""
    places = [i for i, keep in enumerate(mask) if keep]
    return replace(
        found,
        edited=found.edited[places],
        bare=found.bare[places],
        edits=[found.edits[i] for i in places],
        notes=[found.notes[i] for i in places] if found.notes else [],
    )


def _of_no_row(rows: Sequence[Any]) -> Outcomes:
    return NOTHING


def _packed(items: Sequence[Any]) -> Tensor:
    """Items as JSON, one a line, in bytes (B,) uint8, which processes can exchange."""
    text = "".join(f"{json.dumps(item)}\n" for item in items)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _unpacked(state: list[Tensor] | Tensor) -> list[Any]:
    text = bytes(dim_zero_cat(state).tolist()).decode()
    return [json.loads(line) for line in text.splitlines()]
