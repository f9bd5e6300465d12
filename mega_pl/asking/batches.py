"""The batching loop: prompts cut into padded batches that memory bears, and answers in the callers' order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from mega_pl.backbone import Backbone, Encoded, PaddingSide
from mega_pl.errors import MegaValueError

TOKENS = 4096
"""Tokens of a batch, padding included."""

PASS_TOKENS = 40
"""What a pass costs besides its tokens, in tokens: the weights are read once. So it is on CPUs, whatever the model."""

GPU_PASS_TOKENS = 1024
"""The same on a GPU, which computes more while it reads, and waits for kernels to start."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def batches(
    lengths: Sequence[int], tokens_per_batch: int = TOKENS, *, pass_tokens: int | None = None
) -> Iterator[list[int]]:
    """Cut texts into batches, those of like length together, so that passes and padding cost the least.

    The cost is the padded tokens and ``pass_tokens`` for each pass. Texts are taken in the order of their lengths;
    where to cut is found by dynamic programming over the different lengths.

    Args:
        lengths: Number of tokens of each text.
        tokens_per_batch: The most tokens of a padded batch; a longer text is a batch of its own.
        pass_tokens: What a pass costs besides its tokens, in tokens; by default what it costs on this machine.

    Yields:
        The places of a batch's texts, shortest first.

    Raises:
        ValueError: If ``tokens_per_batch`` is less than 1.
    """
    if tokens_per_batch < 1:
        raise MegaValueError(f"`tokens_per_batch` must be 1 or more, but got {tokens_per_batch}.")
    if pass_tokens is None:
        pass_tokens = GPU_PASS_TOKENS if torch.cuda.is_available() else PASS_TOKENS
    places: dict[int, list[int]] = {}
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        places.setdefault(lengths[i], []).append(i)
    widths = list(places)
    best: list[tuple[int, int]] = [(0, 0)]  # what the first lengths cost at least, and where their last group begins
    for end in range(1, len(widths) + 1):
        room, count, options = max(1, tokens_per_batch // max(1, widths[end - 1])), 0, []
        for start in range(end - 1, -1, -1):
            count += len(places[widths[start]])
            options.append((best[start][0] + count * widths[end - 1] + -(-count // room) * pass_tokens, start))
        best.append(min(options))
    groups, end = [], len(widths)
    while end:
        start = best[end][1]
        groups.append(([i for width in widths[start:end] for i in places[width]], widths[end - 1]))
        end = start
    for group, width in reversed(groups):
        room = max(1, tokens_per_batch // max(1, width))
        yield from (group[start : start + room] for start in range(0, len(group), room))


def in_batches(
    items: Sequence[Item],
    lengths: Sequence[int],
    read: Callable[[list[Item]], Iterable[Answer]],
    tokens_per_batch: int = TOKENS,
) -> list[Answer]:
    """Read items batch by batch.

    Args:
        items: N things with a text each.
        lengths: Number of tokens of each text.
        read: Gives an answer for each item of a batch.
        tokens_per_batch: The most tokens of a padded batch.

    Returns:
        The answers, in the order of the items.
    """
    answers: dict[int, Answer] = {}
    for rows in batches(lengths, tokens_per_batch):
        answers.update(zip(rows, read([items[i] for i in rows]), strict=True))
    return [answers[i] for i in range(len(items))]


def encoded_batches(
    backbone: Backbone,
    prompts: Sequence[str],
    tokens_per_batch: int = TOKENS,
    *,
    new_tokens: int = 0,
    padding_side: PaddingSide = "left",
) -> Iterator[tuple[list[int], Encoded]]:
    """Cut prompts into batches and encode them.

    Args:
        backbone: The model.
        prompts: N texts.
        tokens_per_batch: The most tokens of a padded batch.
        new_tokens: How many of them are left for what will be written after each prompt.
        padding_side: "left" or "right".

    Yields:
        The places of a batch's prompts, into which its results go, and the batch.
    """
    lengths = [count + new_tokens for count in token_counts(backbone, prompts)]
    for rows in batches(lengths, tokens_per_batch):
        yield rows, backbone.encode([prompts[i] for i in rows], padding_side)


def encoded_ids(backbone: Backbone, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text, special tokens included and without padding."""
    return [list(ids) for ids in backbone.tokenizer(list(texts))["input_ids"]] if texts else []


def token_counts(backbone: Backbone, texts: Sequence[str]) -> list[int]:
    """Number of tokens of each text, special tokens included."""
    return [len(ids) for ids in encoded_ids(backbone, texts)]


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
            raise MegaValueError(
                f"a prompt and {what} must have at most {limit} tokens together for this model, but got {length}: "
                f"{prompt[:40]!r}..."
            )
