"""Refining maps by gradient: a constant vector per edit and site, descended to on the logits of the frozen model."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, softplus

from mega_pl.backbone import Backbone, Site, steer
from mega_pl.backbone.backbone import Encoded
from mega_pl.data.prompts import PREFIXES
from mega_pl.edits.request import EditRequest
from mega_pl.fitting import last_states
from mega_pl.functional import Transport, stack

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
        batch: Prompts a forward pass.
    """

    steps: int = 0
    lr: float = 0.02
    suppression: float = 0.1
    divergence: float = 0.1
    batch: int = 128

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"`steps` must be at least 0, but got {self.steps}.")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"`lr` must be finite and above 0, but got {self.lr}.")
        for name in ("suppression", "divergence"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"`{name}` must be finite and at least 0, but got {getattr(self, name)}.")
        if self.batch < 1:
            raise ValueError(f"`batch` must be at least 1, but got {self.batch}.")


@torch.enable_grad()
def refine(
    backbone: Backbone,
    requests: Sequence[EditRequest],
    own: Sequence[Sequence[str]],
    maps: Sequence[dict[Site, Transport]],
    strength: float,
    config: RefineConfig,
) -> list[dict[Site, Transport]]:
    """Add to the shifts of each edit's maps the vectors that lower the edit's loss on the steered logits.

    With n and t the first tokens of the new and the true object after a prompt x, p the bare and q the steered model,

        loss = mean over own x of [−log q(n|x) + suppression · log(1 + q(t|x) / q(n|x))] + divergence · KL(p ‖ q)(u).

    The second term fades once the new object leads, so that the true one is not pushed down without end, and is
    constant where both begin alike. The unrelated text u is the next of `UNRELATED` at each step. Losses are summed
    over edits and Adam works on single numbers, so that edits fitted together do not feel each other.

    Args:
        backbone: The bare model; its weights stay as they are.
        requests: E edits.
        own: For each edit the prompts that its new object answers, such as its `phrasings`.
        maps: For each edit its map at each site, the same sites for all.
        strength: Multiple of the full move.
        config: How to refine.

    Returns:
        For each edit its maps with the new shifts.

    Raises:
        ValueError: The sequences do not fit together, or an edit has no prompt.
        FloatingPointError: The loss of an edit or its gradient is not finite.
    """
    _check(requests, own, maps)
    if config.steps == 0 or not maps:
        return list(maps)
    asked = [(e, prompt) for e, prompts in enumerate(own) for prompt in prompts]
    answers = list(_answers(backbone, requests, sorted(asked, key=lambda row: len(row[1])), config.batch))
    share = torch.tensor([1 / len(prompts) for prompts in own], device=backbone.device)
    moves = {site: stack([of_edit[site].cast(device=backbone.device) for of_edit in maps]) for site in maps[0]}
    units = _units(backbone, asked, list(moves), config.batch)
    vectors = {site: nn.Parameter(torch.zeros_like(move.shift)) for site, move in moves.items()}

    def log_probabilities(encoded: Encoded, edit: Tensor) -> Tensor:
        now = {site: replace(moves[site], shift=moves[site].shift + units[site] * vectors[site]) for site in moves}
        edits = {site: (lambda x, move=move: move.apply(x, edit.to(x.device), strength)) for site, move in now.items()}
        with steer(backbone.model, edits, encoded.last):
            logits: Tensor = backbone.model(**encoded.inputs, use_cache=False, logits_to_keep=1).logits
        return logits[:, -1].to(share).log_softmax(-1)

    def losses(step: int) -> Iterator[tuple[Tensor, Tensor]]:
        for encoded, edit, objects in answers:
            new, true = log_probabilities(encoded, edit).gather(1, objects).unbind(1)
            yield edit, share[edit] * (config.suppression * softplus(true - new) - new)
        if config.divergence:
            text = UNRELATED[step % len(UNRELATED)]
            bare = backbone.last_logits(backbone.encode([text])).to(share).log_softmax(-1)
            for edit in torch.arange(len(maps), device=share.device).split(config.batch):
                log_q = log_probabilities(backbone.encode([text] * len(edit)), edit)
                yield edit, config.divergence * kl_div(log_q, bare, reduction="none", log_target=True).sum(1)

    optimizer = torch.optim.Adam(vectors.values(), lr=config.lr)
    for step in range(config.steps):
        optimizer.zero_grad()
        total = torch.zeros_like(share)
        for edit, loss in losses(step):
            loss.sum().backward()
            total.index_add_(0, edit, loss.detach())
        _check_finite(requests, total, vectors.values(), step)
        optimizer.step()
    found = {site: (units[site] * vector.detach()).cpu() for site, vector in vectors.items()}
    return [
        {site: replace(move, shift=move.shift + found[site][e].to(move.shift)) for site, move in of_edit.items()}
        for e, of_edit in enumerate(maps)
    ]


def _answers(
    backbone: Backbone, requests: Sequence[EditRequest], asked: Sequence[tuple[int, str]], batch: int
) -> Iterator[tuple[Encoded, Tensor, Tensor]]:
    """Give batches of prompts with (B,) the edit of each and (B, 2) the first tokens of its new and true object."""
    for start in range(0, len(asked), batch):
        rows = asked[start : start + batch]
        objects = [
            [backbone.answer_ids(prompt, o)[0] for o in (requests[e].target_new, requests[e].target_true)]
            for e, prompt in rows
        ]
        edit = torch.tensor([e for e, _ in rows], device=backbone.device)
        yield backbone.encode([p for _, p in rows]), edit, torch.tensor(objects, device=backbone.device)


def _units(
    backbone: Backbone, asked: Sequence[tuple[int, str]], sites: Sequence[Site], batch: int
) -> dict[Site, Tensor]:
    """Give for each site (E, 1) the mean norm of each edit's bare activations over √D: Adam moves every number by 1."""
    edit = torch.tensor([e for e, _ in asked])
    states = last_states(backbone, asked, sites, {}, 1.0, batch)
    units = {}
    for site, state in states.items():
        norms = state.norm(dim=1) / math.sqrt(backbone.width)
        means = norms.new_zeros(int(edit.max()) + 1).index_add_(0, edit, norms) / edit.bincount()
        units[site] = means.unsqueeze(1).to(backbone.device)
    return units


def _check_finite(requests: Sequence[EditRequest], total: Tensor, vectors: Iterable[Tensor], step: int) -> None:
    finite = total.isfinite()
    for vector in vectors:
        finite = finite & (vector.grad is not None and vector.grad.isfinite().all(1))
    if not finite.all():
        worst = int((~finite).nonzero()[0])
        raise FloatingPointError(
            f"the loss of an edit and its gradient must be finite, but those of {requests[worst].edit_id!r} are not "
            f"in step {step}; use a smaller `lr` or a wider dtype."
        )


def _check(
    requests: Sequence[EditRequest], own: Sequence[Sequence[str]], maps: Sequence[dict[Site, Transport]]
) -> None:
    if not len(requests) == len(own) == len(maps):
        raise ValueError(
            f"`requests`, `own` and `maps` must be of one length, but got {len(requests)}, {len(own)} and {len(maps)}."
        )
    for request, prompts in zip(requests, own, strict=True):
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"`own` must hold at least one prompt for {request.edit_id!r}, but got {prompts!r}.")
