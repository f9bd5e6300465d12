"""Where the edits of a bank act: how far each site is moved, and what one edit changes inside the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from mega_pl.asking import last_states
from mega_pl.attribution.layers import LayerImportance, layer_importance
from mega_pl.backbone import Backbone, Site, Steering
from mega_pl.edits import EditBank
from mega_pl.functional import Transports


def steering_norms(backbone: Backbone, bank: EditBank, *, edits: int = 32) -> dict[str, float]:
    """How far edits move the stream, as a share of its length, at each site in the order of a forward pass.

    The mean over edit prompts x of |T(h(x)) − h(x)| / |h(x)|, with h(x) what the earlier sites' maps have made of it.

    Args:
        backbone: The bare model.
        bank: The edits.
        edits: The most of them to ask.
    """
    own = [request.filled for request in bank.requests[:edits]]
    rows = torch.tensor(bank.places[: len(own)])
    norms: dict[str, float] = {}
    for site, maps in bank.maps.items():
        earlier = {s: m.cast(device=backbone.device) for s, m in bank.maps.items() if s < site}
        states = last_states(backbone, own, [site], partial(_moves, earlier, bank))[site]
        moves = maps.cast(device="cpu").apply(states, rows, bank.strength) - states
        norms[str(site)] = float((moves.norm(dim=1) / states.norm(dim=1)).mean())
    return norms


def _moves(maps: Mapping[Site, Transports], bank: EditBank, edits: list[int]) -> dict[Site, Steering]:
    """What the maps of some edits, one a prompt, do at each site."""
    index = torch.tensor(bank.places)[edits]
    return {site: partial(of_site.apply, edit=index, strength=bank.strength) for site, of_site in maps.items()}


def edit_importance(
    backbone: Backbone, bank: EditBank, edit_id: str, prompt: str = ""
) -> tuple[LayerImportance, LayerImportance]:
    """Importances of layers for an edit's new and true object at a prompt, before and after the edit.

    Args:
        backbone: The bare model.
        bank: The edits.
        edit_id: Which of them.
        prompt: Where to look; by default the edit's own.

    Raises:
        KeyError: If the bank has no such edit.
    """
    request = bank[edit_id]
    prompts = [prompt or request.filled]
    targets = [[backbone.answer_ids(request.filled, o)[0] for o in (request.target_new, request.target_true)]]
    before = layer_importance(backbone, prompts, targets)
    with bank.apply(backbone, edits=[edit_id]):
        return before, layer_importance(backbone, prompts, targets)
