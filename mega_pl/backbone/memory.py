"""How much memory a model and its forward pass take, known from the shapes alone."""

import os
from itertools import chain

import torch

from mega_pl.backbone.backbone import Backbone
from mega_pl.backbone.layout import blocks

CPU_TOKENS = 1024
"""Tokens of a forward pass on a CPU, which a few prompts keep busy and padding costs most."""

MOST_TOKENS = 32768
"""Tokens of a forward pass beyond which a GPU gets no faster."""

GPU_LENGTH = 64
"""Tokens of a prompt, as far as memory is concerned."""


def weight_bytes(backbone: Backbone) -> int:
    """Bytes of all weights and buffers; tied weights count once."""
    model = backbone.model
    return sum(tensor.numel() * tensor.element_size() for tensor in chain(model.parameters(), model.buffers()))


def forward_bytes(backbone: Backbone, prompts: int, tokens: int) -> int:
    """Bytes of a forward pass without gradients and cache beyond the weights, at its widest moment.

    In a block that is the MLP: three tensors of its inner width where it is gated, five where it is not, because
    GPT-2's activation is made of as many, and four of the stream's. Where the MLP's first module is not known its inner
    width is that of the block's widest weights. The mask is (T, T) for each prompt, and last
    tokens have logits in the model's dtype and in float32. Attention that keeps its weights takes more.

    Args:
        backbone: The model, or its outline.
        prompts: Prompts a forward pass.
        tokens: Length of the longest.
    """
    size = torch.finfo(backbone.dtype).bits // 8
    block, first = blocks(backbone.model)[0], backbone.layout.mlp_in[:1]
    own = [block.get_parameter(f"{path}.weight") for path in first] or list(block.parameters())
    inner = max(max(weight.shape[-2:]) for weight in own)
    of_tokens = tokens * ((3 if len(backbone.layout.mlp_in) == 2 else 5) * inner + 4 * backbone.width) * size
    of_prompt = tokens * tokens * size + int(backbone.config.vocab_size) * (size + 4)
    return prompts * (of_tokens + of_prompt)


def cache_bytes(backbone: Backbone, tokens: int) -> int:
    """Bytes of the keys and values of some tokens.

    Args:
        backbone: The model, or its outline.
        tokens: How many are kept.
    """
    config, heads = backbone.config, int(backbone.config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    size = int(getattr(config, "head_dim", None) or backbone.width // heads)
    return tokens * backbone.n_layers * 2 * groups * size * torch.finfo(backbone.dtype).bits // 8


def device_bytes() -> int:
    """Memory of the first GPU, or of the machine where there is none."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def tokens_that_fit(backbone: Backbone) -> int:
    """Tokens of a forward pass: on a CPU what keeps it busy, on a GPU what half of its free memory holds.

    Args:
        backbone: The model.
    """
    device = backbone.device
    if device.type != "cuda":
        return CPU_TOKENS
    free = torch.cuda.mem_get_info(device)[0] // 2
    of_token = forward_bytes(backbone, 1, GPU_LENGTH) // GPU_LENGTH + 2 * cache_bytes(backbone, 1)
    return max(CPU_TOKENS, min(MOST_TOKENS, free // of_token))
