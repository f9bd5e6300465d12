"""What the bare model itself answers, and how it goes on, even where edits are in force on it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache

from mega_pl.asking.batches import TOKENS, encoded_batches
from mega_pl.asking.generation import added
from mega_pl.backbone import Backbone


def answers(
    backbone: Backbone,
    prompts: Sequence[str],
    *,
    least: float = 0.1,
    most: int = 5,
    tokens: int = 12,
    tokens_per_batch: int = TOKENS,
) -> list[tuple[str, ...]]:
    """What the model answers: each first token of at least ``least`` probability, continued greedily.

    Args:
        backbone: The bare model.
        prompts: Questions that end before the answer.
        least: Least probability of an answer's first token.
        most: The most first tokens, the likeliest.
        tokens: The most tokens of an answer; it ends before the first full stop or line break.
        tokens_per_batch: The most tokens of a batch.

    Returns:
        For each prompt its answers, the likeliest first.
    """
    starts: list[tuple[int, int]] = []
    for rows, encoded in encoded_batches(backbone, prompts, tokens_per_batch):
        chances, ids = backbone.last_logits(encoded).softmax(-1).topk(most)
        for i, row, of_row in zip(rows, chances.tolist(), ids.tolist(), strict=True):
            starts += [(i, token) for chance, token in zip(row, of_row, strict=True) if chance >= least]
    beginnings, first = [prompts[i] for i, _ in starts], [token for _, token in starts]
    texts = continued(backbone, beginnings, tokens, first=first, tokens_per_batch=tokens_per_batch)
    found: list[list[str]] = [[] for _ in prompts]
    for (i, _), text in zip(starts, texts, strict=True):
        answer = _sentence(text, backbone)
        if answer and answer not in found[i]:
            found[i].append(answer)
    return [tuple(names) for names in found]


@torch.no_grad()
def continued(
    backbone: Backbone,
    prompts: Sequence[str],
    tokens: int,
    *,
    first: Sequence[int] | None = None,
    tokens_per_batch: int = TOKENS,
) -> list[str]:
    """The greedy continuations of prompts by the bare model, even where edits are in force on it.

    The decoder and the head are called one after the other, below the model that edits are put on.

    Args:
        backbone: The model.
        prompts: N texts.
        tokens: Tokens of a continuation.
        first: (N,) the token that each begins with, or None for the likeliest.
        tokens_per_batch: The most tokens of a batch, those to be written included.
    """
    begun = None if first is None else torch.tensor(first, device=backbone.device)
    texts = [""] * len(prompts)
    for rows, encoded in encoded_batches(backbone, prompts, tokens_per_batch, new_tokens=tokens):
        new = _written(backbone, encoded.inputs, tokens, None if begun is None else begun[rows])
        for i, text in zip(rows, added(backbone, encoded, new.tolist()), strict=True):
            texts[i] = text
    return texts


@torch.no_grad()
def greedy_ids(backbone: Backbone, ids: Sequence[int], tokens: int, *, cache: Cache | None = None) -> list[int]:
    """The ids that the bare model writes after others, greedily, even where edits are in force on it.

    Args:
        backbone: The model.
        ids: (T,) what it reads.
        tokens: How many it writes.
        cache: Of all ids but the last, if they have been read; it is appended to.
    """
    start = torch.tensor([list(ids)], device=backbone.device)
    position = torch.arange(len(ids), device=backbone.device)[None]
    read = 0 if cache is None else len(ids) - 1
    inputs = {
        "input_ids": start[:, read:],
        "attention_mask": torch.ones_like(start),
        "position_ids": position[:, read:],
    }
    return [int(token) for token in _written(backbone, inputs, tokens, None, cache)[0]]


def _written(
    backbone: Backbone, inputs: dict[str, Tensor], tokens: int, first: Tensor | None, cache: Cache | None = None
) -> Tensor:
    """The ids (B, tokens) that the model writes after a left-padded batch, or after its last tokens behind a cache."""
    decoder, head = backbone.model.base_model, backbone.model.get_output_embeddings()
    mask, position = inputs["attention_mask"], inputs["position_ids"][:, -1:]
    step = dict(inputs)
    written: list[Tensor] = []
    for _ in range(tokens):
        output = decoder(**step, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        token = head(output.last_hidden_state[:, -1]).argmax(-1) if written or first is None else first
        written.append(token)
        mask, position = torch.cat([mask, torch.ones_like(mask[:, :1])], 1), position + 1
        step = {"input_ids": token[:, None], "attention_mask": mask, "position_ids": position}
    return torch.stack(written, 1)


def _sentence(text: str, backbone: Backbone) -> str:
    for end in (".", "\n", backbone.tokenizer.eos_token):
        text = text.split(end)[0]
    return text.strip()
