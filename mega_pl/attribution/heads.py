"""How much each attention head, and each position that it reads, raises the log-probability of a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mega_pl.attribution.layers import LayerImportance, Targets, encode_targets, layers_from, points_of, read_outs
from mega_pl.backbone import Backbone, PaddingSide
from mega_pl.backbone.anatomy import head_rows, head_shape, projection_bias
from mega_pl.backbone.observation import observe_parts, observe_paths
from mega_pl.errors import MegaValueError
from mega_pl.functional.importance import Expansion, log_probabilities

Head = tuple[int, int]
"""Layer and head, both 0-based."""


@dataclass(frozen=True, eq=False)
class HeadImportance:
    """Importances of heads, in nats, each added alone to the stream that enters its block.

    The vectors of heads, bias and steering add up to what attention adds to the stream; their importances do not.

    Args:
        heads: (B, W, L, H) LP(x_l + Σ_t α_t v_t O) − LP(x_l).
        bias: (B, W, L) of the bias of attention's projection.
        steering: (B, W, L) of what hooks add to attention's output; 0 where there is no hook.
        layers: of the same pass.
    """

    heads: Tensor
    bias: Tensor
    steering: Tensor
    layers: LayerImportance


@dataclass(frozen=True, eq=False)
class PositionImportance:
    """Importances of what N heads bring from each token, in nats; token 0 is a prompt's first, zeros follow its last.

    Args:
        positions: (B, W, N, T) LP(x_l + α_t v_t O) − LP(x_l).
        weights: (B, N, T) α, the attention of the last token.
    """

    positions: Tensor
    weights: Tensor


def head_importance(
    backbone: Backbone,
    prompts: Sequence[str],
    targets: Targets,
    *,
    include_final_bias: bool = False,
    padding_side: PaddingSide = "left",
) -> HeadImportance:
    """Score every head and every layer at the last token of some prompts, in one forward pass.

    Args:
        backbone: the model.
        prompts: B texts.
        targets: see `layer_importance`.
        include_final_bias: see `layer_importance`.
        padding_side: left or right; the scores do not depend on it.

    Raises:
        ValueError: if targets do not fit the prompts, or heads do not write into the stream as it is.
    """
    encoded, ids = encode_targets(backbone, prompts, targets, padding_side)
    parts = observe_parts(backbone, encoded)
    stream, layers = parts.stream, range(backbone.n_layers)
    maps, points = read_outs(backbone, stream, include_final_bias), points_of(stream)
    rows = [value_rows(backbone, layer, stream.final) for layer in layers]
    bias = torch.stack([projection_bias(backbone.model, layer, "attention") for layer in layers]).to(stream.final)
    values: list[Tensor] = []
    scores: list[Tensor] = []
    for row, (one, tokens) in enumerate(zip(maps, ids, strict=True)):
        logits = one.logits(points[row])
        values.append(log_probabilities(logits, tokens))
        expansion = Expansion.of(one, logits[:-1:2], tokens)
        heads = torch.stack([torch.einsum("hk,hkd->hd", parts.heads[row, layer], rows[layer]) for layer in layers])
        alone = (heads, bias[:, None], parts.attn_steering[row, :, None])
        scores.append(torch.cat([expansion.increase(vectors) for vectors in alone], 1))
    every = torch.stack(scores).movedim(-1, 1)
    return HeadImportance(
        every[..., :-2], every[..., -2], every[..., -1], layers_from(torch.stack(values), stream, maps, ids)
    )


def position_importance(
    backbone: Backbone,
    prompts: Sequence[str],
    targets: Targets,
    heads: Sequence[Head] | None = None,
    *,
    include_final_bias: bool = False,
    padding_side: PaddingSide = "left",
) -> PositionImportance:
    """Score what heads bring to the last token from each position.

    Args:
        backbone: the model.
        prompts: B texts.
        targets: see `layer_importance`.
        heads: N heads; None takes all, layer by layer.
        include_final_bias: see `layer_importance`.
        padding_side: left or right; the scores do not depend on it.

    Raises:
        ValueError: if targets or heads do not fit, or heads do not write into the stream as it is.
    """
    encoded, ids = encode_targets(backbone, prompts, targets, padding_side)
    layer, head = chosen_heads(backbone, heads).unbind(1)
    paths = observe_paths(backbone, encoded)
    maps = read_outs(backbone, paths.stream, include_final_bias)
    rows = {one: value_rows(backbone, one, paths.stream.final) for one in set(layer.tolist())}
    written = torch.stack([rows[a][b] for a, b in zip(layer.tolist(), head.tolist(), strict=True)])  # (N, K, D)
    scores: list[Tensor] = []
    for row, (one, tokens) in enumerate(zip(maps, ids, strict=True)):
        expansion = Expansion.at(one, paths.stream.resid_pre[row], tokens)
        brought = (paths.weights[row, ..., None] * paths.values[row])[layer, :, head]  # (N, T, K)
        scores.append(expansion.increase(brought @ written, layer))
    return PositionImportance(torch.stack(scores).movedim(-1, 1), paths.weights[:, layer, :, head].movedim(0, 1))


def chosen_heads(backbone: Backbone, heads: Sequence[Head] | None) -> Tensor:
    """Give heads as (N, 2) long, all of them for None.

    Raises:
        ValueError: if there is none, or the model lacks one.
    """
    layers, count = backbone.n_layers, head_shape(backbone.model)[0]
    every = [(layer, head) for layer in range(layers) for head in range(count)]
    chosen = every if heads is None else [tuple(head) for head in heads]
    if not chosen or not set(chosen) <= set(every):
        raise MegaValueError(
            f"`heads` must name layers in [0, {layers - 1}] and heads in [0, {count - 1}], but got {heads}."
        )
    return torch.tensor(chosen, device=backbone.model.get_output_embeddings().weight.device)


def value_rows(backbone: Backbone, layer: int, like: Tensor) -> Tensor:
    """Give what the heads' coordinates write, (H, K, D), in the dtype and on the device of another tensor."""
    heads, _, size = head_shape(backbone.model)
    return head_rows(backbone.model, layer).to(like).view(heads, size, -1)
