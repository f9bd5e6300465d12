"""Where each known architecture keeps its blocks, and which of their modules feed the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mega_pl.backbone.sites import SITE_KINDS, Site, SiteKind
from mega_pl.errors import MegaValueError

Role = Literal["mlp_out", "attn_proj", "value", "mlp_proj"]
"""What a single module does in some families, and none or several in others."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The module names of one architecture.

    Args:
        blocks: path of the list of decoder blocks in the model.
        final_norm: path of the norm after the last block.
        entry: module of a block that is the first to read the stream; its input is the stream that enters the block.
        attention: attention module of a block.
        attn_out: module whose output, times `residual_scale`, is what attention adds to the stream. It is the attention
            itself, or what follows it where the family normalises before adding, or its last projection where the
            attention adds the stream itself.
        mlp_out: the same for the MLP, or None where no module hands it out token by token.
        attn_proj: linear module of a block that turns the heads' outputs, side by side, into what attention adds, or
            None where heads cannot be told apart.
        value: linear module of a block that makes the values; where it also makes queries and keys they come first.
        mlp_in: linear modules of a block that read the stream for the MLP's neurons; of two the first is the gate. None
            in a mixture of experts and where gate and input are one module.
        mlp_proj: linear module of a block that turns the MLP's neurons into what it adds, or None in a mixture.
        attn_norm: norm of a block before attention, or None.
        mlp_norm: norm of a block before the MLP, or None.
        post_norms: whether norms stand between these projections and the stream.
        parallel: whether attention and MLP read the same stream; then there is no `resid_mid`.
        residual_scale: what the block multiplies both outputs by before it adds them.
    """

    blocks: str
    final_norm: str
    entry: str
    attention: str
    attn_out: str
    mlp_out: str | None
    attn_proj: str | None = None
    value: str | None = None
    mlp_in: tuple[str, ...] = ()
    mlp_proj: str | None = None
    attn_norm: str | None = None
    mlp_norm: str | None = None
    post_norms: bool = False
    parallel: bool = False
    residual_scale: float = 1.0

    @property
    def site_kinds(self) -> tuple[SiteKind, ...]:
        """The sites of a block, in the order in which a forward pass reaches them."""
        absent = {"resid_mid": self.parallel, "mlp_out": self.mlp_out is None}
        return tuple(kind for kind in SITE_KINDS if not absent.get(kind, False))

    @property
    def default_kind(self) -> SiteKind:
        """Where edits steer if nothing else is said: after attention, or after the block where that is no site."""
        return "resid_post" if self.parallel else "resid_mid"

    def path(self, role: Role) -> str:
        """Return the module of a block that has a role.

        Raises:
            ValueError: if the architecture has no single such module.
        """
        path: str | None = getattr(self, role)
        if path is None:
            raise MegaValueError(
                f"the model must have one module a block that is its `{role}`, but got an architecture that has none; "
                "use another method, or the layer level of attribution."
            )
        return path

    def source(self, block: nn.Module, site: Site) -> nn.Module:
        """Return the module whose output is the site's value or, at `resid_mid`, what is added to make it."""
        if site.kind == "resid_post":
            return block
        return block.get_submodule(self.path("mlp_out") if site.kind == "mlp_out" else self.attn_out)

    def scale(self, site: Site) -> float:
        """Return what that output is multiplied by before it reaches the stream."""
        return 1.0 if site.kind == "resid_post" else self.residual_scale


_GPT2 = Layout(
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    entry="ln_1",
    attention="attn",
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
_GEMMA3 = replace(_GEMMA2, blocks="model.language_model.layers", final_norm="model.language_model.norm")
_OLMO2 = replace(_GEMMA2, entry="self_attn", attn_norm=None, mlp_norm=None)
_OLMO = replace(_LLAMA, attn_proj=None, value=None)  # the values may be clipped after their projection
_MIXTURE = replace(_LLAMA, attn_proj=None, value=None, mlp_in=(), mlp_proj=None)
_COHERE = replace(_LLAMA, mlp_norm="input_layernorm", parallel=True)
_STARCODER2 = replace(_LLAMA, mlp_in=("mlp.c_fc",), mlp_proj="mlp.c_proj")
_PHI = replace(
    _LLAMA,
    final_norm="model.final_layernorm",
    attn_proj="self_attn.dense",
    mlp_in=("mlp.fc1",),
    mlp_proj="mlp.fc2",
    mlp_norm="input_layernorm",
    parallel=True,
)
_PHI3 = replace(
    _LLAMA,
    attn_out="resid_attn_dropout",
    mlp_out="resid_mlp_dropout",
    attn_proj=None,
    value=None,
    mlp_in=(),
)
_OPT = Layout(
    blocks="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    entry="self_attn_layer_norm",
    attention="self_attn",
    attn_out="self_attn",
    mlp_out=None,  # the MLP reads all tokens of the batch as one row
    attn_norm="self_attn_layer_norm",
    mlp_norm="final_layer_norm",
)
_GPTJ = replace(
    _GPT2,
    attn_proj=None,
    value=None,
    mlp_in=("mlp.fc_in",),
    mlp_proj="mlp.fc_out",
    mlp_norm="ln_1",
    parallel=True,
)
_GPT_NEO = replace(_GPT2, attn_proj=None, value=None)
_BLOOM = Layout(
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    entry="input_layernorm",
    attention="self_attention",
    attn_out="self_attention.dense",  # the attention itself hands out the stream, and so does the MLP
    mlp_out="mlp.dense_4h_to_h",
    mlp_in=("mlp.dense_h_to_4h",),
    mlp_proj="mlp.dense_4h_to_h",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
)
_FALCON = replace(_BLOOM, attn_out="self_attention", mlp_out="mlp")
_GPT_NEOX = Layout(
    blocks="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    entry="input_layernorm",
    attention="attention",
    attn_out="post_attention_dropout",
    mlp_out="post_mlp_dropout",
    attn_proj="attention.dense",
    value="attention.query_key_value",
    mlp_in=("mlp.dense_h_to_4h",),
    mlp_proj="mlp.dense_4h_to_h",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
)


def _opt(config: PreTrainedConfig) -> Layout:
    if not config.do_layer_norm_before or config._remove_final_layer_norm:
        raise MegaValueError("an OPT model must have its norms before attention and MLP, but this one has them after.")
    return _OPT


def _bloom(config: PreTrainedConfig) -> Layout:
    if config.apply_residual_connection_post_layernorm or (config.slow_but_exact and config.pretraining_tp > 1):
        raise MegaValueError(
            "a BLOOM model must add to the stream itself and in one product, but got "
            f"`apply_residual_connection_post_layernorm` {config.apply_residual_connection_post_layernorm} and "
            f"`slow_but_exact` {config.slow_but_exact}."
        )
    return _BLOOM


def _falcon(config: PreTrainedConfig) -> Layout:
    if not (config.parallel_attn or config.new_decoder_architecture):
        return _FALCON
    if config.new_decoder_architecture and config.num_ln_in_parallel_attn in (None, 2):
        return replace(_FALCON, entry="ln_attn", attn_norm="ln_attn", mlp_norm="ln_mlp", parallel=True)
    return replace(_FALCON, mlp_norm="input_layernorm", parallel=True)


def _stablelm(config: PreTrainedConfig) -> Layout:
    if config.use_parallel_residual:
        return replace(_LLAMA, mlp_out="dropout", mlp_norm="input_layernorm", parallel=True)
    return replace(_LLAMA, mlp_out="dropout")


_LAYOUTS: dict[str, Layout | Callable[[PreTrainedConfig], Layout]] = {
    "bloom": _bloom,
    "cohere": _COHERE,
    "cohere2": _COHERE,
    "falcon": _falcon,
    "gemma": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA2,
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gpt_neox": lambda config: replace(_GPT_NEOX, parallel=bool(config.use_parallel_residual)),
    "gpt_oss": _MIXTURE,
    "gptj": _GPTJ,
    "granite": lambda config: replace(_LLAMA, residual_scale=float(config.residual_multiplier)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _MIXTURE,
    "olmo": _OLMO,
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "opt": _opt,
    "phi": _PHI,
    "phi3": _PHI3,
    "qwen2": _LLAMA,
    "qwen2_moe": _MIXTURE,
    "qwen3": _LLAMA,
    "qwen3_moe": _MIXTURE,
    "smollm3": _LLAMA,
    "stablelm": _stablelm,
    "starcoder2": _STARCODER2,
}
"""By `model_type` the layout, or what makes it from the config where it hangs on that."""


def layout_of(model: PreTrainedModel) -> Layout:
    """Return the layout of a model, looked up by its `config.model_type`.

    Raises:
        ValueError: if the architecture is not known.
    """
    return layout_of_config(model.config)


def layout_of_config(config: PreTrainedConfig) -> Layout:
    """Return the layout of the model that a config describes, so that it can be refused before it is loaded.

    Raises:
        ValueError: if the architecture is not known, or the config chooses a variant of it that is not.
    """
    model_type = config.model_type
    if model_type not in _LAYOUTS:
        raise MegaValueError(f"`model_type` must be one of {', '.join(_LAYOUTS)}, but got {model_type!r}.")
    layout = _LAYOUTS[model_type]
    return layout if isinstance(layout, Layout) else layout(config)


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the config of a model's decoder, which is a part of the whole one where the model reads images too."""
    return model.config.get_text_config(decoder=True)


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder blocks of a model, first to last."""
    return cast(nn.ModuleList, model.get_submodule(layout_of(model).blocks))


def check_sites(model: PreTrainedModel, sites: Iterable[Site]) -> None:
    """Refuse sites that a model does not have.

    Raises:
        ValueError: if a layer is out of range, or the architecture has no site of a kind.
    """
    last, kinds = len(blocks(model)) - 1, layout_of(model).site_kinds
    for site in sites:
        if site.layer > last:
            raise MegaValueError(f"`layers` must lie in [0, {last}] for this model, but got {site.layer}.")
        if site.kind not in kinds:
            raise MegaValueError(f"`sites` must be of a kind that this model has, {', '.join(kinds)}, but got {site}.")
