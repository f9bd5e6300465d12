"""Letting a model go on from prompts on its own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from mega_pl.backbone import Backbone
from mega_pl.editors.protocol import Edited
from mega_pl.evaluation.batching import BARE, TOKENS, batches, check_room, encoded_ids, position_limit

NEW_TOKENS = 30
"""How far answers are written, as RippleEdits does (arXiv:2307.12976)."""


@dataclass(frozen=True)
class Continuation:
    """What a model writes after a prompt.

    Args:
        text: The text without the prompt; it begins with the space that divides them.
        fired: The edit that the prompt got; "" if none did or edits are not routed.
    """

    text: str
    fired: str = ""


@dataclass(frozen=True)
class Sampling:
    """Drawing each next token from the most probable ones instead of taking the best.

    Args:
        seeds: For each prompt what its draws are made of, so that they depend neither on the batch nor on the model.
        top_k: How many tokens are drawn from, each with its probability among them.
    """

    seeds: tuple[str, ...]
    top_k: int = 5


def continuations(
    backbone: Backbone,
    prompts: Sequence[str],
    new_tokens: int | Sequence[int] = NEW_TOKENS,
    *,
    edited: Edited = BARE,
    sampling: Sampling | None = None,
    tokens: int = TOKENS,
) -> list[Continuation]:
    """Write on after prompts, greedily or by drawing, until the end-of-sequence token or a number of tokens.

    Prompts are padded on the left and read once into a cache, and a prompt that comes twice is continued once.

    Args:
        backbone: The model, within its edits.
        prompts: N texts.
        new_tokens: The most tokens to write, for all prompts or for each.
        edited: The edits in force; they say how a prompt is asked.
        sampling: How to draw; by default the most probable token is taken.
        tokens: The most tokens of a batch, those to be written included.

    Returns:
        What follows each prompt, in their order.

    Raises:
        ValueError: If lengths differ, no token is to be written, or a prompt and its continuation are too long.
    """
    budgets = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else list(new_tokens)
    seeds = [""] * len(prompts) if sampling is None else list(sampling.seeds)
    if not len(budgets) == len(seeds) == len(prompts):
        raise ValueError(
            "`new_tokens` and the seeds must be given for each prompt, "
            f"but got {len(budgets)} and {len(seeds)} for {len(prompts)} prompts."
        )
    if any(budget < 1 for budget in budgets):
        raise ValueError(f"`new_tokens` must be 1 or more, but got {min(budgets)}.")
    wanted = [_Wish(edited.prompt(p), n, seed) for p, n, seed in zip(prompts, budgets, seeds, strict=True)]
    unique = list(dict.fromkeys(wanted))
    starts = [len(ids) for ids in encoded_ids(backbone, [wish.prompt for wish in unique])]
    lengths = [start + wish.new_tokens for start, wish in zip(starts, unique, strict=True)]
    check_room(backbone, [wish.prompt for wish in unique], lengths, "its continuation")
    written: dict[_Wish, Continuation] = {}
    for group in _groups(backbone, unique, starts):
        for batch in batches([lengths[i] for i in group], tokens):
            wishes = [unique[group[i]] for i in batch]
            written.update(zip(wishes, _write(backbone, edited, wishes, sampling), strict=True))
    return [written[wish] for wish in wanted]


class _Wish(NamedTuple):
    """A prompt as it is asked, how many tokens may follow it, and what draws are made of."""

    prompt: str
    new_tokens: int
    seed: str


def _groups(backbone: Backbone, wishes: Sequence[_Wish], starts: Sequence[int]) -> list[list[int]]:
    """Places that may be continued together: a batch writes as much after each prompt as after any.

    Where that would take a long prompt beyond the model, only prompts with equally much to follow are.
    """
    places = range(len(wishes))
    most, limit = max((wish.new_tokens for wish in wishes), default=0), position_limit(backbone)
    if limit is None or max(starts, default=0) + most <= limit:
        return [list(places)]
    sizes = sorted({wish.new_tokens for wish in wishes})
    return [[i for i in places if wishes[i].new_tokens == size] for size in sizes]


class TopKNoise(LogitsProcessor):
    """Makes the greedy choice a draw from the k most probable tokens.

    The token with the highest logit plus independent Gumbel noise is distributed as the softmax of the logits (Gumbel,
    1954). Each row has a random generator of its own.

    Args:
        seeds: Of the rows of the batch.
        top_k: How many tokens are drawn from.

    Raises:
        ValueError: If ``top_k`` is less than 1.
    """

    def __init__(self, seeds: Sequence[str], top_k: int) -> None:
        if top_k < 1:
            raise ValueError(f"`top_k` must be 1 or more, but got {top_k}.")
        digests = [hashlib.sha256(seed.encode()).digest()[:7] for seed in seeds]
        self.generators = [torch.Generator().manual_seed(int.from_bytes(digest)) for digest in digests]
        self.top_k = top_k

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Perturb the scores (B, V) of the most probable tokens and forbid the others."""
        best, ids = scores.float().topk(min(self.top_k, scores.shape[-1]))
        noise = torch.stack([torch.rand(best.shape[1], generator=generator) for generator in self.generators])
        gumbel = noise.clamp(min=torch.finfo(noise.dtype).tiny).log().neg().log().neg()
        forbidden = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        return forbidden.scatter(-1, ids, best + gumbel.to(best.device))


@torch.no_grad()
def _write(
    backbone: Backbone, edited: Edited, wishes: Sequence[_Wish], sampling: Sampling | None
) -> list[Continuation]:
    """Write on after the prompts of one batch."""
    encoded = backbone.encode([wish.prompt for wish in wishes], padding_side="left")
    config = GenerationConfig(
        max_new_tokens=max(wish.new_tokens for wish in wishes),
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        pad_token_id=backbone.tokenizer.pad_token_id,
    )
    noise = [] if sampling is None else [TopKNoise([wish.seed for wish in wishes], sampling.top_k)]
    ids = backbone.model.generate(
        **encoded.inputs, generation_config=config, logits_processor=LogitsProcessorList(noise)
    )
    fired = edited.fired or [None] * len(wishes)
    starts = [row[mask.bool()].tolist() for row, mask in zip(encoded.input_ids, encoded.attention_mask, strict=True)]
    new = ids[:, encoded.input_ids.shape[1] :].tolist()
    return [
        Continuation(backbone.continuation(start, own[: wish.new_tokens]), edit or "")
        for start, own, wish, edit in zip(starts, new, wishes, fired, strict=True)
    ]
