"""Routing in force: every prompt that a model reads is routed once, and steered where an edit answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mega_pl.backbone import Backbone
from mega_pl.edits.routing.router import NO_EDIT, Prompts, Route, Router

Steer = Callable[[Tensor, Tensor, Tensor], AbstractContextManager[None]]
"""From rows (R,) that get an edit, the edit (R,) of each, and each row's last token (B,) to a context that steers."""


@dataclass
class RoutedEdits:
    """Edits in force on a backbone, and where the prompts of its last forward pass went.

    Args:
        backbone: The edited model.
        ids: Names of the edits, by index.
        router: Decides.
        steer: Puts edits into force for one forward pass.
        fixed: For each row the edit to apply, or None for none, instead of asking the router.
        forced: Whether the router must choose an edit for every prompt.
    """

    backbone: Backbone
    ids: Sequence[str]
    router: Router
    steer: Steer
    fixed: list[int] | None = None
    forced: bool = False
    routes: list[Route] = field(default_factory=list)

    @property
    def fired(self) -> list[str | None]:
        """The edit that each prompt of the last batch got, or None."""
        return [None if route.edit == NO_EDIT else self.ids[route.edit] for route in self.routes]

    def fix(self, edits: Sequence[str | None] | None = None, *, forced: bool = False) -> None:
        """Say which edit each row of the batches to come gets, instead of the router.

        Args:
            edits: For each row an edit, or None for none; None asks the router again.
            forced: Whether the router must choose an edit for every prompt.

        Raises:
            KeyError: If no such edit is in force.
        """
        unknown = {edit for edit in edits or () if edit is not None} - set(self.ids)
        if unknown:
            raise KeyError(f"`edits` must name edits in force, but got {', '.join(map(repr, sorted(unknown)))}.")
        place = {edit: i for i, edit in enumerate(self.ids)}
        self.fixed = None if edits is None else [NO_EDIT if edit is None else place[edit] for edit in edits]
        self.forced = forced

    @contextmanager
    def steered(self, inputs: dict[str, Tensor], last: Tensor) -> Iterator[None]:
        """Route the prompts that the model is about to read, and steer them while it does."""
        self.routes = self._routes(inputs, last)
        edits = torch.tensor([route.edit for route in self.routes])
        rows = (edits != NO_EDIT).nonzero()[:, 0]
        with self.steer(rows.to(last.device), edits[rows].to(last.device), last):
            yield

    def _routes(self, inputs: dict[str, Tensor], last: Tensor) -> list[Route]:
        if self.fixed is None:
            return self.router.route(Prompts(self.backbone, inputs, last), forced=self.forced)
        if len(self.fixed) != len(last):
            raise ValueError(
                f"`edits` must name one edit a row, but got {len(self.fixed)} for {len(last)} rows; "
                "with beams, repeat each name."
            )
        return [Route(edit, confidence=float(edit != NO_EDIT)) for edit in self.fixed]
