"""The bank: many edits of one backbone, each applied to the prompts that its scope covers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mega_pl.backbone import Backbone, Site, each_prompt, steer
from mega_pl.edits.gate import NO_EDIT, Gate, evidence
from mega_pl.edits.request import EditRequest
from mega_pl.edits.storage import load_bank, save_bank
from mega_pl.functional import Transports


@dataclass(frozen=True, eq=False)
class EditBank:
    """Fitted edits, which leave the backbone's weights alone and are gone when they are taken off.

    Args:
        requests: The edits; their order is that of the maps.
        maps: For each steered site the maps of all edits, sites in the order of a forward pass.
        gate: Tells which edit, if any, a prompt is about.
        gate_layers: 0-based blocks that the gate reads.
        strength: Multiple of the full move.
        backbone: What the edits were fitted on: `name`, `revision` and the entries of its fingerprint.
        settings: How they were fitted: seed, versions, hyper-parameters; written beside the edits.
    """

    requests: tuple[EditRequest, ...]
    maps: Mapping[Site, Transports]
    gate: Gate
    gate_layers: tuple[int, ...]
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
            gate=self.gate.without(gone),
        )

    @contextmanager
    def apply(
        self, backbone: Backbone, *, edits: Sequence[str | None] | None = None, forced: bool = False
    ) -> Iterator[BankUse]:
        """Edit a backbone for the time of a ``with`` block.

        Every prompt of a batch is routed once, when the model reads it, by a forward pass of the bare model. The edit
        moves the activations of the prompt's last token; through the cache they act on everything generated after it.
        (A generation without a cache reads a new prompt at each token, and is routed and steered at each.)
        Rows that no edit answers are bit-identical to the bare model's.

        Args:
            backbone: The model that the bank was fitted on.
            edits: For each row of the batch the edit to apply, or None for none, instead of asking the gate.
            forced: Whether the gate must choose an edit for every prompt.

        Yields:
            What the gate chose, updated by each prompt.

        Raises:
            ValueError: If the bank belongs to another backbone, or ``edits`` does not fit the batch.
        """
        self.check(backbone)
        device = backbone.device
        use = BankUse(
            bank=self,
            backbone=backbone,
            maps={site: maps.cast(device=device) for site, maps in self.maps.items()},
            gate=self.gate.to(device),
            fixed=None if edits is None else [NO_EDIT if e is None else self.index(e) for e in edits],
            forced=forced,
        )
        with each_prompt(backbone.model, use.steered):
            yield use

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
class BankUse:
    """A bank in force on a backbone.

    Args:
        bank: The bank.
        backbone: The edited model.
        maps: The bank's maps on the model's device.
        gate: The bank's gate on the model's device.
        fixed: For each row the index of its edit, instead of the gate's choice.
        forced: Whether the gate must choose an edit.
    """

    bank: EditBank
    backbone: Backbone
    maps: Mapping[Site, Transports]
    gate: Gate
    fixed: list[int] | None
    forced: bool
    routes: Tensor | None = None

    @property
    def fired(self) -> list[str | None]:
        """The edit that each prompt of the last batch got, or None."""
        ids = self.bank.ids
        return [] if self.routes is None else [None if r == NO_EDIT else ids[r] for r in self.routes.tolist()]

    @contextmanager
    def steered(self, inputs: dict[str, Tensor], last: Tensor) -> Iterator[None]:
        """Route the prompts that the model is about to read, and steer them while it does."""
        routes = self.routes = self._route(inputs)
        rows = (routes != NO_EDIT).nonzero()[:, 0]
        edit, strength = routes[rows], self.bank.strength
        edits = {
            site: (lambda x, maps=maps: maps.apply(x, edit.to(x.device), strength)) for site, maps in self.maps.items()
        }
        with steer(self.backbone.model, edits, last, rows):
            yield

    def _route(self, inputs: dict[str, Tensor]) -> Tensor:
        rows = len(inputs["input_ids"])
        if self.fixed is not None:
            if len(self.fixed) != rows:
                raise ValueError(
                    f"`edits` must name one edit a row, but got {len(self.fixed)} for {rows} rows; "
                    "with beams, repeat each name."
                )
            return torch.tensor(self.fixed, device=inputs["input_ids"].device)
        seen = evidence(self.backbone, inputs, self.bank.gate_layers)
        return self.gate.route(seen, inputs["attention_mask"], forced=self.forced)[0]


@dataclass
class BankHandle:
    """Takes an attached bank off again."""

    _stack: ExitStack
    use: BankUse

    def remove(self) -> None:
        """Give the bare backbone back; calling it again does nothing."""
        self._stack.close()


def _short(value: object) -> str:
    return repr(value)[:20]
