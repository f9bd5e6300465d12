"""Refining maps by gradient: a constant vector per edit and site, descended to on the logits of the frozen model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mega_pl.asking import encoded_batches, last_states
from mega_pl.asking.batches import TOKENS
from mega_pl.backbone import Backbone, Encoded, Site, steer
from mega_pl.edits.request import EditRequest
from mega_pl.errors import MegaNumericError, MegaValueError
from mega_pl.fitting.prompts import PREFIXES
from mega_pl.functional import Transport

UNRELATED = tuple(prefix.removesuffix(".") for prefix in PREFIXES)
"""Texts whose continuation no edit may change."""


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """How maps are refined.

    Args:
        steps: Steps of Adam; 0 leaves the maps as they are.
        lr: Length of a vector's first step, in multiples of the mean norm of its edit's activations at the site.
        suppression: Weight of keeping the true object below the new one.
        divergence: Weight of the divergence on unrelated texts, in nats; 0 saves their forward passes.
    """

    steps: int = 0
    lr: float = 0.02
    suppression: float = 0.1
    divergence: float = 0.1

    def __post_init__(self) -> None:
        for name, rule, holds in (
            ("steps", "at least 0", self.steps >= 0),
            ("lr", "finite and above 0", 0 < self.lr < math.inf),
            ("suppression", "finite and at least 0", 0 <= self.suppression < math.inf),
            ("divergence", "finite and at least 0", 0 <= self.divergence < math.inf),
        ):
            if not holds:
                raise MegaValueError(f"`{name}` must be {rule}, but got {getattr(self, name)}.")


@torch.enable_grad()
def refine(
    backbone: Backbone,
    request: EditRequest,
    own: Sequence[str],
    maps: dict[Site, Transport],
    strength: float,
    config: RefineConfig,
    *,
    tokens_per_batch: int = TOKENS,
) -> dict[Site, Transport]:
    """Add to the shifts of an edit's maps the vectors that lower the edit's loss on the steered logits.

    With n and t the first tokens of the new and the true object after a prompt x, p the bare and q the steered model,

        loss = mean over own x of [−log q(n|x) + suppression · log(1 + q(t|x) / q(n|x))] + divergence · KL(p ‖ q)(u).

    The second term fades once the new object leads, so that the true one is not pushed down without end, and is
    constant where both begin alike. The unrelated text u is the next of `UNRELATED` at each step.

    Args:
        backbone: The bare model; its weights stay as they are.
        request: The edit.
        own: The prompts that its new object answers, such as its `phrasings`.
        maps: Its map at each site.
        strength: Multiple of the full move, above 0.
        config: How to refine.
        tokens_per_batch: The most tokens of a batch.

    Returns:
        The maps with the new shifts.

    Raises:
        ValueError: There is no prompt.
        FloatingPointError: The loss or its gradient is not finite.
    """
    if not own:
        raise MegaValueError(f"`own` must hold at least one prompt for {request.edit_id!r}, but got none.")
    if config.steps == 0:
        return maps
    device = backbone.device
    answers = list(_answers(backbone, request, own, tokens_per_batch))
    moves = {site: move.cast(device=device) for site, move in maps.items()}
    # A step of Adam moves each of D numbers by about `lr`, hence the vector by `lr` times √D units.
    states = last_states(backbone, own, list(maps), tokens_per_batch=tokens_per_batch)
    units = {site: float(of_site.norm(dim=1).mean()) / math.sqrt(backbone.width) for site, of_site in states.items()}
    vectors = {site: nn.Parameter(torch.zeros_like(move.shift, dtype=torch.float32)) for site, move in moves.items()}

    def log_probabilities(encoded: Encoded) -> Tensor:
        now = {site: replace(moves[site], shift=moves[site].shift + units[site] * vectors[site]) for site in moves}
        edits = {site: (lambda x, move=move: move.cast(device=x.device)(x, strength)) for site, move in now.items()}
        with steer(backbone.model, edits, encoded.last):
            logits: Tensor = backbone.model(**encoded.inputs, use_cache=False, logits_to_keep=1).logits
        return logits[:, -1].float().log_softmax(-1)

    def losses(step: int) -> Iterator[Tensor]:
        for encoded, objects in answers:
            new, true = log_probabilities(encoded).gather(1, objects).unbind(1)
            yield (config.suppression * softplus(true - new) - new).sum() / len(own)
        if config.divergence:
            encoded = backbone.encode([UNRELATED[step % len(UNRELATED)]])
            bare = backbone.last_logits(encoded).log_softmax(-1)
            yield config.divergence * (bare.exp() * (bare - log_probabilities(encoded))).sum()

    optimizer = torch.optim.Adam(vectors.values(), lr=config.lr)
    for step in range(config.steps):
        optimizer.zero_grad()
        total = 0.0
        for loss in losses(step):
            torch.autograd.backward(loss, inputs=list(vectors.values()))
            total += float(loss.detach())
        optimizer.step()
        if not (math.isfinite(total) and all(bool(vector.isfinite().all()) for vector in vectors.values())):
            raise MegaNumericError(
                f"loss and gradient of {request.edit_id!r} must be finite, but are not in step {step}."
            )
    return {
        site: replace(move, shift=move.shift + (units[site] * vectors[site].detach()).to(move.shift))
        for site, move in maps.items()
    }


def _answers(
    backbone: Backbone, request: EditRequest, own: Sequence[str], tokens_per_batch: int
) -> Iterator[tuple[Encoded, Tensor]]:
    """Give batches of prompts with (B, 2) the first tokens of the new and the true object."""
    for rows, encoded in encoded_batches(backbone, own, tokens_per_batch):
        objects = [
            [backbone.answer_ids(own[i], answer)[0] for answer in (request.target_new, request.target_true)]
            for i in rows
        ]
        yield encoded, torch.tensor(objects, device=backbone.device)
