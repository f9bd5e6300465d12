"""Where each known architecture keeps its blocks, and which of their modules feed the stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mega_pl.backbone.sites import Site


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The module names of one architecture.

    Args:
        blocks: path of the list of decoder blocks in the model.
        final_norm: path of the norm after the last block.
        entry: module of a block that is the first to read the stream; its input is the stream that enters the block.
        attention: attention module of a block.
        mlp: MLP module of a block.
        attn_out: module whose output is what attention adds to the stream. It is the attention itself, or what
            follows it where the family normalises before adding.
        mlp_out: the same for the MLP.
        attn_proj: linear module of a block that turns the heads' outputs, side by side, into what attention adds.
        value: linear module of a block that makes the values; where it also makes queries and keys they come first.
        mlp_in: linear modules of a block that read the stream for the MLP's neurons; of two the first is the gate.
        mlp_proj: linear module of a block that turns the MLP's neurons into what it adds.
        attn_norm: norm of a block before attention, or None.
        mlp_norm: norm of a block before the MLP, or None.
        post_norms: whether norms stand between these projections and the stream.
        parallel: whether attention and MLP read the same stream; then there is no `resid_mid`.
    """

    blocks: str
    final_norm: str
    entry: str
    attention: str
    mlp: str
    attn_out: str
    mlp_out: str
    attn_proj: str
    value: str
    mlp_in: tuple[str, ...]
    mlp_proj: str
    attn_norm: str | None
    mlp_norm: str | None
    post_norms: bool = False
    parallel: bool = False

    def source(self, block: nn.Module, site: Site) -> nn.Module:
        """Return the module whose output is the site's value or, at `resid_mid`, what is added to make it."""
        if site.kind == "resid_post":
            return block
        return block.get_submodule(self.mlp_out if site.kind == "mlp_out" else self.attn_out)


_GPT2 = Layout(
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    entry="ln_1",
    attention="attn",
    mlp="mlp",
    attn_out="attn",
    mlp_out="mlp",
    attn_proj="attn.c_proj",
    value="attn.c_attn",
    mlp_in=("mlp.c_fc",),
    mlp_proj="mlp.c_proj",
    attn_norm="ln_1",
    mlp_norm="ln_2",
)
_LLAMA = Layout(
    blocks="model.layers",
    final_norm="model.norm",
    entry="input_layernorm",
    attention="self_attn",
    mlp="mlp",
    attn_out="self_attn",
    mlp_out="mlp",
    attn_proj="self_attn.o_proj",
    value="self_attn.v_proj",
    mlp_in=("mlp.gate_proj", "mlp.up_proj"),
    mlp_proj="mlp.down_proj",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
)
_GEMMA2 = replace(
    _LLAMA,
    attn_out="post_attention_layernorm",
    mlp_out="post_feedforward_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    post_norms=True,
)
_OLMO2 = replace(_GEMMA2, entry="self_attn", attn_norm=None, mlp_norm=None)
_GPT_NEOX = Layout(
    blocks="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    entry="input_layernorm",
    attention="attention",
    mlp="mlp",
    attn_out="post_attention_dropout",
    mlp_out="post_mlp_dropout",
    attn_proj="attention.dense",
    value="attention.query_key_value",
    mlp_in=("mlp.dense_h_to_4h",),
    mlp_proj="mlp.dense_4h_to_h",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
)

_LAYOUTS = {
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "olmo2": _OLMO2,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}


def layout_of(model: PreTrainedModel) -> Layout:
    """Return the layout of a model, looked up by its `config.model_type`.

    Raises:
        ValueError: if the architecture is not known.
    """
    return layout_of_config(model.config)


def layout_of_config(config: PreTrainedConfig) -> Layout:
    """Return the layout of the model that a config describes, so that it can be refused before it is loaded.

    Raises:
        ValueError: if the architecture is not known.
    """
    model_type = config.model_type
    if model_type not in _LAYOUTS:
        raise ValueError(f"`model_type` must be one of {', '.join(_LAYOUTS)}, but got {model_type!r}.")
    return replace(_LAYOUTS[model_type], parallel=bool(getattr(config, "use_parallel_residual", False)))


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder blocks of a model, first to last."""
    return cast(nn.ModuleList, model.get_submodule(layout_of(model).blocks))


def check_sites(model: PreTrainedModel, sites: Iterable[Site]) -> None:
    """Refuse sites that a model does not have.

    Raises:
        ValueError: if a layer is out of range, or `resid_mid` is asked where attention and MLP are parallel.
    """
    last, parallel = len(blocks(model)) - 1, layout_of(model).parallel
    for site in sites:
        if site.layer > last:
            raise ValueError(f"`layers` must lie in [0, {last}] for this model, but got {site.layer}.")
        if parallel and site.kind == "resid_mid":
            raise ValueError(
                f"this model's attention and MLP are parallel, so it has no `resid_mid`, but got {site}; "
                "use `attn_out` or `resid_post`."
            )
