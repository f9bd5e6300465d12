"""How much every neuron of some layers or heads raises the log-probability of a token, one product with U for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mega_pl.attribution.gated import sign_classes
from mega_pl.attribution.heads import Head, chosen_heads, value_rows
from mega_pl.attribution.layers import Targets, encode_targets, read_outs
from mega_pl.backbone import Backbone, PaddingSide, Site
from mega_pl.backbone.anatomy import neuron_rows, projection_bias
from mega_pl.backbone.observation import observe_parts, observe_paths
from mega_pl.functional.importance import Expansion


@dataclass(frozen=True, eq=False)
class NeuronImportance:
    """Importances of the MLP neurons of N layers, in nats, each added alone to the stream after attention.

    The vectors of neurons, bias and steering add up to what the MLP adds to the stream; their importances do not.

    Args:
        neurons: (B, W, N, F) LP(r_l + m_i V_i) − LP(r_l).
        bias: (B, W, N) of the bias of the MLP's projection.
        steering: (B, W, N) of what hooks add to the output of the MLP or the block; 0 where there is no hook.
        activations: (B, N, F) m.
        signs: (B, N, F) long, indices of `SIGN_CLASSES`, or None where neurons have no gate.
    """

    neurons: Tensor
    bias: Tensor
    steering: Tensor
    activations: Tensor
    signs: Tensor | None


def neuron_importance(
    backbone: Backbone,
    prompts: Sequence[str],
    targets: Targets,
    layers: Sequence[int],
    *,
    include_final_bias: bool = False,
    padding_side: PaddingSide = "left",
) -> NeuronImportance:
    """Score all MLP neurons of some layers; `top_neurons` finds the most important ones of all layers much faster.

    Args:
        backbone: the model.
        prompts: B texts.
        targets: see `layer_importance`.
        layers: N 0-based blocks.
        include_final_bias: see `layer_importance`.
        padding_side: left or right; the scores do not depend on it.

    Raises:
        ValueError: if targets or layers do not fit, or neurons do not write into the stream as it is.
    """
    backbone.check_sites([Site(layer, "mlp_out") for layer in layers])
    encoded, ids = encode_targets(backbone, prompts, targets, padding_side)
    parts, chosen = observe_parts(backbone, encoded), list(layers)
    maps = read_outs(backbone, parts.stream, include_final_bias)
    scores: list[Tensor] = []
    for row, (one, tokens) in enumerate(zip(maps, ids, strict=True)):
        expansion = Expansion.at(one, parts.stream.resid_mid[row, chosen], tokens)
        for point, layer in enumerate(chosen):
            vectors = parts.neurons[row, layer, :, None] * neuron_rows(backbone.model, layer).to(parts.neurons)
            rest = (projection_bias(backbone.model, layer, "mlp").to(vectors), parts.mlp_steering[row, layer])
            vectors = torch.cat([vectors, torch.stack(rest)])
            scores.append(expansion.increase(vectors[None], torch.tensor([point], device=vectors.device))[0])
    every = torch.stack(scores).view(len(maps), len(chosen), -1, ids.shape[1]).movedim(-1, 1)
    gate, multiplied = parts.gate[:, chosen], None if parts.input is None else parts.input[:, chosen]
    return NeuronImportance(
        neurons=every[..., :-2],
        bias=every[..., -2],
        steering=every[..., -1],
        activations=parts.neurons[:, chosen],
        signs=None if multiplied is None else sign_classes(gate, multiplied),
    )


def attention_neuron_importance(
    backbone: Backbone,
    prompts: Sequence[str],
    targets: Targets,
    heads: Sequence[Head],
    *,
    include_final_bias: bool = False,
    padding_side: PaddingSide = "left",
) -> Tensor:
    """Score all attention neurons of some heads, each coordinate j of a head at each token t.

    Args:
        backbone: the model.
        prompts: B texts.
        targets: see `layer_importance`.
        heads: N heads.
        include_final_bias: see `layer_importance`.
        padding_side: left or right; the scores do not depend on it.

    Returns:
        (B, W, N, T, K) LP(x_l + α_t v_tj O_j) − LP(x_l), in nats; token 0 is a prompt's first, zeros follow its last.

    Raises:
        ValueError: if targets or heads do not fit, or heads do not write into the stream as it is.
    """
    encoded, ids = encode_targets(backbone, prompts, targets, padding_side)
    chosen = chosen_heads(backbone, heads)
    paths = observe_paths(backbone, encoded)
    maps = read_outs(backbone, paths.stream, include_final_bias)
    scores: list[Tensor] = []
    for row, (one, tokens) in enumerate(zip(maps, ids, strict=True)):
        expansion = Expansion.at(one, paths.stream.resid_pre[row], tokens)
        for pair in chosen:
            layer, head = pair.tolist()
            factors = paths.weights[row, layer, :, head, None] * paths.values[row, layer, :, head]  # (T, K)
            vectors = factors[..., None] * value_rows(backbone, layer, factors)[head]
            scores.append(expansion.increase(vectors, pair[:1].expand(len(vectors))))
    return torch.stack(scores).view(len(maps), len(chosen), *scores[0].shape).movedim(-1, 1)
