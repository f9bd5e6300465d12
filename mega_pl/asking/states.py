"""The states of prompts' last tokens: at sites of the stream, or after the final norm."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mega_pl.asking.batches import TOKENS, encoded_batches
from mega_pl.backbone import Backbone, Site, Steering, record, steer

Moves = Callable[[list[int]], Mapping[Site, Steering]]
"""From the places of a batch's prompts to what is done to their states at some sites."""


@torch.no_grad()
def last_states(
    backbone: Backbone,
    prompts: Sequence[str],
    sites: Sequence[Site],
    moves: Moves | None = None,
    *,
    tokens_per_batch: int = TOKENS,
) -> dict[Site, Tensor]:
    """Last-token activations of prompts.

    Args:
        backbone: The model.
        prompts: N texts.
        sites: What to record.
        moves: How the same tokens are steered at earlier sites; None leaves them as they are.
        tokens_per_batch: The most tokens of a batch.

    Returns:
        For each site (N, D) float32 on the CPU.
    """
    states = {site: torch.empty(len(prompts), backbone.width) for site in sites}
    for rows, encoded in encoded_batches(backbone, prompts, tokens_per_batch):
        moved = {} if moves is None else moves(rows)
        with steer(backbone.model, moved, encoded.last), record(backbone.model, sites, encoded.last) as seen:
            backbone.model.base_model(**encoded.inputs, use_cache=False)
        for site in sites:
            states[site][rows] = seen[site].float().cpu()
    return states


@torch.no_grad()
def final_states(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    """Output (N, D) of the final norm at each prompt's last token, in float32 on the CPU."""
    states = torch.empty(len(prompts), backbone.width)
    for rows, encoded in encoded_batches(backbone, prompts):
        output = backbone.model.base_model(**encoded.inputs, use_cache=False)
        states[rows] = output.last_hidden_state[:, -1].float().cpu()
    return states
