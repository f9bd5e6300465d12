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

from mega_pl.backbone.layout import blocks, layout_of, text_config
from mega_pl.errors import MegaValueError
from mega_pl.functional.importance import ReadOut

NeuronSide = Literal["gate", "input", "output"]
"""Which weights of an MLP's neuron: those of its gate, of its input, or what it writes."""

_INTERLEAVED = frozenset({"gpt_neox"})
"""Families that make query, key and value head by head, so that the values are not the last columns."""


def has_components(model: PreTrainedModel) -> bool:
    """Whether heads and neurons write into the stream as they are, those of attention first."""
    layout = layout_of(model)
    modules = layout.attn_proj and layout.value and layout.mlp_in and layout.mlp_proj
    as_they_are = not layout.post_norms and layout.residual_scale == 1 and not layout.parallel
    return bool(modules) and as_they_are and model.config.model_type not in _INTERLEAVED


def check_components(model: PreTrainedModel) -> None:
    """Refuse a model in which heads and neurons do not write into the stream one after the other.

    Raises:
        ValueError: if norms or factors stand between them and the stream, attention and MLP are parallel, or the
            architecture's heads or neurons cannot be told apart.
    """
    if not has_components(model):
        raise MegaValueError(
            "the model must add what heads and neurons write to the stream as it is, attention first, but got "
            f"{model.config.model_type!r}; use the layer level."
        )


def check_read_out(model: PreTrainedModel) -> None:
    """Refuse a model whose logits are more than a linear map of the normalised stream.

    Raises:
        ValueError: if the unembedding adds a bias, which no vector in the stream could have written.
    """
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise MegaValueError(
            f"the model must have an unembedding without a bias, but that of {model.config.model_type!r} adds one; "
            "give the sites yourself."
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

    Raises:
        ValueError: if the model has none; see `check_read_out`.
    """
    check_read_out(model)
    norm = model.get_submodule(layout_of(model).final_norm)
    unembedding = model.get_output_embeddings().weight.detach()
    final = final.to(unembedding.device)
    centred = type(norm).__name__.endswith("LayerNorm")  # PyTorch's own, and those of families without a bias
    around = final - final.mean() if centred else final
    factor = _logit_factor(model)
    return ReadOut(
        unembedding=unembedding,
        gain=_gain(model, norm).to(final) * factor,
        scale=(around.square().mean() + _epsilon(norm)).sqrt() if scale is None else scale.to(final),
        centred=centred,
        bias=norm.bias.detach().to(final) * factor if include_final_bias and isinstance(norm, nn.LayerNorm) else None,
        cap=getattr(text_config(model), "final_logit_softcapping", None),
    )


def head_rows(model: PreTrainedModel, layer: int) -> Tensor:
    """Return what the heads' coordinates write, (H · K, D), head by head, in the model's dtype."""
    return _matrix(_part(model, layer, layout_of(model).path("attn_proj")))


def head_keys(model: PreTrainedModel, layer: int) -> Tensor:
    """Return what the heads' values read, (H · K, D), times the gain of attention's norm; groups are repeated."""
    layout = layout_of(model)
    heads, groups, size = head_shape(model)
    keys = _matrix(_part(model, layer, layout.path("value"))).T[-groups * size :]
    keys = keys.reshape(groups, size, -1).repeat_interleave(heads // groups, 0).flatten(0, 1)
    return _scaled(model, layer, layout.attn_norm, keys)


def neuron_rows(model: PreTrainedModel, layer: int) -> Tensor:
    """Return what the MLP's neurons write, (F, D), in the model's dtype."""
    return _matrix(_part(model, layer, layout_of(model).path("mlp_proj")))


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
    config = text_config(model)
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    return heads, groups, len(head_rows(model, 0)) // heads


def projection_bias(model: PreTrainedModel, layer: int, part: Literal["attention", "mlp"]) -> Tensor:
    """Return the bias (D,) that attention or the MLP adds to what its heads or neurons write, or zeros."""
    layout = layout_of(model)
    module = _part(model, layer, layout.path("attn_proj" if part == "attention" else "mlp_proj"))
    bias: Tensor | None = module.bias
    return torch.zeros_like(_matrix(module)[0]) if bias is None else bias.detach()


def _part(model: PreTrainedModel, layer: int, path: str) -> nn.Linear | Conv1D:
    module = blocks(model)[layer].get_submodule(path)
    if not isinstance(module, nn.Linear | Conv1D) or not module.weight.is_floating_point():
        raise MegaValueError(
            f"`{path}` must be a linear module with floating-point weights, but got {type(module).__name__}; "
            "load the model without quantisation and adapters."
        )
    return module


def _matrix(module: nn.Linear | Conv1D) -> Tensor:
    """The matrix (in, out) by which a linear module multiplies rows."""
    weight = module.weight.detach()
    return weight if isinstance(module, Conv1D) else weight.T


def _scaled(model: PreTrainedModel, layer: int, path: str | None, keys: Tensor) -> Tensor:
    if path is None:
        return keys
    return keys * _gain(model, blocks(model)[layer].get_submodule(path)).to(keys)


def _gain(model: PreTrainedModel, norm: nn.Module) -> Tensor:
    if getattr(norm, "weight", None) is None:
        return torch.ones(text_config(model).hidden_size)
    weight = norm.get_parameter("weight").detach()
    return 1.0 + weight.float() if model.config.model_type.startswith("gemma") else weight


def _epsilon(norm: nn.Module) -> float:
    named = (getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name))
    return float(next(named, 1e-5))  # OLMo's norm has it in its code


def _logit_factor(model: PreTrainedModel) -> float:
    """What the model multiplies its logits by."""
    config = text_config(model)
    return float(getattr(config, "logit_scale", 1.0)) / float(getattr(config, "logits_scaling", 1.0))
