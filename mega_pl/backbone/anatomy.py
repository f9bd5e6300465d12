"""What a model is made of, read the same way in every family: final norm, heads and neurons.

Weights come as rows: row i is the vector that coordinate i of the heads, or neuron i of the MLP, writes into the stream
where it is 1. A key is the vector with which it reads the stream. `observation` says what they do in a forward pass.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mega_pl.backbone.layout import blocks, layout_of
from mega_pl.functional.importance import ReadOut

NeuronSide = Literal["gate", "input", "output"]
"""Which weights of an MLP's neuron: those of its gate, of its input, or what it writes."""

_INTERLEAVED = frozenset({"gpt_neox"})
"""Families that make query, key and value head by head, so that the values are not the last columns."""


def has_components(model: PreTrainedModel) -> bool:
    """Whether heads and neurons write into the stream as they are, those of attention first."""
    layout = layout_of(model)
    return not (layout.post_norms or layout.parallel or model.config.model_type in _INTERLEAVED)


def check_components(model: PreTrainedModel) -> None:
    """Refuse a model in which heads and neurons do not write into the stream one after the other.

    Raises:
        ValueError: if norms stand between them and the stream, or attention and MLP are parallel.
    """
    if not has_components(model):
        raise ValueError(
            "the model must add what heads and neurons write to the stream as it is, attention first, but got "
            f"{model.config.model_type!r}; use the layer level."
        )


def read_out(
    model: PreTrainedModel, final: Tensor, *, scale: Tensor | None = None, include_final_bias: bool = False
) -> ReadOut:
    """Return the linear map from the stream to the logits that a fixed scale of the final norm makes.

    Args:
        model: a model of a known architecture.
        final: (D,) the stream before the final norm, float32 or float64, which gives the scale and the dtype.
        scale: () another scale, or None.
        include_final_bias: whether the logits have what the final norm's bias adds.
    """
    norm = model.get_submodule(layout_of(model).final_norm)
    unembedding: Tensor = model.get_output_embeddings().weight
    final = final.to(unembedding.device)
    centred = isinstance(norm, nn.LayerNorm)
    around = final - final.mean() if centred else final
    return ReadOut(
        unembedding=unembedding,
        gain=_gain(model, norm).to(final),
        scale=(around.square().mean() + _epsilon(norm)).sqrt() if scale is None else scale.to(final),
        centred=centred,
        bias=norm.bias.to(final) if include_final_bias and isinstance(norm, nn.LayerNorm) else None,
        cap=getattr(model.config, "final_logit_softcapping", None),
    )


def head_rows(model: PreTrainedModel, layer: int) -> Tensor:
    """Return what the heads' coordinates write, (H · K, D), head by head, in the model's dtype."""
    return _matrix(_part(model, layer, layout_of(model).attn_proj))


def head_keys(model: PreTrainedModel, layer: int) -> Tensor:
    """Return what the heads' values read, (H · K, D), times the gain of attention's norm; groups are repeated."""
    layout = layout_of(model)
    heads, groups, size = head_shape(model)
    keys = _matrix(_part(model, layer, layout.value)).T[-groups * size :]
    keys = keys.reshape(groups, size, -1).repeat_interleave(heads // groups, 0).flatten(0, 1)
    return _scaled(model, layer, layout.attn_norm, keys)


def neuron_rows(model: PreTrainedModel, layer: int) -> Tensor:
    """Return what the MLP's neurons write, (F, D), in the model's dtype."""
    return _matrix(_part(model, layer, layout_of(model).mlp_proj))


def neuron_keys(model: PreTrainedModel, layer: int, side: NeuronSide = "gate") -> Tensor:
    """Return what the MLP's neurons read, (F, D), times the gain of the MLP's norm.

    Args:
        model: a model of a known architecture.
        layer: 0-based block.
        side: "gate" or "input", which are the same where neurons have no gate; "output" takes the rows instead.
    """
    layout = layout_of(model)
    path = layout.mlp_in[0] if side == "gate" else layout.mlp_in[-1]
    keys = neuron_rows(model, layer) if side == "output" else _matrix(_part(model, layer, path)).T
    return _scaled(model, layer, layout.mlp_norm, keys)


def head_shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Return how many heads H and groups of keys and values a block has, and the size K of a head."""
    heads = int(model.config.num_attention_heads)
    groups = int(getattr(model.config, "num_key_value_heads", None) or heads)
    return heads, groups, len(head_rows(model, 0)) // heads


def projection_bias(model: PreTrainedModel, layer: int, part: Literal["attention", "mlp"]) -> Tensor:
    """Return the bias (D,) that attention or the MLP adds to what its heads or neurons write, or zeros."""
    layout = layout_of(model)
    module = _part(model, layer, layout.attn_proj if part == "attention" else layout.mlp_proj)
    bias: Tensor | None = module.bias
    return torch.zeros_like(_matrix(module)[0]) if bias is None else bias


def _part(model: PreTrainedModel, layer: int, path: str) -> nn.Linear | Conv1D:
    module = blocks(model)[layer].get_submodule(path)
    if not isinstance(module, nn.Linear | Conv1D) or not module.weight.is_floating_point():
        raise ValueError(
            f"`{path}` must be a linear module with floating-point weights, but got {type(module).__name__}; "
            "load the model without quantisation and adapters."
        )
    return module


def _matrix(module: nn.Linear | Conv1D) -> Tensor:
    """The matrix (in, out) by which a linear module multiplies rows."""
    weight: Tensor = module.weight
    return weight if isinstance(module, Conv1D) else weight.T


def _scaled(model: PreTrainedModel, layer: int, path: str | None, keys: Tensor) -> Tensor:
    if path is None:
        return keys
    return keys * _gain(model, blocks(model)[layer].get_submodule(path)).to(keys)


def _gain(model: PreTrainedModel, norm: nn.Module) -> Tensor:
    weight: Tensor = norm.get_parameter("weight")
    return 1.0 + weight.float() if model.config.model_type.startswith("gemma") else weight


def _epsilon(norm: nn.Module) -> float:
    epsilon: float = getattr(norm, "eps" if hasattr(norm, "eps") else "variance_epsilon")
    return epsilon
