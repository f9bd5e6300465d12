"""Drawing what a model writes: with a seed for each prompt, or with one for all."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from mega_pl.backbone import Backbone
from mega_pl.errors import MegaValueError


@dataclass(frozen=True)
class Sampling:
    """Drawing each next token from the most probable ones instead of taking the best.

    Args:
        seeds: For each prompt what its draws are made of, so that they depend neither on the batch nor on the model.
        top_k: How many tokens are drawn from, each with its probability among them.
    """

    seeds: tuple[str, ...]
    top_k: int = 5


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
            raise MegaValueError(f"`top_k` must be 1 or more, but got {top_k}.")
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
def sample(backbone: Backbone, ids: Tensor, mask: Tensor, tokens: int, seed: int, *, top_k: int = 0) -> list[str]:
    """Continue texts at temperature 1, whatever the model's own settings of generation.

    Args:
        backbone: The model.
        ids: (B, T) long, what to continue, padded on the left.
        mask: (B, T), 1 at real tokens.
        tokens: The most new tokens; a text may end before.
        seed: Seed of the draws; the global generators are left as they were.
        top_k: Tokens to draw from; 0 for all.

    Returns:
        B texts with their beginnings, without special tokens.
    """
    with torch.random.fork_rng(devices=[ids.device] if ids.device.type == "cuda" else []):
        torch.manual_seed(seed)
        written = backbone.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=True,
            temperature=1.0,
            top_k=top_k,
            top_p=1.0,
            pad_token_id=backbone.tokenizer.pad_token_id,
        )
    return list(backbone.tokenizer.batch_decode(written, skip_special_tokens=True))
