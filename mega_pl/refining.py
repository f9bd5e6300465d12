"""Refining maps by gradient: a constant vector per edit and site, descended to on the logits of the frozen model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mega_pl.asking import last_states
from mega_pl.backbone import Backbone, Site, steer
from mega_pl.backbone.backbone import Encoded
from mega_pl.data.prompts import PREFIXES, PromptConfig, expand, phrasings
from mega_pl.edits.request import EditRequest
from mega_pl.fitting import MapConfig, Steps, fit_maps, objects_of
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
        for name, rule, holds in (
            ("steps", "at least 0", self.steps >= 0),
            ("lr", "finite and above 0", 0 < self.lr < math.inf),
            ("suppression", "finite and at least 0", 0 <= self.suppression < math.inf),
            ("divergence", "finite and at least 0", 0 <= self.divergence < math.inf),
            ("batch", "at least 1", self.batch >= 1),
        ):
            if not holds:
                raise ValueError(f"`{name}` must be {rule}, but got {getattr(self, name)}.")


def fit_refined(
    backbone: Backbone,
    requests: Sequence[EditRequest],
    sites: Sequence[Site],
    maps: MapConfig,
    prompts: PromptConfig,
    config: RefineConfig,
    *,
    batch: int = 128,
) -> list[Steps]:
    """Fit the maps of some edits, and refine those of their prompts' last tokens.

    Args:
        backbone: The bare model.
        requests: The edits.
        sites: Where to steer.
        maps: How maps are estimated.
        prompts: How prompts are multiplied.
        config: How they are refined.
        batch: Source prompts whose caches are kept together.
    """
    sets, objects = [expand(request, prompts) for request in requests], objects_of(backbone, requests, maps)
    fitted = fit_maps(backbone, sets, sites, maps, objects=objects, batch=batch)
    own = [phrasings(request, prompts) for request in requests]
    first = refine(backbone, requests, own, [steps[0] for steps in fitted], maps.strength, config)
    return [(refined, *steps[1:]) for refined, steps in zip(first, fitted, strict=True)]


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
    over edits and Adam treats every number alone, so that edits fitted together do not feel each other.

    Args:
        backbone: The bare model; its weights stay as they are.
        requests: E edits.
        own: For each edit the prompts that its new object answers, such as its `phrasings`.
        maps: For each edit its map at each site, the same sites for all.
        strength: Multiple of the full move, above 0.
        config: How to refine.

    Returns:
        For each edit its maps with the new shifts.

    Raises:
        ValueError: The sequences do not fit together, or an edit has no prompt.
        FloatingPointError: The loss of an edit or its gradient is not finite.
    """
    if not len(requests) == len(own) == len(maps):
        lengths = [len(requests), len(own), len(maps)]
        raise ValueError(f"`requests`, `own` and `maps` must be of one length, but got {lengths}.")
    for request, prompts in zip(requests, own, strict=True):
        if not prompts:
            raise ValueError(f"`own` must hold at least one prompt for {request.edit_id!r}, but got none.")
    if config.steps == 0 or not maps:
        return list(maps)
    asked = sorted(((e, p) for e, prompts in enumerate(own) for p in prompts), key=lambda row: len(row[1]))
    device = backbone.device
    answers = list(_answers(backbone, requests, asked, config.batch))
    share = torch.tensor([1 / len(prompts) for prompts in own], device=device)
    moves = {site: stack([of_edit[site].cast(device=device) for of_edit in maps]) for site in maps[0]}
    owner = torch.tensor([e for e, _ in asked], device=device)
    units = {}  # A step of Adam moves each of D numbers by about `lr`, hence the vector by `lr` times √D units.
    for site, states in last_states(backbone, [p for _, p in asked], list(moves)).items():
        norms = states.to(device).norm(dim=1) * share[owner] / math.sqrt(backbone.width)
        units[site] = torch.zeros_like(share).index_add_(0, owner, norms).unsqueeze(1)
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
            for edit in torch.split(torch.arange(len(maps), device=device), config.batch):
                log_q = log_probabilities(backbone.encode([text] * len(edit)), edit)
                yield edit, config.divergence * (bare.exp() * (bare - log_q)).sum(1)

    optimizer = torch.optim.Adam(vectors.values(), lr=config.lr)
    for step in range(config.steps):
        optimizer.zero_grad()
        total = torch.zeros_like(share)
        for edit, loss in losses(step):
            torch.autograd.backward(loss.sum(), inputs=list(vectors.values()))
            total.index_add_(0, edit, loss.detach())
        optimizer.step()
        finite = torch.stack([total.isfinite(), *(vector.isfinite().all(1) for vector in vectors.values())]).all(0)
        if not finite.all():
            name = requests[int(finite.logical_not().nonzero()[0])].edit_id
            raise FloatingPointError(f"loss and gradient of {name!r} must be finite, but are not in step {step}.")
    added = {site: units[site] * vector.detach() for site, vector in vectors.items()}
    return [
        {site: replace(move, shift=move.shift + added[site][e].to(move.shift)) for site, move in of_edit.items()}
        for e, of_edit in enumerate(maps)
    ]


def _answers(
    backbone: Backbone, requests: Sequence[EditRequest], asked: Sequence[tuple[int, str]], batch: int
) -> Iterator[tuple[Encoded, Tensor, Tensor]]:
    """Give batches of prompts with (B,) the edit of each and (B, 2) the first tokens of its new and true object."""
    for rows in (asked[start : start + batch] for start in range(0, len(asked), batch)):
        texts = [(p, (requests[e].target_new, requests[e].target_true)) for e, p in rows]
        objects = [[backbone.answer_ids(prompt, answer)[0] for answer in answers] for prompt, answers in texts]
        edit = torch.tensor([e for e, _ in rows], device=backbone.device)
        yield backbone.encode([p for _, p in rows]), edit, torch.tensor(objects, device=backbone.device)
