"""Letting a model go on from prompts on its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessorList

from mega_pl.asking.batches import TOKENS, check_room, in_batches, position_limit, token_counts
from mega_pl.asking.edited import BARE, Edited
from mega_pl.asking.sampling import Sampling, TopKNoise
from mega_pl.backbone import Backbone, Encoded
from mega_pl.errors import MegaValueError

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


def continuations(
    backbone: Backbone,
    prompts: Sequence[str],
    new_tokens: int | Sequence[int] = NEW_TOKENS,
    *,
    edited: Edited = BARE,
    sampling: Sampling | None = None,
    stops: Sequence[str] = (),
    tokens_per_batch: int = TOKENS,
) -> list[Continuation]:
    """Write on after prompts, greedily or by drawing, until the end-of-sequence token, a stop or a number of tokens.

    Prompts are padded on the left and read once into a cache, and a prompt that comes twice is continued once.

    Args:
        backbone: The model, within its edits.
        prompts: N texts.
        new_tokens: The most tokens to write, for all prompts or for each.
        edited: The edits in force; they say how a prompt is asked.
        sampling: How to draw; by default the most probable token is taken.
        stops: Strings that end a text; it ends with the token that completes one, whatever else that token holds.
        tokens_per_batch: The most tokens of a batch, those to be written included.

    Returns:
        What follows each prompt, in their order.

    Raises:
        ValueError: If lengths differ, no token is to be written, or a prompt and its continuation are too long.
    """
    budgets = [new_tokens] * len(prompts) if isinstance(new_tokens, int) else list(new_tokens)
    seeds = [""] * len(prompts) if sampling is None else list(sampling.seeds)
    if not len(budgets) == len(seeds) == len(prompts):
        raise MegaValueError(
            "`new_tokens` and the seeds must be given for each prompt, "
            f"but got {len(budgets)} and {len(seeds)} for {len(prompts)} prompts."
        )
    if any(budget < 1 for budget in budgets):
        raise MegaValueError(f"`new_tokens` must be 1 or more, but got {min(budgets)}.")
    wanted = [_Wish(edited.prompt(p), n, seed) for p, n, seed in zip(prompts, budgets, seeds, strict=True)]
    unique = list(dict.fromkeys(wanted))
    starts = token_counts(backbone, [wish.prompt for wish in unique])
    lengths = [start + wish.new_tokens for start, wish in zip(starts, unique, strict=True)]
    check_room(backbone, [wish.prompt for wish in unique], lengths, "its continuation")
    written: dict[_Wish, Continuation] = {}
    for group in _groups(backbone, unique, starts):
        wishes = [unique[i] for i in group]
        write = partial(_write, backbone, edited, sampling, stops)
        new = in_batches(wishes, [lengths[i] for i in group], write, tokens_per_batch)
        written.update(zip(wishes, new, strict=True))
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


@torch.no_grad()
def _write(
    backbone: Backbone, edited: Edited, sampling: Sampling | None, stops: Sequence[str], wishes: Sequence[_Wish]
) -> list[Continuation]:
    """Write on after the prompts of one batch."""
    encoded = backbone.encode([wish.prompt for wish in wishes], padding_side="left")
    config = GenerationConfig(
        max_new_tokens=max(wish.new_tokens for wish in wishes),
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        pad_token_id=backbone.tokenizer.pad_token_id,
        stop_strings=list(stops) or None,
    )
    noise = [] if sampling is None else [TopKNoise([wish.seed for wish in wishes], sampling.top_k)]
    ids = backbone.model.generate(
        **encoded.inputs,
        generation_config=config,
        logits_processor=LogitsProcessorList(noise),
        tokenizer=backbone.tokenizer,
    )
    fired = edited.fired or [None] * len(wishes)
    new = ids[:, encoded.input_ids.shape[1] :].tolist()
    texts = added(backbone, encoded, [own[: wish.new_tokens] for own, wish in zip(new, wishes, strict=True)])
    return [Continuation(text, edit or "") for text, edit in zip(texts, fired, strict=True)]


def added(backbone: Backbone, encoded: Encoded, new: Sequence[Sequence[int]]) -> list[str]:
    """What new ids add to the text of each prompt of a batch, verbatim."""
    starts = [row[mask.bool()].tolist() for row, mask in zip(encoded.input_ids, encoded.attention_mask, strict=True)]
    return [backbone.continuation(start, own) for start, own in zip(starts, new, strict=True)]
