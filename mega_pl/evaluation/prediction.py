"""What a bare and an edited model write after prompts, which edit each prompt got, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mega_pl.backbone import Backbone
from mega_pl.data.relations import relations
from mega_pl.edits import EditBank, Route
from mega_pl.evaluation.batching import TOKENS, batches, encoded_ids


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

    @property
    def why(self) -> str:
        """The router's decision in words."""
        route = self.route
        named = [f"subject {route.subject!r}"] if route.subject else []
        asked = [f"relation {_labelled(route.relation)}"] if route.relation else []
        if self.fired is None and not named and not route.confidence:
            return "no edit is near"
        return ", ".join([*named, *asked, f"confidence {route.confidence:.2f}"])

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


def _labelled(names: str) -> str:
    """What relations are called, where the template bank knows them."""
    known = relations()
    return " or ".join(known[name].label if name in known else name for name in names.split(" or "))


def predict(
    backbone: Backbone, bank: EditBank, prompts: Sequence[str], new_tokens: int = 20, *, tokens: int = TOKENS
) -> list[Prediction]:
    """Let both models write on after prompts, greedily.

    Both get the same batches, so that a prompt that no edit answers is continued in the same words.

    Args:
        backbone: The bare model.
        bank: The edits.
        prompts: N texts.
        new_tokens: The most tokens to write after each.
        tokens: The most tokens of a batch, those to be written included.

    Returns:
        A prediction for each prompt, in their order.

    Raises:
        ValueError: If no token is to be written, or a prompt is empty or too long.
    """
    if new_tokens < 1:
        raise ValueError(f"`max_new_tokens` must be 1 or more, but got {new_tokens}.")
    lengths = [len(ids) + new_tokens for ids in encoded_ids(backbone, prompts)]
    found: dict[int, Prediction] = {}
    for batch in batches(lengths, tokens):
        asked = [prompts[i] for i in batch]
        bare = backbone.generate(asked, max_new_tokens=new_tokens)
        with bank.apply(backbone) as use:
            edited = backbone.generate(asked, max_new_tokens=new_tokens)
        columns = zip(asked, bare, edited, use.fired, use.routes, strict=True)
        found.update(zip(batch, (Prediction(*row) for row in columns), strict=True))
    return [found[i] for i in range(len(prompts))]
