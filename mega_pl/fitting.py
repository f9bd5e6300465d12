"""Fitting the maps of edits: activations recorded at the sites, and each edit's map solved from them."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mega_pl.backbone import Backbone, Site, record, steer
from mega_pl.data.asking import likeliest
from mega_pl.data.prompts import PromptConfig, PromptSet, expand
from mega_pl.data.scope import scope_questions
from mega_pl.edits import EditBank, EditRequest, Gate, GateConfig
from mega_pl.edits.gate import evidence
from mega_pl.functional import Transport, Transports, fit_transport, mean_shift, stack

Estimator = Literal["transport", "mean_shift", "none"]


@dataclass(frozen=True, kw_only=True)
class MapConfig:
    """How an edit's maps are estimated.

    Args:
        estimator: ``transport`` solves SAKE's Gaussian map in the span of the samples; ``mean_shift`` only adds the
            difference of the means; ``none`` leaves all as it is, for a gradient alone to move.
        rank: Directions in which the map is more than a shift: a number, a share of the variance, or None for all.
        max_rank: The most directions where ``rank`` is a share.
        regularization: Added to both covariances.
        relative: Whether it counts in mean eigenvalues instead of absolutely.
        strength: Multiple of the full move.
    """

    estimator: Estimator = "transport"
    rank: int | float | None = 0.95
    max_rank: int = 32
    regularization: float = 1e-2
    relative: bool = True
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.estimator not in get_args(Estimator):
            raise ValueError(
                f"`estimator` must be one of {', '.join(get_args(Estimator))}, but got {self.estimator!r}."
            )
        if not 0 < self.strength <= 2:
            raise ValueError(f"`strength` must lie in (0, 2], but got {self.strength}.")

    def solve(self, source: Tensor, target: Tensor) -> Transport:
        """Solve one edit's map at one site in float64 and keep it in float32.

        Args:
            source: (N, D) last-token activations of the source prompts.
            target: (M, D) those of the target prompts.
        """
        if self.estimator == "none":
            zero = torch.zeros(source.shape[1])
            return Transport(zero, zero, zero.new_zeros(len(zero), 0), zero.new_zeros(0, 0))
        if self.estimator == "mean_shift":
            return mean_shift(source, target).cast(torch.float32)
        return fit_transport(
            source,
            target,
            rank=self.rank,
            max_rank=self.max_rank,
            regularization=self.regularization,
            relative=self.relative,
        ).cast(torch.float32)


def default_sites(backbone: Backbone) -> list[Site]:
    """The residual in the last half of the blocks: after attention, or after the block where that is no site."""
    return [Site(layer, backbone.layout.default_kind) for layer in range(backbone.n_layers // 2, backbone.n_layers)]


def fit_edits(
    backbone: Backbone,
    requests: Sequence[EditRequest],
    *,
    sites: Sequence[Site] | None = None,
    maps: MapConfig | None = None,
    gate: GateConfig | None = None,
    prompts: PromptConfig | None = None,
) -> EditBank:
    """Fit some edits without a Trainer, as `MegaModule` does with one.

    Args:
        backbone: The bare model.
        requests: The edits.
        sites: Where to steer; `default_sites` by default.
        maps: How maps are estimated.
        gate: How scopes are told apart.
        prompts: How prompts are multiplied.
    """
    maps, gate, prompts = maps or MapConfig(), gate or GateConfig(), prompts or PromptConfig()
    gate.check_layers(backbone.n_layers)
    sets = [expand(request, prompts) for request in requests]
    of_edits = fit_maps(backbone, sets, sites or default_sites(backbone), maps)
    fitted = {r.edit_id: (r, of_edit) for r, of_edit in zip(requests, of_edits, strict=True)}
    return make_bank(backbone, fitted, gate, prompts, maps.strength, fit_settings(backbone, maps, gate, prompts, 0))


def fit_settings(
    backbone: Backbone, maps: MapConfig, gate: GateConfig, prompts: PromptConfig, seed: int
) -> dict[str, Any]:
    """Seed, versions and hyper-parameters of a fit, ready for JSON."""
    return {
        "seed": seed,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "versions": versions(),
        "maps": asdict(maps),
        "gate": asdict(gate),
        "prompts": asdict(prompts),
    }


def fit_maps(
    backbone: Backbone, prompts: Sequence[PromptSet], sites: Sequence[Site], config: MapConfig, *, batch: int = 128
) -> list[dict[Site, Transport]]:
    """Fit the maps of some edits at all sites.

    Sites are fitted in the order of a forward pass, each on source activations that the earlier maps have moved:
    fitted independently, maps of the residual stream would each make the whole move and overshoot together. Target
    prompts that the model does not follow, which answer something else than they force, are left out.

    Args:
        backbone: The bare model.
        prompts: For each edit its prompts.
        sites: Where to steer.
        config: How to estimate.
        batch: Prompts a forward pass.

    Returns:
        For each edit its map at each site.
    """
    sources = [(e, p) for e, s in enumerate(prompts) for p in s.source]
    targets = [(e, p) for e, s in enumerate(prompts) for p in s.target]
    wanted = last_states(backbone, targets, sites, {}, config.strength, batch)
    followed = _followed(backbone, targets, [answer for s in prompts for answer in s.answers], batch)
    fitted: list[dict[Site, Transport]] = [{} for _ in prompts]
    for site in sorted(sites):
        states = last_states(backbone, sources, [site], _by_site(fitted), config.strength, batch)[site]
        of_source, of_target = (torch.tensor([e for e, _ in rows]) for rows in (sources, targets))
        of_target[~followed] = -1
        for e, maps in enumerate(fitted):
            maps[site] = config.solve(states[of_source == e], wanted[site][of_target == e])
    return fitted


@torch.no_grad()
def last_states(
    backbone: Backbone,
    prompts: Sequence[tuple[int, str]],
    sites: Sequence[Site],
    maps: dict[Site, list[Transport]],
    strength: float,
    batch: int,
) -> dict[Site, Tensor]:
    """Last-token activations of prompts, each moved at earlier sites by the maps of its edit.

    Args:
        backbone: The model.
        prompts: N pairs of an edit's index and a prompt.
        sites: What to record.
        maps: For each steered site the map of each edit.
        strength: Multiple of the full move.
        batch: Prompts a forward pass.

    Returns:
        For each site (N, D) float32 on the CPU.
    """
    moves = {site: stack([m.cast(device=backbone.device) for m in of_site]) for site, of_site in maps.items()}
    states = {site: torch.empty(len(prompts), backbone.width) for site in sites}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i][1]))
    for start in range(0, len(by_length), batch):
        rows = by_length[start : start + batch]
        encoded = backbone.encode([prompts[i][1] for i in rows])
        edit = torch.tensor([prompts[i][0] for i in rows], device=backbone.device)
        edits = {site: partial(_move, move, edit, strength) for site, move in moves.items()}
        with (
            steer(backbone.model, edits, encoded.last),
            record(backbone.model, sites, encoded.last) as seen,
        ):
            backbone.model.base_model(**encoded.inputs, use_cache=False)
        for site in sites:
            states[site][rows] = seen[site].float().cpu()
    return states


def _followed(backbone: Backbone, targets: Sequence[tuple[int, str]], answers: Sequence[str], batch: int) -> Tensor:
    """Which targets (N,) the model follows; of an edit with fewer than two such phrasings all count."""
    followed = torch.ones(len(targets), dtype=torch.bool)
    asked = [i for i, answer in enumerate(answers) if answer]
    tokens = likeliest(backbone, [targets[i][1] for i in asked], batch=batch)
    for i, token in zip(asked, tokens, strict=True):
        followed[i] = token == backbone.answer_ids(targets[i][1], answers[i])[0]
    for edit in {e for e, _ in targets}:
        own = [i for i in asked if targets[i][0] == edit]
        if followed[own].sum() < 2:
            followed[own] = True
    return followed


def _move(maps: Transports, edit: Tensor, strength: float, x: Tensor) -> Tensor:
    return maps.apply(x, edit.to(x.device), strength)


def _by_site(fitted: Sequence[dict[Site, Transport]]) -> dict[Site, list[Transport]]:
    return {site: [maps[site] for maps in fitted] for site in fitted[0]}


def make_bank(
    backbone: Backbone,
    fitted: Mapping[str, tuple[EditRequest, dict[Site, Transport]]],
    gate: GateConfig,
    prompts: PromptConfig,
    strength: float,
    settings: Mapping[str, Any],
    *,
    batch: int = 128,
) -> EditBank:
    """Fit the gate of some fitted edits and put them into a bank.

    Args:
        backbone: The bare model.
        fitted: By edit id the request and its maps.
        gate: How scopes are told apart.
        prompts: How prompts are multiplied.
        strength: Multiple of the full move.
        settings: What to write beside the edits.
        batch: Prompts a forward pass.
    """
    requests = [request for request, _ in fitted.values()]
    questions = scope_questions(backbone, requests, prompts)
    asked = [(i, prompt) for i, question in enumerate(questions) for prompt in question.prompts]
    seen = _last_evidence(backbone, [prompt for _, prompt in asked], gate.layers, batch)
    sites = next(iter(fitted.values()))[1]
    return EditBank(
        requests=tuple(requests),
        maps={site: stack([maps[site] for _, maps in fitted.values()]) for site in sites},
        gate=Gate.fit(
            seen,
            torch.tensor([i for i, _ in asked]),
            torch.tensor([question.owner for question in questions]),
            [question.subject for question in questions],
            gate,
        ),
        gate_layers=gate.layers,
        strength=strength,
        backbone={"name": backbone.name, "revision": backbone.revision, **backbone.fingerprint},
        settings=settings,
    )


def versions() -> dict[str, str]:
    """Versions of what computes the results."""
    names = ("mega_pl", "torch", "transformers", "lightning", "torchmetrics")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _last_evidence(backbone: Backbone, prompts: Sequence[str], layers: Sequence[int], batch: int) -> Tensor:
    seen = torch.empty(len(prompts), len(layers) * backbone.width)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(by_length), batch):
        rows = by_length[start : start + batch]
        encoded = backbone.encode([prompts[i] for i in rows])
        seen[rows] = evidence(backbone, encoded.inputs, layers)[:, -1].cpu()
    return seen
