"""How much each attention and each MLP raises the log-probability of a token at the end of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mega_pl.backbone import Backbone, Encoded, PaddingSide
from mega_pl.backbone.anatomy import read_out
from mega_pl.backbone.observation import Stream, observe_stream
from mega_pl.errors import MegaValueError
from mega_pl.functional.importance import ReadOut, log_probabilities

Targets = Tensor | Sequence[int] | Sequence[Sequence[int]]
"""Token ids, W for each of B prompts: (B, W), or (B,) for one each."""


@dataclass(frozen=True, eq=False)
class LayerImportance:
    """Importances of layers, in nats; with `before` they add up to `after`.

    after = before + Σ_l (attention_l + mlp_l). What a hook adds to the output of a block counts as the MLP's, what it
    adds to attention's output or to `resid_mid` as attention's.

    Args:
        attention: (B, W, L) LP(x_l + a_l) − LP(x_l).
        mlp: (B, W, L) LP(x_l + a_l + m_l) − LP(x_l + a_l), also where both read x_l.
        before: (B, W) log-probability at the stream that enters the first block.
        after: (B, W) at the stream that leaves the last.
        output: (B, W) log-probability that the model gives; it differs from `after` by the final norm's bias, unless
            that is included, and by what is done to the model after its last block.
        predicted: (B,) long, the token that the model finds likeliest.
        scale: (B,) the scale of the final norm that everything was read with.
    """

    attention: Tensor
    mlp: Tensor
    before: Tensor
    after: Tensor
    output: Tensor
    predicted: Tensor
    scale: Tensor


def layer_importance(
    backbone: Backbone,
    prompts: Sequence[str],
    targets: Targets,
    *,
    include_final_bias: bool = False,
    scale: Tensor | None = None,
    padding_side: PaddingSide = "left",
) -> LayerImportance:
    """Score every attention and MLP at the last token of some prompts, in one forward pass.

    Everything is scored in float32, or float64 for a float64 model. Edits in force on the backbone are part of what is
    scored.

    Args:
        backbone: the model, of any known architecture.
        prompts: B texts.
        targets: token ids to score, any number W for each prompt.
        include_final_bias: whether LP has what the final norm's bias adds to the logits, as the model's own
            log-probabilities have; the reference leaves it out.
        scale: (B,) scale to read with, for example that of another pass; None takes each prompt's own.
        padding_side: left or right; the scores do not depend on it.

    Raises:
        ValueError: if targets or scales do not fit the prompts.
    """
    encoded, ids = encode_targets(backbone, prompts, targets, padding_side)
    stream = observe_stream(backbone, encoded)
    maps = read_outs(backbone, stream, include_final_bias, scale)
    points = points_of(stream)
    values = [log_probabilities(one.logits(x), tokens) for one, x, tokens in zip(maps, points, ids, strict=True)]
    return layers_from(torch.stack(values), stream, maps, ids)


def points_of(stream: Stream) -> Tensor:
    """Give the stream along the blocks, (B, 2 L + 1, D): `resid_pre` and `resid_mid` of each, and `final`."""
    within = torch.stack([stream.resid_pre, stream.resid_mid], 2).flatten(1, 2)
    return torch.cat([within, stream.final[:, None]], 1)


def layers_from(values: Tensor, stream: Stream, maps: Sequence[ReadOut], targets: Tensor) -> LayerImportance:
    """Difference the log-probabilities along the stream.

    Args:
        values: (B, 2 L + 1, W) at the points of the stream.
        stream: where they were read.
        maps: B read-outs.
        targets: (B, W) long.
    """
    steps = values.mT.diff()
    return LayerImportance(
        attention=steps[..., 0::2],
        mlp=steps[..., 1::2],
        before=values[:, 0],
        after=values[:, -1],
        output=stream.logits.log_softmax(-1).gather(1, targets),
        predicted=stream.logits.argmax(-1),
        scale=torch.stack([one.scale for one in maps]),
    )


def encode_targets(
    backbone: Backbone, prompts: Sequence[str], targets: Targets, padding_side: PaddingSide
) -> tuple[Encoded, Tensor]:
    """Encode the prompts and give their targets as (B, W) long on the unembedding's device.

    Raises:
        ValueError: if the targets are not token ids, some for each prompt.
    """
    unembedding = backbone.model.get_output_embeddings().weight
    ids = torch.as_tensor(targets, device=unembedding.device)
    ids = ids[:, None] if ids.dim() == 1 else ids
    if ids.dtype != torch.long or ids.dim() != 2 or len(ids) != len(prompts) or ids.numel() == 0:
        raise MegaValueError(
            f"`targets` must hold as many token ids, at least one, for each of the {len(prompts)} prompts, "
            f"but got {str(ids.dtype).removeprefix('torch.')} of shape {tuple(ids.shape)}."
        )
    if int(ids.min()) < 0 or int(ids.max()) >= len(unembedding):
        raise MegaValueError(
            f"`targets` must lie in [0, {len(unembedding) - 1}] for this model, "
            f"but got {int(ids.min())} to {int(ids.max())}."
        )
    return backbone.encode(prompts, padding_side), ids


def read_outs(
    backbone: Backbone, stream: Stream, include_final_bias: bool = False, scale: Tensor | None = None
) -> list[ReadOut]:
    """Give each prompt's read-out.

    Raises:
        ValueError: if `scale` does not hold a positive number for each prompt.
    """
    if scale is not None and (scale.shape != stream.final.shape[:1] or not bool((scale > 0).all())):
        raise MegaValueError(f"`scale` must hold a positive number for each prompt, but got {scale.tolist()}.")
    return [
        read_out(
            backbone.model,
            final,
            scale=None if scale is None else scale[row],
            include_final_bias=include_final_bias,
        )
        for row, final in enumerate(stream.final)
    ]
