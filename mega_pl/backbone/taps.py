"""Keeping what passes through the modules of a model in one forward pass, with every edit in force."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from mega_pl.backbone.backbone import Backbone, Encoded
from mega_pl.backbone.layout import blocks
from mega_pl.backbone.visits import Call, visited

_SHOWN = "mega_pl_shown"
"""Name under which the library knows an attention that returns its weights."""


@dataclass(frozen=True)
class Tap:
    """What to keep of a module's call.

    Args:
        path: of the module in its block; empty for the block itself.
        what: the values that enter it, those that leave it, or the attention weights that it returns beside them.
        every: whether to keep every token, the prompt's first one first, instead of its last alone.
        columns: (N,) long, the columns to keep, or None for all.
    """

    path: str
    what: Literal["entering", "leaving", "weights"]
    every: bool = False
    columns: Tensor | None = None

    def keep(self, encoded: Encoded, call: Call) -> Tensor:
        """Take it from a call: (B, ...), or (B, T, ...) with every token and for attention weights."""
        if self.what == "weights":
            return _aligned(_at_last(call.output[1].transpose(1, 2), encoded).mT, encoded)
        values = call.leaving if self.what == "leaving" else call.entering
        values = values if self.columns is None else values[..., self.columns.to(values.device)]
        return _aligned(values, encoded) if self.every else _at_last(values, encoded)


def run(
    backbone: Backbone, encoded: Encoded, taps: Mapping[tuple[str, int], Tap]
) -> tuple[Tensor, dict[tuple[str, int], Tensor]]:
    """Run the model on prompts with taps in its blocks.

    Hooks are attached when the model starts to read, hence after those of any edit, so that they see what it made.

    Args:
        backbone: the model.
        encoded: B prompts.
        taps: by a name and a layer.

    Returns:
        The logits (B, V) after each prompt's last token in float32, and what each tap kept, in the model's dtype, all
        on the unembedding's device.
    """
    model = backbone.model
    home = model.get_output_embeddings().weight.device
    seen: dict[tuple[str, int], Tensor] = {}

    def keep(key: tuple[str, int], call: Call) -> None:
        seen[key] = taps[key].keep(encoded, call).to(home)

    with ExitStack() as armed:

        def attach(*_: object) -> None:
            for key, tap in taps.items():
                module = blocks(model)[key[1]].get_submodule(tap.path)
                armed.enter_context(visited(module, partial(keep, key)))

        armed.callback(model.register_forward_pre_hook(attach).remove)
        logits = backbone.last_logits(encoded)
    return logits.to(home), seen


def run_all(backbone: Backbone, encoded: Encoded, taps: Mapping[str, Tap]) -> tuple[Tensor, dict[str, Tensor]]:
    """Run the model with the same taps in all blocks; what they keep is stacked at dimension 1, (B, L, ...)."""
    layers = range(backbone.n_layers)
    logits, seen = run(backbone, encoded, {(name, layer): tap for name, tap in taps.items() for layer in layers})
    return logits, {name: torch.stack([seen[name, layer] for layer in layers], 1) for name in taps}


def wide(values: Tensor) -> Tensor:
    """Give values in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _at_last(values: Tensor, encoded: Encoded) -> Tensor:
    """Give the last real token of each row of (B, T, ...)."""
    return values[torch.arange(len(values), device=values.device), encoded.last.to(values.device)]


def _aligned(values: Tensor, encoded: Encoded) -> Tensor:
    """Move each row of (B, T, ...) to its first real token and put zeros after its last."""
    mask, last = encoded.attention_mask.to(values.device), encoded.last.to(values.device)
    lengths, columns = mask.sum(-1), torch.arange(values.shape[1], device=values.device)
    moved = (last - lengths + 1)[:, None] + columns
    rows = torch.arange(len(values), device=values.device)[:, None]
    absent = (columns >= lengths[:, None]).view(*moved.shape, *[1] * (values.dim() - 2))
    return values[rows, moved.clamp(max=values.shape[1] - 1)].masked_fill(absent, 0)


@contextmanager
def shown_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attention that returns its weights, unrounded, for the time of a ``with`` block."""
    chosen = model.config._attn_implementation
    model.set_attn_implementation(_SHOWN)
    try:
        yield
    finally:
        model.set_attn_implementation(chosen)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Attention as the library calls it, (B, H, T, K) in, (B, T, H, K) out; its own eager one rounds the weights.

    In float64 the library's gives LLaMA's padding NaN besides.
    """
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = wide(query) @ wide(key).mT * scaling
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1)
    return (weights.to(value.dtype) @ value).transpose(1, 2), weights


AttentionInterface.register(_SHOWN, _attend)
AttentionMaskInterface.register(_SHOWN, eager_mask)
