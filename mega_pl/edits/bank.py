"""The bank: many edits of one backbone, each applied to the prompts that its scope covers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mega_pl.backbone import Backbone, Site, each_prompt, steer
from mega_pl.edits.request import EditRequest
from mega_pl.edits.routing import RoutedEdits, Router
from mega_pl.edits.routing.runtime import Steer
from mega_pl.edits.storage import load_bank, save_bank
from mega_pl.functional import Transports


@dataclass(frozen=True, eq=False)
class EditBank:
    """Fitted edits, which leave the backbone's weights alone and are gone when they are taken off.

    Args:
        requests: The edits; their order is that of the maps.
        maps: For each steered site the maps of all edits, sites in the order of a forward pass.
        router: Tells which edit, if any, a prompt is about.
        strength: Multiple of the full move.
        backbone: What the edits were fitted on: `name`, `revision` and the entries of its fingerprint.
        settings: How they were fitted: seed, versions, hyper-parameters; written beside the edits.
    """

    requests: tuple[EditRequest, ...]
    maps: Mapping[Site, Transports]
    router: Router
    strength: float
    backbone: Mapping[str, str | int | None]
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, edit_id: str) -> EditRequest:
        return self.requests[self.index(edit_id)]

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the edits."""
        return tuple(request.edit_id for request in self.requests)

    def index(self, edit_id: str) -> int:
        """Place of an edit.

        Raises:
            KeyError: If the bank has no such edit.
        """
        try:
            return self.ids.index(edit_id)
        except ValueError:
            raise KeyError(f"the bank must hold the edit that is named, but it has no {edit_id!r}.") from None

    def remove(self, edit_id: str) -> EditBank:
        """The bank without an edit; the others are what they were.

        Raises:
            KeyError: If the bank has no such edit, or no other.
        """
        gone = self.index(edit_id)
        kept = [i for i in range(len(self)) if i != gone]
        if not kept:
            raise KeyError(f"a bank must keep at least one edit, but {edit_id!r} is its only one; take the bank off.")
        return replace(
            self,
            requests=tuple(self.requests[i] for i in kept),
            maps={site: maps.select(kept) for site, maps in self.maps.items()},
            router=self.router.remove(gone),
        )

    @contextmanager
    def apply(
        self, backbone: Backbone, *, edits: Sequence[str | None] | None = None, forced: bool = False
    ) -> Iterator[RoutedEdits]:
        """Edit a backbone for the time of a ``with`` block.

        Every prompt of a batch is routed once, when the model reads it. The edit
        moves the activations of the prompt's last token; through the cache they act on everything generated after it.
        (A generation without a cache reads a new prompt at each token, and is routed and steered at each.)
        Rows that no edit answers are bit-identical to the bare model's.

        Args:
            backbone: The model that the bank was fitted on.
            edits: For each row of the batch the edit to apply, or None for none, instead of asking the router.
            forced: Whether the router must choose an edit for every prompt.

        Yields:
            Where prompts went, updated by each prompt.

        Raises:
            ValueError: If the bank belongs to another backbone, or ``edits`` does not fit the batch.
        """
        self.check(backbone)
        use = RoutedEdits(backbone, self.ids, self.router, self._steer_on(backbone))
        use.fix(edits, forced=forced)
        with each_prompt(backbone.model, use.steered):
            yield use

    def _steer_on(self, backbone: Backbone) -> Steer:
        """What moves a model's activations by the maps of the edits that its rows get."""
        maps = {site: of_site.cast(device=backbone.device) for site, of_site in self.maps.items()}

        def steering(rows: Tensor, edits: Tensor, last: Tensor) -> AbstractContextManager[None]:
            moves = {
                site: lambda x, moved=of_site: moved.apply(x, edits.to(x.device), self.strength)
                for site, of_site in maps.items()
            }
            return steer(backbone.model, moves, last, rows)

        return steering

    def attach(self, backbone: Backbone) -> BankHandle:
        """Edit a backbone until the handle's ``remove`` is called."""
        stack = ExitStack()
        use = stack.enter_context(self.apply(backbone))
        return BankHandle(stack, use)

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone that the edits were not fitted on.

        Raises:
            ValueError: Naming the first entry of the fingerprint that differs.
        """
        for name, value in backbone.fingerprint.items():
            if self.backbone[name] != value:
                raise ValueError(
                    f"a bank must be used on the backbone it was fitted on, {self.backbone['name']!r}, "
                    f"but `{name}` is {_short(value)} instead of {_short(self.backbone[name])}; fit it again."
                )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write ``edit_model.safetensors``, ``edit_config.json`` and a card; files appear complete or not at all."""
        return save_bank(self, Path(folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, revision: str | None = None) -> EditBank:
        """Read a bank from a folder, or from a repository of the Hugging Face hub.

        Raises:
            ValueError: If a file is missing, damaged, or of a format that this version does not know.
        """
        return cls(**load_bank(str(folder), revision))


@dataclass
class BankHandle:
    """Takes an attached bank off again."""

    _stack: ExitStack
    use: RoutedEdits

    def remove(self) -> None:
        """Give the bare backbone back; calling it again does nothing."""
        self._stack.close()


def _short(value: object) -> str:
    return repr(value)[:20]
