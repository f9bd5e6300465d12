"""What every router is: from the prompts that a model is about to read to the edits that answer them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from mega_pl.backbone import Backbone, Encoded, Site, record
from mega_pl.edits.request import EditRequest
from mega_pl.edits.routing.turns import turns_of
from mega_pl.edits.values import Json, Tensors

NO_EDIT = -1
"""The route of a prompt that no edit answers."""

CANDIDATES = 3
"""The most edits that a route names."""


@dataclass(frozen=True)
class Route:
    """Where a prompt goes, and why.

    Args:
        edit: Index of the edit that answers it, or `NO_EDIT`.
        confidence: Probability that the prompt's last question is the edit's, of the edit that came nearest; 0 where
            the prompt names no subject of the bank.
        needed: The confidence from which on that edit answers, where the router compares.
        subject: The words that named the subject, as they stand in the prompt.
        relation: The relation that the question was taken for, where the router knows its name.
        evidence: The parts of the decision, by name.
        candidates: By index the edits that came nearest, the nearest first, each with its confidence; at most
            `CANDIDATES`, and none where the router does not compare edits.
    """

    edit: int
    confidence: float = 0.0
    needed: float = 0.0
    subject: str = ""
    relation: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)
    candidates: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Prompts:
    """A batch of prompts that a model is about to read.

    Args:
        backbone: The model, with no edit in force.
        inputs: Arguments of its forward pass, by name; ids and mask are (B, T).
        last: (B,) long, the index of each row's last real token.
        logits: (B, V) of the bare model's next token, where they are known.
    """

    backbone: Backbone
    inputs: Mapping[str, Tensor]
    last: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.last)

    @cached_property
    def turns(self) -> list[tuple[str, ...]]:
        """The texts of each prompt, a text a turn of a conversation; a prompt without special tokens is one turn."""
        rows = zip(self.inputs["input_ids"].tolist(), self.inputs["attention_mask"].tolist(), strict=True)
        return [turns_of(self.backbone.tokenizer, [i for i, real in zip(*row, strict=True) if real]) for row in rows]

    def log_probs(self, rows: Sequence[int]) -> Tensor:
        """Log-probabilities (N, V) of the bare model's next token after some of the prompts, float32 on the CPU."""
        if self.logits is not None:
            return self.logits[torch.tensor(rows, device=self.logits.device)].float().log_softmax(-1).cpu()
        index = torch.tensor(rows, device=self.last.device)
        mask = self.inputs["attention_mask"][index]
        position = self.inputs.get("position_ids", (self.inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0))
        encoded = Encoded(self.inputs["input_ids"][index], mask, position[index], self.last[index])
        return self.backbone.last_logits(encoded).log_softmax(-1).cpu()

    @torch.no_grad()
    def last_states(self, layer: int) -> Tensor:
        """Output (B, D) of a block at each prompt's last token in the bare model, in float32."""
        site = Site(layer % self.backbone.n_layers, "resid_post")
        with record(self.backbone.model, [site], self.last) as states:
            self.backbone.model.base_model(**self.inputs, use_cache=False)
        return states[site].float()


class Decider(Protocol):
    """Decides from the prompts alone which edit each one's last question is about, or none."""

    def route(self, prompts: Prompts, *, forced: bool = False) -> list[Route]:
        """Choose an edit for each prompt; ``forced`` leaves no choice to stay silent."""


class Router(Decider, Protocol):
    """Decides, and grows, shrinks and is stored with a bank."""

    kind: ClassVar[str]
    """The router in files."""

    def add(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Self:
        """The router that knows more edits besides; indices of earlier ones stay."""

    def remove(self, *edits: int) -> Self:
        """The router that forgets edits; later ones move up."""

    def select(self, edits: Sequence[int]) -> Self:
        """The router that knows some of the edits alone, in that order."""

    def merge(self, other: Router) -> Self:
        """The router that knows another's edits besides; what is not of a single edit stays this one's.

        Raises:
            ValueError: If the other decides in another way.
        """

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is to be stored, for JSON and for safetensors."""

    @classmethod
    def check_state(cls, state: Json, tensors: Tensors, count: int, vocab: int) -> set[str]:
        """Refuse what was stored if it is no such router's; `values` has what looks at each value.

        Args:
            state: What was in JSON.
            tensors: All tensors of the bank; the router's names begin with ``router.``.
            count: How many edits there are.
            vocab: How many tokens the backbone has.

        Returns:
            The names of the router's tensors.

        Raises:
            ValueError: Naming the first value that cannot be.
        """

    @classmethod
    def from_state(
        cls, requests: Sequence[EditRequest], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Self:
        """The router again."""


def rest(count: int, edits: Sequence[int]) -> list[int]:
    """The indices below a count that are not among some."""
    gone = set(edits)
    return [edit for edit in range(count) if edit not in gone]
