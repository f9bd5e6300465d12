"""The most important neurons of a whole model, proven without scoring the others.

What a neuron writes is one vector times one factor: a bound costs one product of the stream's width, an exact score one
with the whole vocabulary. Neurons are scored exactly in the order of their bounds until none of the others can reach
into the list. The proof holds up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from mega_pl.attribution.gated import sign_classes
from mega_pl.attribution.layers import Targets, encode_targets, read_outs
from mega_pl.backbone import Backbone, PaddingSide
from mega_pl.backbone.anatomy import head_rows, neuron_rows
from mega_pl.backbone.observation import observe_parts, observe_paths
from mega_pl.errors import MegaValueError
from mega_pl.functional.importance import Expansion, ReadOut, Spread, certified_top, lower_bounds

End = Literal["positive", "negative"]
"""Which end of the list: what raises the log-probability most, or what lowers it most."""


@dataclass(frozen=True, eq=False)
class TopNeurons:
    """The K most important MLP neurons of all layers, for B prompts and W targets, the most important first.

    Args:
        importance: (B, W, K) LP(r_l + m_i V_i) − LP(r_l), in nats.
        layer: (B, W, K) long.
        neuron: (B, W, K) long.
        activation: (B, W, K) m.
        signs: (B, W, K) long, indices of `SIGN_CLASSES`, or None where neurons have no gate.
        evaluated: (B, W) long, how many were scored exactly.
        candidates: (B,) long, how many there are.
    """

    importance: Tensor
    layer: Tensor
    neuron: Tensor
    activation: Tensor
    signs: Tensor | None
    evaluated: Tensor
    candidates: Tensor


@dataclass(frozen=True, eq=False)
class TopAttentionNeurons:
    """The K most important attention neurons of all layers, for B prompts and W targets, the most important first.

    Args:
        importance: (B, W, K) LP(x_l + α_t v_tj O_j) − LP(x_l), in nats.
        layer: (B, W, K) long.
        head: (B, W, K) long.
        coordinate: (B, W, K) long, j.
        position: (B, W, K) long, token t counted from the prompt's first.
        evaluated: (B, W) long, how many were scored exactly.
        candidates: (B,) long, how many there are; a longer prompt has more.
    """

    importance: Tensor
    layer: Tensor
    head: Tensor
    coordinate: Tensor
    position: Tensor
    evaluated: Tensor
    candidates: Tensor


def top_neurons(
    backbone: Backbone,
    prompts: Sequence[str],
    targets: Targets,
    count: int = 100,
    *,
    end: End = "positive",
    include_final_bias: bool = False,
    padding_side: PaddingSide = "left",
) -> TopNeurons:
    """Find the MLP neurons of all layers that raise, or lower, the log-probability of each target most.

    The negative end needs a bound that is measured on the unembedding once a call, V D² operations.

    Args:
        backbone: the model.
        prompts: B texts.
        targets: see `layer_importance`.
        count: K, how many to find.
        end: which end of the list.
        include_final_bias: see `layer_importance`.
        padding_side: left or right; the scores do not depend on it.

    Raises:
        ValueError: if targets or `count` do not fit, or neurons do not write into the stream as it is.
    """
    _check_end(end)
    encoded, ids = encode_targets(backbone, prompts, targets, padding_side)
    parts = observe_parts(backbone, encoded)
    maps = read_outs(backbone, parts.stream, include_final_bias)
    vectors = (
        _RankOne(Expansion.at(one, points, tokens), partial(neuron_rows, backbone.model), factors[:, None])
        for one, points, tokens, factors in zip(maps, parts.stream.resid_mid, ids, parts.neurons, strict=True)
    )
    importance, (layer, _, neuron), evaluated, candidates = _found(vectors, maps, count, end)
    where = torch.arange(len(ids), device=ids.device)[:, None, None], layer, neuron
    return TopNeurons(
        importance=importance,
        layer=layer,
        neuron=neuron,
        activation=parts.neurons[where],
        signs=None if parts.input is None else sign_classes(parts.gate[where], parts.input[where]),
        evaluated=evaluated,
        candidates=candidates,
    )


def top_attention_neurons(
    backbone: Backbone,
    prompts: Sequence[str],
    targets: Targets,
    count: int = 100,
    *,
    end: End = "positive",
    include_final_bias: bool = False,
    padding_side: PaddingSide = "left",
) -> TopAttentionNeurons:
    """Find the attention neurons of all layers that raise, or lower, the log-probability of each target most.

    Args:
        backbone: the model.
        prompts: B texts.
        targets: see `layer_importance`.
        count: K, how many to find.
        end: which end of the list; see `top_neurons`.
        include_final_bias: see `layer_importance`.
        padding_side: left or right; the scores do not depend on it.

    Raises:
        ValueError: if targets or `count` do not fit, or heads do not write into the stream as it is.
    """
    _check_end(end)
    encoded, ids = encode_targets(backbone, prompts, targets, padding_side)
    paths = observe_paths(backbone, encoded)
    maps = read_outs(backbone, paths.stream, include_final_bias)
    lengths = encoded.attention_mask.sum(-1).tolist()
    factors = (paths.weights[..., None] * paths.values).flatten(-2)  # (B, L, T, H · K)
    vectors = (
        _RankOne(Expansion.at(one, points, tokens), partial(head_rows, backbone.model), row[:, :length])
        for one, points, tokens, row, length in zip(maps, paths.stream.resid_pre, ids, factors, lengths, strict=True)
    )
    importance, (layer, position, column), evaluated, candidates = _found(vectors, maps, count, end)
    size = paths.values.shape[-1]
    return TopAttentionNeurons(
        importance=importance,
        layer=layer,
        head=column // size,
        coordinate=column % size,
        position=position,
        evaluated=evaluated,
        candidates=candidates,
    )


@dataclass(frozen=True, eq=False)
class _RankOne:
    """Vectors factor · row, each to be added to the point of its layer.

    Args:
        expansion: around L points.
        rows: gives the rows (N, D) of a layer.
        factors: (L, K, N), K for each row.
    """

    expansion: Expansion
    rows: Callable[[int], Tensor]
    factors: Tensor

    def top(self, count: int, spread: Spread | None) -> tuple[Tensor, Tensor, Tensor]:
        """Find the highest scores, or with a spread the lowest, for each target.

        Returns:
            (W, K) scores, (3, W, K) long their layers, factors and rows, and (W,) long how many were scored exactly.
        """
        sign = 1 if spread is None else -1
        bounds = sign * (self._upper() if spread is None else self._lower(spread)).flatten(0, 2)
        found = [certified_top(bound, partial(self._exact, w, sign), count) for w, bound in enumerate(bounds.T)]
        places = torch.unravel_index(torch.stack([one.indices for one in found]), self.factors.shape)
        scores = sign * torch.stack([one.values for one in found])
        return scores, torch.stack(places), torch.tensor([one.evaluated for one in found])

    def _upper(self) -> Tensor:
        gradients = self.expansion.gradient
        rows = [self.rows(layer).to(gradients) @ gradients[layer].T for layer in range(len(gradients))]
        return self.factors[..., None] * torch.stack(rows)[:, None]

    def _lower(self, spread: Spread) -> Tensor:
        return torch.stack(
            [
                lower_bounds(self.expansion, spread, layer, self.rows(layer), factors)
                for layer, factors in enumerate(self.factors)
            ]
        )

    def _exact(self, w: int, sign: int, indices: Tensor) -> Tensor:
        layer, k, row = torch.unravel_index(indices, self.factors.shape)
        vectors = self.factors.new_empty(len(indices), self.expansion.mean.shape[1])
        for one in set(layer.tolist()):
            here = layer == one
            vectors[here] = self.rows(one)[row[here]].to(vectors)
        vectors *= self.factors[layer, k, row, None]
        return sign * self.expansion.increase(vectors[:, None], layer)[:, 0, w]


def _found(
    vectors: Iterable[_RankOne], maps: Sequence[ReadOut], count: int, end: End
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Stack what is found for B prompts: (B, W, K), (3, B, W, K), (B, W) and how many vectors there are, (B,)."""
    spread = Spread.of(maps[0]) if end == "negative" else None
    found = [(*one.top(count, spread), torch.tensor(one.factors.numel())) for one in vectors]
    scores, places, evaluated, candidates = zip(*found, strict=True)
    return torch.stack(scores), torch.stack(places, 1), torch.stack(evaluated), torch.stack(candidates)


def _check_end(end: str) -> None:
    if end not in get_args(End):
        raise MegaValueError(f"`end` must be one of {', '.join(get_args(End))}, but got {end!r}.")
