"""What a bare and an edited model write after prompts, which edit each prompt got, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mega_pl.asking import in_batches, token_counts
from mega_pl.asking.batches import TOKENS
from mega_pl.backbone import Backbone
from mega_pl.edits.bank import EditBank
from mega_pl.edits.routing import Route
from mega_pl.errors import MegaValueError


@dataclass(frozen=True)
class Prediction:
    """Both models after one prompt.

    Args:
        prompt: What was asked.
        bare: What the bare model writes.
        edited: What the edited model writes; where no edit fired, the same.
        fired: The edit that the prompt got, or None.
        route: The router's decision.
    """

    prompt: str
    bare: str
    edited: str
    fired: str | None
    route: Route

    def to_json(self) -> dict[str, Any]:
        """The prediction as a row of a file."""
        return {
            "prompt": self.prompt,
            "bare": self.bare,
            "edited": self.edited,
            "edit": self.fired,
            "confidence": self.route.confidence,
            "subject": self.route.subject,
            "relation": self.route.relation,
            "evidence": dict(self.route.evidence),
        }


def predict(
    backbone: Backbone, bank: EditBank, prompts: Sequence[str], new_tokens: int = 20, *, tokens_per_batch: int = TOKENS
) -> list[Prediction]:
    """Let both models write on after prompts, greedily.

    Both get the same batches, so that a prompt that no edit answers is continued in the same words.

    Args:
        backbone: The bare model.
        bank: The edits.
        prompts: N texts.
        new_tokens: The most tokens to write after each.
        tokens_per_batch: The most tokens of a batch, those to be written included.

    Returns:
        A prediction for each prompt, in their order.

    Raises:
        ValueError: If no token is to be written, or a prompt is empty or too long.
    """
    if new_tokens < 1:
        raise MegaValueError(f"`max_new_tokens` must be 1 or more, but got {new_tokens}.")
    lengths = [count + new_tokens for count in token_counts(backbone, prompts)]

    def write(texts: list[str]) -> list[Prediction]:
        bare = backbone.generate(texts, max_new_tokens=new_tokens)
        with bank.apply(backbone) as use:
            edited = backbone.generate(texts, max_new_tokens=new_tokens)
        return [Prediction(*row) for row in zip(texts, bare, edited, use.fired, use.routes, strict=True)]

    return in_batches(prompts, lengths, write, tokens_per_batch)
