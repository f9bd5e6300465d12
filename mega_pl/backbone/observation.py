"""What the parts of a model do in one forward pass, with every edit in force.

Values are widened to float32 at least and gathered on the unembedding's device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mega_pl.backbone.anatomy import check_components, head_shape
from mega_pl.backbone.backbone import Backbone, Encoded
from mega_pl.backbone.layout import Layout
from mega_pl.backbone.taps import Tap, run, run_all, shown_attention, wide
from mega_pl.errors import MegaValueError


@dataclass(frozen=True, eq=False)
class Stream:
    """The residual stream at the last token of B prompts.

    Args:
        logits: (B, V) of the model itself, float32.
        resid_pre: (B, L, D) what enters each block.
        resid_mid: (B, L, D) the same plus attention's output; formed also where attention and MLP are parallel.
        final: (B, D) what leaves the last block.
    """

    logits: Tensor
    resid_pre: Tensor
    resid_mid: Tensor
    final: Tensor


@dataclass(frozen=True, eq=False)
class Parts:
    """What heads and neurons do at the last token of B prompts.

    Attention adds Σ_h heads_h · rows_h + bias + steering to the stream, and the MLP Σ_i neurons_i · row_i + bias +
    steering. Steering is what hooks add to the output of a module, and zero to the bit where there is none.

    Args:
        stream: of the same pass.
        heads: (B, L, H, K) mixed values.
        neurons: (B, L, F) activations.
        gate: (B, L, F) what enters the neurons' activation function.
        input: (B, L, F) what the function's value is multiplied by, or None where neurons have no gate.
        attn_steering: (B, L, D).
        mlp_steering: (B, L, D), together with what is added to a block's output.
    """

    stream: Stream
    heads: Tensor
    neurons: Tensor
    gate: Tensor
    input: Tensor | None
    attn_steering: Tensor
    mlp_steering: Tensor


@dataclass(frozen=True, eq=False)
class Paths:
    """What the last token of B prompts reads of every token; token 0 is a prompt's first, and zeros follow its last.

    Args:
        stream: of the same pass.
        weights: (B, L, T, H) the last token's attention.
        values: (B, L, T, H, K), groups repeated.
    """

    stream: Stream
    weights: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class History:
    """What every token of B prompts got from each block; token 0 is a prompt's first, and zeros follow its last.

    Args:
        embedding: (B, T, D) what enters the first block.
        attn_out: (B, L, T, D) what attention adds.
        mlp_out: (B, L, T, D) what the MLP adds, together with what hooks add to a block's output.
        neurons: (B, L, T, F) activations.
    """

    embedding: Tensor
    attn_out: Tensor
    mlp_out: Tensor
    neurons: Tensor


@dataclass(frozen=True, eq=False)
class Gates:
    """What N gated neurons do at every token of B prompts; token 0 is a prompt's first, and zeros follow its last.

    Args:
        gate: (B, T, N) what enters the neurons' activation function.
        input: (B, T, N) what the function's value is multiplied by.
        activation: (B, T, N) the product.
    """

    gate: Tensor
    input: Tensor
    activation: Tensor


def observe_stream(backbone: Backbone, encoded: Encoded) -> Stream:
    """Run the model on prompts and keep the stream at their last tokens."""
    layout = backbone.layout
    return _stream(layout, *run_all(backbone, encoded, _stream_taps(layout)))


def observe_parts(backbone: Backbone, encoded: Encoded) -> Parts:
    """Run the model on prompts and keep what heads and neurons do at their last tokens.

    Raises:
        ValueError: if they do not write into the stream as it is.
    """
    check_components(backbone.model)
    layout = backbone.layout
    taps = {
        **_stream_taps(layout),
        "mlp_out": Tap(layout.path("mlp_out"), "leaving"),
        "heads": Tap(layout.path("attn_proj"), "entering"),
        "from_heads": Tap(layout.path("attn_proj"), "leaving"),
        "neurons": Tap(layout.path("mlp_proj"), "entering"),
        "from_neurons": Tap(layout.path("mlp_proj"), "leaving"),
        **{name: Tap(path, "leaving") for name, path in zip(("gate", "input"), layout.mlp_in, strict=False)},
    }
    logits, seen = run_all(backbone, encoded, taps)
    kept = {name: wide(values) for name, values in seen.items()}
    return Parts(
        stream=_stream(layout, logits, seen),
        heads=kept["heads"].reshape(*kept["heads"].shape[:2], head_shape(backbone.model)[0], -1),
        neurons=kept["neurons"],
        gate=kept["gate"],
        input=kept.get("input"),
        attn_steering=kept["attn_out"] - kept["from_heads"],
        mlp_steering=_added_by_mlp(seen) - kept["from_neurons"],
    )


def observe_paths(backbone: Backbone, encoded: Encoded) -> Paths:
    """Run the model with attention that shows its weights, and keep what the last tokens read of the others.

    Raises:
        ValueError: if heads do not write into the stream as it is.
    """
    check_components(backbone.model)
    layout, (heads, groups, size) = backbone.layout, head_shape(backbone.model)
    taps = {
        **_stream_taps(layout),
        "weights": Tap(layout.attention, "weights"),
        "values": Tap(layout.path("value"), "leaving", every=True),
    }
    with shown_attention(backbone.model):
        logits, seen = run_all(backbone, encoded, taps)
    values = seen["values"][..., -groups * size :].reshape(*seen["values"].shape[:3], groups, size)
    return Paths(
        stream=_stream(layout, logits, seen),
        weights=wide(seen["weights"]),
        values=wide(values.repeat_interleave(heads // groups, -2)),
    )


def observe_history(backbone: Backbone, encoded: Encoded) -> History:
    """Run the model on prompts and keep what the blocks add at every token.

    Raises:
        ValueError: if heads and neurons do not write into the stream as it is.
    """
    check_components(backbone.model)
    layout = backbone.layout
    taps = {
        **_stream_taps(layout, every=True),
        "mlp_out": Tap(layout.path("mlp_out"), "leaving", every=True),
        "neurons": Tap(layout.path("mlp_proj"), "entering", every=True),
    }
    _, seen = run_all(backbone, encoded, taps)
    return History(
        embedding=wide(seen["resid_pre"][:, 0]),
        attn_out=wide(seen["attn_out"]),
        mlp_out=_added_by_mlp(seen),
        neurons=wide(seen["neurons"]),
    )


def observe_gates(backbone: Backbone, encoded: Encoded, neurons: Tensor) -> Gates:
    """Run the model on prompts and keep what some gated neurons do.

    Args:
        backbone: the model.
        encoded: B prompts.
        neurons: (N, 2) long, layers and neurons.

    Raises:
        ValueError: if the model's neurons have no gate.
    """
    layout, layer = backbone.layout, neurons[:, 0]
    if len(layout.mlp_in) != 2:
        name = backbone.model.config.model_type
        raise MegaValueError(f"the model's neurons must have a gate, but those of {name!r} have none.")
    gate, multiplied = layout.mlp_in
    taps: dict[tuple[str, int], Tap] = {}
    for one in set(layer.tolist()):
        columns = neurons[layer == one, 1]
        taps["gate", one] = Tap(gate, "leaving", every=True, columns=columns)
        taps["input", one] = Tap(multiplied, "leaving", every=True, columns=columns)
        taps["activation", one] = Tap(layout.path("mlp_proj"), "entering", every=True, columns=columns)
    _, seen = run(backbone, encoded, taps)

    def joined(name: str) -> Tensor:
        values = torch.cat([seen[name, one] for one in sorted(set(layer.tolist()))], -1)
        return wide(values[..., layer.argsort(stable=True).argsort().to(values.device)])

    return Gates(joined("gate"), joined("input"), joined("activation"))


def _stream_taps(layout: Layout, *, every: bool = False) -> dict[str, Tap]:
    return {
        "resid_pre": Tap(layout.entry, "entering", every),
        "attn_out": Tap(layout.attn_out, "leaving", every),
        "resid_post": Tap("", "leaving", every),
    }


def _stream(layout: Layout, logits: Tensor, seen: Mapping[str, Tensor]) -> Stream:
    mid = seen["resid_pre"] + seen["attn_out"] * layout.residual_scale
    return Stream(logits, wide(seen["resid_pre"]), wide(mid), wide(seen["resid_post"][:, -1]))


def _added_by_mlp(seen: Mapping[str, Tensor]) -> Tensor:
    """The MLP's output and what hooks add to the block's, which is exactly 0 where the block only sums."""
    summed = seen["resid_pre"] + seen["attn_out"] + seen["mlp_out"]  # rounded as the model rounds it
    return wide(seen["mlp_out"]) + (wide(seen["resid_post"]) - wide(summed))
