"""Which earlier layers and neurons a value neuron was activated by.

A value neuron reads the stream with a key k, and the stream x is a sum of what was written before, so that a part c of
it has the share (c · k) / (x · k) in activating the neuron. Shares are weighted by the neuron's importance and summed
over value neurons (the query neurons of arXiv:2312.12141). Norms before the reading module count with their gain only.
The denominator is a signed sum: neurons whose terms nearly cancel are left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from mega_pl.attribution.top import TopAttentionNeurons, TopNeurons
from mega_pl.backbone import Backbone, PaddingSide
from mega_pl.backbone.anatomy import NeuronSide, head_keys, head_shape, neuron_keys, neuron_rows
from mega_pl.backbone.observation import History, observe_history
from mega_pl.errors import MegaValueError

Values = TopAttentionNeurons | TopNeurons
"""The value neurons whose activation is explained."""


@dataclass(frozen=True, eq=False)
class QueryLayers:
    """How much earlier layers activate value neurons, each neuron weighted by its importance, in nats.

    Args:
        embedding: (B, W) of what enters the first block.
        attention: (B, W, L).
        mlp: (B, W, L).
        skipped: (B, W) long, value neurons left out because their denominator nearly cancels.
    """

    embedding: Tensor
    attention: Tensor
    mlp: Tensor
    skipped: Tensor


@dataclass(frozen=True, eq=False)
class QueryNeurons:
    """How much earlier MLP neurons activate value neurons, each weighted by its importance, in nats.

    Args:
        neurons: (B, W, L, F).
        skipped: (B, W) long, value neurons left out because their denominator nearly cancels.
    """

    neurons: Tensor
    skipped: Tensor


def query_layers(
    backbone: Backbone,
    prompts: Sequence[str],
    values: Values,
    *,
    guard: float = 1e-3,
    side: NeuronSide = "gate",
    padding_side: PaddingSide = "left",
) -> QueryLayers:
    """Share the importance of value neurons among the layers that wrote what activates them.

    The reference takes 100 value neurons for GPT-2 and 30 for LLaMA, from `top_attention_neurons` or `top_neurons`.

    Args:
        backbone: the model.
        prompts: the B texts that `values` was found on.
        values: value neurons with their importances.
        guard: least |Σ c · k| as a fraction of Σ |c · k|; neurons below it are left out.
        side: which weights of an MLP neuron with a gate are its key; "output", what it writes, is what the reference
            takes.
        padding_side: left or right; the result does not depend on it.

    Raises:
        ValueError: if `values` are of other prompts, `guard` is out of range, or neurons do not write into the stream.
    """
    explained, _ = _explain(backbone, prompts, values, guard, side, padding_side)
    scores = torch.stack([one.weights @ one.terms for one in explained]).view(*values.layer.shape[:2], -1)
    attention, mlp = scores[..., 1:].chunk(2, -1)
    return QueryLayers(scores[..., 0], attention, mlp, _skipped(explained, values))


def query_neurons(
    backbone: Backbone,
    prompts: Sequence[str],
    values: TopAttentionNeurons,
    *,
    guard: float = 1e-3,
    padding_side: PaddingSide = "left",
) -> QueryNeurons:
    """Share the importance of attention neurons among the MLP neurons of earlier layers that activate them.

    The score of neuron i of a layer l′ < l is the sum of m_i (V_i · k) / (x_l · k) times the importance, with m_i and
    x_l at the token that the attention neuron reads. The reference takes 30 attention neurons.

    Args:
        backbone: the model.
        prompts: the B texts that `values` was found on.
        values: attention neurons with their importances.
        guard: see `query_layers`.
        padding_side: left or right; the result does not depend on it.

    Raises:
        ValueError: as `query_layers`.
    """
    explained, history = _explain(backbone, prompts, values, guard, "gate", padding_side)
    scores = []
    for one in explained:
        rows = [neuron_rows(backbone.model, layer).to(one.keys) @ one.keys.T for layer in range(backbone.n_layers)]
        earlier = torch.arange(backbone.n_layers, device=one.layer.device)[:, None] < one.layer
        activations = history.neurons[one.prompt][:, one.token]  # (L, K, F)
        scores.append(torch.einsum("lkf,lfk,lk->lf", activations, torch.stack(rows), one.weights * earlier))
    shape = (*values.layer.shape[:2], *scores[0].shape)
    return QueryNeurons(torch.stack(scores).view(shape), _skipped(explained, values))


@dataclass(frozen=True, eq=False)
class _Explained:
    """The K value neurons of one prompt and target.

    Args:
        prompt: row of the batch.
        layer: (K,) long.
        token: (K,) long, where they read the stream.
        keys: (K, D).
        terms: (K, 1 + 2 L) products of the key with the embedding, attention's outputs and the MLPs'; 0 from those that
            come later.
        weights: (K,) importance by x · k, or 0 for neurons that are left out.
        skipped: how many are left out.
    """

    prompt: int
    layer: Tensor
    token: Tensor
    keys: Tensor
    terms: Tensor
    weights: Tensor
    skipped: int


def _explain(
    backbone: Backbone,
    prompts: Sequence[str],
    values: Values,
    guard: float,
    side: NeuronSide,
    padding_side: PaddingSide,
) -> tuple[list[_Explained], History]:
    """Give the value neurons of each prompt and target, target after target, and what the layers wrote."""
    if len(values.layer) != len(prompts) or not 0 <= guard < 1:
        raise MegaValueError(
            "`values` must be of as many prompts as `prompts`, and `guard` lie in [0, 1), "
            f"but got {len(values.layer)}, {len(prompts)} and {guard}."
        )
    encoded = backbone.encode(prompts, padding_side)
    history = observe_history(backbone, encoded)
    last = (encoded.attention_mask.sum(-1) - 1).to(values.layer.device)
    size = head_shape(backbone.model)[2]
    explained = []
    for row, w in product(*map(range, values.layer.shape[:2])):
        layer, importance = values.layer[row, w], values.importance[row, w]
        if isinstance(values, TopAttentionNeurons):
            token, reach = values.position[row, w], layer
            columns = values.head[row, w] * size + values.coordinate[row, w]
            keys = _keys(layer, columns, partial(head_keys, backbone.model))
        else:
            token, reach = last[row].expand_as(layer), layer + 1  # the MLP also reads its own block's attention
            keys = _keys(layer, values.neuron[row, w], lambda one: neuron_keys(backbone.model, one, side))
        keys, order = keys.to(history.embedding), torch.arange(backbone.n_layers, device=layer.device)
        attention = torch.einsum("kd,lkd->kl", keys, history.attn_out[row][:, token]) * (order < reach[:, None])
        mlp = torch.einsum("kd,lkd->kl", keys, history.mlp_out[row][:, token]) * (order < layer[:, None])
        terms = torch.cat([(keys * history.embedding[row, token]).sum(-1, keepdim=True), attention, mlp], 1)
        total = terms.sum(1)
        kept = total.abs() > guard * terms.abs().sum(1)
        weights = torch.where(kept, importance / total, 0.0)
        explained.append(_Explained(row, layer, token, keys, terms, weights, int((~kept).sum())))
    return explained, history


def _keys(layer: Tensor, columns: Tensor, keys: Callable[[int], Tensor]) -> Tensor:
    """Gather the keys (K, D) of neurons in different layers."""
    of_layer = {one: keys(one) for one in set(layer.tolist())}
    return torch.stack([of_layer[one][column] for one, column in zip(layer.tolist(), columns.tolist(), strict=True)])


def _skipped(explained: Sequence[_Explained], values: Values) -> Tensor:
    return torch.tensor([one.skipped for one in explained]).view(values.layer.shape[:2])
