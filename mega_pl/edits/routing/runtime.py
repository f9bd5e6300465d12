"""Routing in force: every prompt that a model reads is routed once, and its edit acts until its object is written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from mega_pl.backbone import UNKNOWN, Backbone, Reading
from mega_pl.edits.routing.guard import Guard
from mega_pl.edits.routing.router import NO_EDIT, Decider, Prompts, Route
from mega_pl.errors import MegaKeyError, MegaValueError

Steer = Callable[[Tensor, Tensor, Tensor, Tensor], AbstractContextManager[None]]
"""From R tokens, each by its row and its column (R,) among the tokens that a pass reads, the edit that each gets and
its step, to a context that steers: 0 is the last token of a prompt, j the j-th token of the edit's object after it."""


@dataclass(eq=False)
class RoutedEdits:
    """Edits in force on a backbone, and where prompts went: for each thread those that it had read last.

    Args:
        backbone: The edited model.
        ids: Names of the edits, by index.
        router: Decides.
        steer: Puts edits into force for one forward pass.
        objects: The token ids of each edit's new object, as far as steps after the prompt's last token are steered;
            none where only that token is.
        guard: Keeps the old objects from coming back in what is written; None lets them.
        fixed: For each prompt the edit to apply, or None for none, instead of asking the router.
        forced: Whether the router must choose an edit for every prompt.
        off: Edits, by index, whose prompts stay bare.
    """

    backbone: Backbone
    ids: Sequence[str]
    router: Decider
    steer: Steer
    objects: Sequence[Sequence[int]] = ()
    guard: Guard | None = None
    fixed: list[int] | None = None
    forced: bool = False
    off: frozenset[int] = frozenset()
    _local: threading.local = field(default_factory=threading.local)

    @property
    def routes(self) -> list[Route]:
        """Where each prompt of the last batch went."""
        return getattr(self._local, "routes", [])

    @property
    def fired(self) -> list[str | None]:
        """The edit that each prompt of the last batch got, or None."""
        return [None if route.edit == NO_EDIT else self.ids[route.edit] for route in self.routes]

    def fix(self, edits: Sequence[str | None] | None = None, *, forced: bool = False) -> None:
        """Say which edit each prompt of the batches to come gets, instead of the router.

        Args:
            edits: For each prompt an edit, or None for none; None asks the router again.
            forced: Whether the router must choose an edit for every prompt.

        Raises:
            KeyError: If no such edit is in force.
        """
        places = iter(self._indices([edit for edit in edits or () if edit is not None]))
        self.fixed = None if edits is None else [NO_EDIT if edit is None else next(places) for edit in edits]
        self.forced = forced

    @contextmanager
    def disabled(self, *edits: str) -> Iterator[None]:
        """Leave the prompts of some edits bare that are read in a ``with`` block, for all threads.

        Raises:
            KeyError: If no such edit is in force.
        """
        before, self.off = self.off, self.off.union(self._indices(edits))
        try:
            yield
        finally:
            self.off = before

    def only(self, *edits: str) -> AbstractContextManager[None]:
        """Leave the prompts of all other edits bare that are read in a ``with`` block, for all threads.

        Raises:
            KeyError: If no such edit is in force.
        """
        named = set(self._indices(edits))
        return self.disabled(*(edit for i, edit in enumerate(self.ids) if i not in named))

    def _indices(self, edits: Sequence[str]) -> list[int]:
        unknown = set(edits) - set(self.ids)
        if unknown:
            raise MegaKeyError(f"`edits` must name edits in force, but got {', '.join(map(repr, sorted(unknown)))}.")
        place = {edit: i for i, edit in enumerate(self.ids)}
        return [place[edit] for edit in edits]

    def read(self, reading: Reading, taken: set[int]) -> RoutedPass:
        """Decide what a pass does, as `each_pass` asks; edits that were put on later go before these."""
        routing: Routing | None = reading.text.decisions.get(self)
        if routing is None:
            routes = [replace(r, edit=NO_EDIT) if r.edit in self.off else r for r in self._routes(reading)]
            longest = max((len(self.objects[r.edit]) for r in routes if self.objects and r.edit != NO_EDIT), default=0)
            routing = reading.text.decisions[self] = Routing(routes, reading.ids.shape[1] - 1 + longest)
            self._local.routes = []  # until the edits have acted
        copies = len(reading.ids) // len(routing.routes)
        edits = {row: routing.routes[row // copies].edit for row in range(len(reading.ids)) if row not in taken}
        edits = {row: edit for row, edit in edits.items() if edit != NO_EDIT}
        taken.update(edits)
        return RoutedPass(self, reading, routing, copies, edits)

    def _routes(self, reading: Reading) -> list[Route]:
        prompts = reading.text.prompts
        if self.fixed is not None:
            if len(self.fixed) != prompts:
                raise MegaValueError(
                    f"`edits` must name one edit a prompt, but got {len(self.fixed)} for {prompts} prompts."
                )
            return [Route(edit, confidence=float(edit != NO_EDIT)) for edit in self.fixed]
        copies = len(reading.ids) // prompts
        ids, mask, last = reading.ids[::copies], reading.mask[::copies], reading.last[::copies]
        if bool((ids == UNKNOWN).any()):
            raise MegaValueError(
                "a prompt must be given as `input_ids` to be routed by its text, but got `inputs_embeds`; pass ids, or "
                "name the edit of each prompt with `edits`."
            )
        width = int(last.max()) + 1
        mask = mask[:, :width] * (torch.arange(width, device=mask.device) <= last[:, None])
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        inputs = {"input_ids": ids[:, :width], "attention_mask": mask, "position_ids": position}
        logits = None if reading.text.logits is None else reading.text.logits[::copies]
        return self.router.route(Prompts(self.backbone, inputs, last, logits), forced=self.forced)


@dataclass(eq=False)
class Routing:
    """Where the prompts of a text went.

    Args:
        routes: Of each prompt.
        until: The last column that their edits may move.
        acted: Whether the edits have acted at the ends of the prompts.
    """

    routes: list[Route]
    until: int
    acted: bool = False


@dataclass(eq=False)
class RoutedPass:
    """What routed edits do in one forward pass.

    Args:
        use: The edits.
        reading: What the pass reads.
        routing: Where its prompts went.
        copies: Rows of each prompt.
        edits: By row the edit that it gets from these.
    """

    use: RoutedEdits
    reading: Reading
    routing: Routing
    copies: int
    edits: dict[int, int]

    def __enter__(self) -> None:
        places = self._places()
        self._steered: AbstractContextManager[None] = nullcontext()
        if places:
            self._steered = self.use.steer(*torch.tensor(places, device=self.reading.ids.device).unbind(1))
        self._steered.__enter__()

    def __exit__(self, *error: Any) -> None:  # noqa: ANN401
        self._steered.__exit__(*error)
        if error[0] is None and not self.routing.acted and self.reading.complete:
            self.routing.acted = True
            acting = {row // self.copies for row in self.edits}
            routes = self.routing.routes
            self.use._local.routes = [r if i in acting else replace(r, edit=NO_EDIT) for i, r in enumerate(routes)]

    def logits(self, logits: Tensor, cache: Cache | None) -> Tensor:
        """The logits, with the guard's exchanges."""
        guard = self.use.guard
        return logits if guard is None or not self.edits else guard(self.reading, self.edits, logits, cache)

    def _places(self) -> list[tuple[int, int, int, int]]:
        """The tokens (row, column, edit, step) that the pass moves: a prompt's last one, and those of the object."""
        reading, objects = self.reading, self.use.objects
        if not self.edits or reading.start > self.routing.until:
            return []
        wanted = {row: list(objects[edit]) if objects else [] for row, edit in self.edits.items()}
        places = []
        for row, edit in self.edits.items():
            last = int(reading.last[row])
            real = (reading.mask[row, last:].nonzero()[:, 0] + last)[: len(wanted[row]) + 1]
            follow = reading.ids[row, real].tolist()[1:]  # what follows the prompt's last token
            for step, column in enumerate(real.tolist()):
                if follow[:step] != wanted[row][:step]:
                    break
                if reading.start <= column < reading.stop:
                    places.append((row, column - reading.start, edit, step))
        return places
