"""Cutting prompts into padded batches of a size that memory bears."""

from collections.abc import Iterator, Sequence

from mega_pl.backbone import Backbone
from mega_pl.editors.protocol import Edited

TOKENS = 4096
"""Tokens of a batch, padding included."""

BARE = Edited()
"""No edits in force: prompts are asked as they are and nothing is routed."""


def batches(lengths: Sequence[int], tokens: int = TOKENS) -> Iterator[list[int]]:
    """Cut texts into batches, those of like length together.

    Args:
        lengths: Number of tokens of each text.
        tokens: The most tokens of a padded batch; a longer text is a batch of its own.

    Yields:
        The places of a batch's texts, shortest first.

    Raises:
        ValueError: If ``tokens`` is less than 1.
    """
    if tokens < 1:
        raise ValueError(f"`tokens` must be 1 or more, but got {tokens}.")
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[i] > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def encoded_ids(backbone: Backbone, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, special tokens included and without padding."""
    return [list(ids) for ids in backbone.tokenizer(list(texts))["input_ids"]] if texts else []


def position_limit(backbone: Backbone) -> int | None:
    """How many tokens the model reads; None if it does not say."""
    limit: int | None = getattr(backbone.config, "max_position_embeddings", None)
    return limit


def check_room(backbone: Backbone, prompts: Sequence[str], lengths: Sequence[int], what: str) -> None:
    """Refuse texts that are longer than the model reads.

    Args:
        backbone: The model.
        prompts: What the texts begin with, for the message.
        lengths: Number of tokens of each whole text.
        what: What follows the prompts, for the message.

    Raises:
        ValueError: Naming the longest allowed and the first text beyond it.
    """
    limit = position_limit(backbone)
    for prompt, length in zip(prompts, lengths, strict=True):
        if limit is not None and length > limit:
            raise ValueError(
                f"a prompt and {what} must have at most {limit} tokens together for this model, but got {length}: "
                f"{prompt[:40]!r}..."
            )
