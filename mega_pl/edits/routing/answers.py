"""What the bare model is about to say, as evidence that a question is an edit's.

A model that knows a fact is about to say its object where the fact is to be completed, however it is put, and nowhere
else. With p(o | prompt) the probability of the first token of the true object o, and p0(o) its mean over other
questions about the same subject, so that what the subject brings to mind anyway does not count,

    a = log p(o | prompt) - log p0(o),

between two bounds; above 0 it speaks for the edit, below 0 against it, each with a weight of its own. What they are
worth depends on what the model knows, and is learned from it: `trials` says how. A reply may begin with any word; where
a prompt awaits one, the text alone decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

LOWEST, HIGHEST = -6.0, 6.0
"""Bounds of the evidence, in nats."""


@dataclass(frozen=True, eq=False)
class AnswerEvidence:
    """Evidence from the next token.

    Args:
        tokens: (E,) long, the first token of each edit's true object.
        base: (E,) its log-probability, averaged over other questions about the edit's subject.
        weights: What a nat of evidence counts for an edit and against it.
        thresholds: Of all evidence together, for edits that say their relation and for those that do not.
    """

    tokens: Tensor
    base: Tensor
    weights: tuple[float, float]
    thresholds: tuple[float, float]

    def __call__(self, log_probs: Tensor, edits: Tensor, spared: Tensor) -> Tensor:
        """The evidence (N, 2) for and against N pairs of a prompt that its object may complete and an edit.

        Args:
            log_probs: (N,) of the edit's token after the prompt.
            edits: (N,) long, the edits.
            spared: (N,) bool, where nothing speaks against the edit, such as a prompt that goes on from its object.
        """
        nats = (log_probs - self.base[edits]).clamp(LOWEST, HIGHEST)
        return torch.stack([nats.clamp(min=0), nats.clamp(max=0) * ~spared], 1)

    def logits(self, evidence: Tensor) -> Tensor:
        """What evidence (N, 2) adds to the logits of the text's (N,)."""
        return evidence @ torch.tensor(self.weights)

    def least(self, known: Tensor) -> Tensor:
        """The logits (N,) from which on edits answer, by whether their relation is known (N,) bool."""
        return torch.where(known, *self.thresholds)

    def with_more(self, tokens: Tensor, base: Tensor) -> Self:
        """The same with more edits (M,)."""
        return replace(self, tokens=torch.cat([self.tokens, tokens]), base=torch.cat([self.base, base]))

    def select(self, edits: Sequence[int]) -> Self:
        """The same of some edits, in that order."""
        index = torch.tensor(edits, dtype=torch.long)
        return replace(self, tokens=self.tokens[index], base=self.base[index])
