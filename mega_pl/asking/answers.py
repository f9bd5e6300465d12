"""Asking the bare model itself: its next token, its answers, and how it goes on."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mega_pl.backbone import Backbone

Item = TypeVar("Item")


def likeliest(backbone: Backbone, prompts: Sequence[str], *, batch: int = 128) -> list[int]:
    """The likeliest token after each prompt.

    Args:
        backbone: The bare model.
        prompts: Questions that end before the answer.
        batch: Prompts a forward pass.
    """
    encoded = (backbone.encode(chunk) for chunk in _chunks(prompts, batch))
    return [token for chunk in encoded for token in backbone.last_logits(chunk).argmax(-1).tolist()]


def next_log_probs(backbone: Backbone, prompts: Sequence[str], tokens: Tensor, *, batch: int = 128) -> Tensor:
    """Log-probability (N,) of a token of each prompt's own right after it, float32 on the CPU.

    Args:
        backbone: The bare model.
        prompts: N texts.
        tokens: (N,) long.
        batch: Prompts a forward pass.
    """
    found = torch.empty(len(prompts))
    for chunk in _chunks(sorted(range(len(prompts)), key=lambda i: len(prompts[i])), batch):  # little padding
        logits = backbone.last_logits(backbone.encode([prompts[i] for i in chunk]))
        index = tokens[chunk].to(logits.device)
        found[chunk] = (logits.gather(1, index[:, None])[:, 0] - logits.logsumexp(1)).cpu()
    return found


def answers(
    backbone: Backbone, prompts: Sequence[str], *, least: float = 0.1, tokens: int = 12, batch: int = 128
) -> list[tuple[str, ...]]:
    """What the model answers: each first token of at least ``least`` probability, continued greedily.

    Args:
        backbone: The bare model.
        prompts: Questions that end before the answer.
        least: Least probability of an answer's first token.
        tokens: The most tokens of an answer; it ends before the first full stop or line break.
        batch: Prompts a forward pass.

    Returns:
        For each prompt its answers, the likeliest first.
    """
    starts: list[tuple[int, int]] = []
    for chunk in _chunks(range(len(prompts)), batch):
        chances, ids = backbone.last_logits(backbone.encode([prompts[i] for i in chunk])).softmax(-1).topk(5)
        for i, row, of_row in zip(chunk, chances.tolist(), ids.tolist(), strict=True):
            starts += [(i, token) for chance, token in zip(row, of_row, strict=True) if chance >= least]
    texts = continued(backbone, [prompts[i] for i, _ in starts], tokens, first=[token for _, token in starts])
    found: list[list[str]] = [[] for _ in prompts]
    for (i, _), text in zip(starts, texts, strict=True):
        answer = _sentence(text, backbone)
        if answer and answer not in found[i]:
            found[i].append(answer)
    return [tuple(names) for names in found]


@torch.no_grad()
def continued(
    backbone: Backbone, prompts: Sequence[str], tokens: int, *, first: Sequence[int] | None = None, batch: int = 128
) -> list[str]:
    """The greedy continuations of prompts by the bare model, even where edits are in force on it.

    The decoder and the head are called one after the other, below the model that edits are put on.

    Args:
        backbone: The model.
        prompts: N texts.
        tokens: Tokens of a continuation.
        first: (N,) the token that each begins with, or None for the likeliest.
        batch: Prompts that are continued together.
    """
    texts: list[str] = []
    for start in range(0, len(prompts), batch):
        chunk = prompts[start : start + batch]
        begun = None if first is None else torch.tensor(first[start : start + batch], device=backbone.device)
        encoded = backbone.encode(chunk)
        ids = torch.cat([encoded.input_ids, _written(backbone, encoded.inputs, tokens, begun)], 1)
        whole = backbone.tokenizer.batch_decode(ids, skip_special_tokens=True)
        before = backbone.tokenizer.batch_decode(encoded.input_ids, skip_special_tokens=True)
        texts += [text[len(prompt) :] for prompt, text in zip(before, whole, strict=True)]
    return texts


@torch.no_grad()
def greedy_ids(backbone: Backbone, ids: Sequence[int], tokens: int) -> list[int]:
    """The ids that the bare model writes after others, greedily, even where edits are in force on it.

    Args:
        backbone: The model.
        ids: (T,) what it reads.
        tokens: How many it writes.
    """
    start = torch.tensor([list(ids)], device=backbone.device)
    position = torch.arange(len(ids), device=backbone.device)[None]
    inputs = {"input_ids": start, "attention_mask": torch.ones_like(start), "position_ids": position}
    return [int(token) for token in _written(backbone, inputs, tokens, None)[0]]


def _written(backbone: Backbone, inputs: dict[str, Tensor], tokens: int, first: Tensor | None) -> Tensor:
    """The ids (B, tokens) that the model writes after a left-padded batch."""
    decoder, head = backbone.model.base_model, backbone.model.get_output_embeddings()
    mask, position = inputs["attention_mask"], inputs["position_ids"][:, -1:]
    step = dict(inputs)
    cache = None
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


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[i : i + size] for i in range(0, len(items), size))
