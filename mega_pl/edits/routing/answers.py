"""What the bare model is about to say, as evidence that a question is an edit's.

A model that knows a fact is about to say its object where the fact is asked, however it is asked, and nowhere else.
With p(o | prompt) the probability of the first token of the true object o, and p0(o) its mean over other questions,

    a = log p(o | prompt) - log p0(o),

between two bounds; above 0 it speaks for the edit, below 0 against it, each with a weight of its own. What they are
worth depends on what the model knows, and is learned from it: from the edits' own wordings, each held out, and from
questions about their subjects by other relations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

LOWEST, HIGHEST = -6.0, 6.0
"""Bounds of the evidence, in nats."""


@dataclass(frozen=True, eq=False)
class AnswerEvidence:
    """Evidence from the next token.

    Args:
        base: (V,) log-probabilities of the next token, averaged over questions about other facts.
        tokens: (E,) long, the first token of each edit's true object.
        weights: What a nat of evidence counts for an edit and against it.
    """

    base: Tensor
    tokens: Tensor
    weights: tuple[float, float]

    def __call__(self, log_probs: Tensor, rows: Tensor, edits: Tensor, through: Tensor) -> Tensor:
        """The evidence (N, 2) for and against N pairs of a prompt and an edit.

        Args:
            log_probs: (B, V) of the next token after each prompt.
            rows: (N,) long, the prompts.
            edits: (N,) long, the edits.
            through: (N,) bool, whether a prompt goes on from the edit's object; then nothing speaks against it.
        """
        tokens = self.tokens[edits]
        nats = (log_probs[rows, tokens] - self.base[tokens]).clamp(LOWEST, HIGHEST)
        return torch.stack([nats.clamp(min=0), nats.clamp(max=0) * ~through], 1)

    def logits(self, evidence: Tensor) -> Tensor:
        """What evidence (N, 2) adds to the logits of the text's (N,)."""
        return evidence @ torch.tensor(self.weights)

    def without(self, edit: int) -> Self:
        """The same without an edit."""
        return replace(self, tokens=torch.cat([self.tokens[:edit], self.tokens[edit + 1 :]]))

    def fit(self, text: Tensor, evidence: Tensor, right: Tensor) -> Self:
        """The same with the weights that tell right from wrong pairs best beside the evidence of the text.

        Args:
            text: (N,) logits of the text's evidence.
            evidence: (N, 2) of this.
            right: (N,) bool.
        """
        with torch.inference_mode(False), torch.enable_grad():
            free = torch.zeros(3, dtype=torch.float64, requires_grad=True)
            optimizer = torch.optim.LBFGS([free], max_iter=100, line_search_fn="strong_wolfe")
            x, offset, y = evidence.double(), text.double(), right.double()

            def loss() -> Tensor:
                optimizer.zero_grad()
                logits = offset + x @ F.softplus(free[:2]) + free[2]
                value = F.binary_cross_entropy_with_logits(logits, y) + 1e-2 * free.square().sum()
                value.backward()  # type: ignore[no-untyped-call]
                return value

            optimizer.step(loss)  # type: ignore[no-untyped-call]
            rising, falling = F.softplus(free[:2].detach()).tolist()
        return replace(self, weights=(rising, falling))
