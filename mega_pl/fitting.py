"""Fitting the maps of edits: activations recorded at the sites, and each edit's map solved from them."""

import copy
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mega_pl.aliasing import with_known_aliases
from mega_pl.asking import encoded_batches
from mega_pl.backbone import Backbone, Encoded, Site, record, steer
from mega_pl.data.prompts import PromptConfig, PromptSet, expand
from mega_pl.data.relations import relations
from mega_pl.edits import ContentRouter, EditBank, EditCase, EditRequest, RouterConfig, check_requests
from mega_pl.functional import Transport, Transports, fit_transport, mean_shift, stack
from mega_pl.supposing import with_followed_implications

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


def fit(
    backbone: Backbone,
    edits: Sequence[EditRequest | EditCase],
    *,
    sites: Sequence[Site] | None = None,
    maps: MapConfig | None = None,
    router: RouterConfig | None = None,
    prompts: PromptConfig | None = None,
) -> EditBank:
    """Fit edits without a Trainer, as `MegaModule` does with one.

    Args:
        backbone: The bare model.
        edits: Requests, or cases of which only the requests are read.
        sites: Where to steer; `default_sites` by default.
        maps: How maps are estimated.
        router: How prompts find their edit.
        prompts: How prompts are multiplied.

    Raises:
        ValueError: If there is no edit, an id comes twice, or two edits give one fact different objects.
    """
    requests = [edit.request if isinstance(edit, EditCase) else edit for edit in edits]
    check_requests(requests)
    maps, router, prompts = maps or MapConfig(), router or RouterConfig(), prompts or PromptConfig()
    chosen = list(sites or default_sites(backbone))
    backbone.check_sites(chosen)
    requests = with_followed_implications(backbone, requests)
    sets = [expand(request, prompts) for request in requests]
    fitted = {
        request.edit_id: (request, of_edit)
        for request, of_edit in zip(requests, fit_maps(backbone, sets, chosen, maps), strict=True)
    }
    return make_bank(backbone, fitted, router, maps.strength, fit_settings(backbone, maps, router, prompts, 0))


def fit_settings(
    backbone: Backbone, maps: MapConfig, router: RouterConfig, prompts: PromptConfig, seed: int
) -> dict[str, Any]:
    """Seed, versions and hyper-parameters of a fit, ready for JSON."""
    return {
        "seed": seed,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "versions": versions(),
        "maps": asdict(maps),
        "router": asdict(router),
        "prompts": asdict(prompts),
    }


def fit_maps(
    backbone: Backbone, prompts: Sequence[PromptSet], sites: Sequence[Site], config: MapConfig, *, batch: int = 128
) -> list[dict[Site, Transport]]:
    """Fit the maps of some edits at all sites.

    Sites are fitted in the order of a forward pass, each on source activations that the earlier maps have moved:
    fitted independently, maps of the residual stream would each make the whole move and overshoot together. Maps move
    the last token of a prompt alone, and attention is causal, so that each prompt is read once and only its last token
    again for each site. Target prompts that the model does not follow, which answer something else than they force,
    are left out.

    Args:
        backbone: The bare model.
        prompts: For each edit its prompts.
        sites: Where to steer.
        config: How to estimate.
        batch: Source prompts whose caches are kept together; an edit with more is by itself.

    Returns:
        For each edit its map at each site.
    """
    fitted: list[dict[Site, Transport]] = []
    for group in _groups(prompts, batch):
        fitted += _fit_group(backbone, group, sorted(sites), config)
    return fitted


def _groups(prompts: Sequence[PromptSet], batch: int) -> Iterator[list[PromptSet]]:
    """Edits whose source prompts go into a batch together."""
    group: list[PromptSet] = []
    for of_edit in prompts:
        if group and sum(len(p.source) for p in (*group, of_edit)) > batch:
            yield group
            group = []
        group.append(of_edit)
    if group:
        yield group


def _fit_group(
    backbone: Backbone, prompts: Sequence[PromptSet], sites: Sequence[Site], config: MapConfig
) -> list[dict[Site, Transport]]:
    targets = [(e, p) for e, of_edit in enumerate(prompts) for p in of_edit.target]
    answers = [answer for of_edit in prompts for answer in of_edit.answers]
    wanted, tokens = target_states(backbone, [p for _, p in targets], sites)
    of_target = torch.tensor([e for e, _ in targets])
    of_target[~_followed(backbone, targets, answers, tokens)] = -1
    sources = [(e, p) for e, of_edit in enumerate(prompts) for p in of_edit.source]
    of_source = torch.tensor([e for e, _ in sources])
    reader = LastTokens(backbone, [p for _, p in sources])
    fitted: list[dict[Site, Transport]] = [{} for _ in prompts]
    for site in sites:
        states = reader.states(site, _by_site(fitted), of_source, config.strength)
        for e, maps in enumerate(fitted):
            maps[site] = config.solve(states[of_source == e], wanted[site][of_target == e])
    return fitted


class LastTokens:
    """The last tokens of some prompts, whose beginnings have been read once and are kept as caches.

    Args:
        backbone: The bare model.
        prompts: N texts.
        size: Prompts that are read together, those of like length; by default what suits the device.
    """

    @torch.no_grad()
    def __init__(self, backbone: Backbone, prompts: Sequence[str], *, size: int | None = None) -> None:
        self.backbone, self.count = backbone, len(prompts)
        self.parts: list[tuple[list[int], Encoded, Any]] = []
        for rows in _by_length(prompts, size or _size(backbone)):
            encoded = backbone.encode([prompts[i] for i in rows])
            inputs = {name: values[:, :-1] for name, values in encoded.inputs.items()}
            cache = None
            if inputs["input_ids"].shape[1]:
                cache = backbone.model.base_model(**inputs, use_cache=True).past_key_values
            self.parts.append((rows, encoded, cache))

    @torch.no_grad()
    def states(self, site: Site, maps: Mapping[Site, Sequence[Transport]], edits: Tensor, strength: float) -> Tensor:
        """Activations (N, D) of the last tokens at a site, each moved at earlier sites by the map of its edit.

        Args:
            site: What to record.
            maps: For each steered site the map of each edit.
            edits: (N,) long, the edit of each prompt.
            strength: Multiple of the full move.

        Returns:
            float32 on the CPU.
        """
        backbone = self.backbone
        stacked = {place: stack([m.cast(device=backbone.device) for m in of_site]) for place, of_site in maps.items()}
        states = torch.empty(self.count, backbone.width)
        for rows, encoded, cache in self.parts:
            here, edit = torch.zeros_like(encoded.last), edits[rows].to(backbone.device)
            moves = {place: partial(_move, of_site, edit, strength) for place, of_site in stacked.items()}
            with steer(backbone.model, moves, here), record(backbone.model, [site], here) as seen:
                backbone.model.base_model(
                    input_ids=encoded.input_ids[:, -1:],
                    attention_mask=encoded.attention_mask,
                    position_ids=encoded.position_ids[:, -1:],
                    past_key_values=copy.deepcopy(cache),  # a pass appends to what it is given
                    use_cache=cache is not None,
                )
            states[rows] = seen[site].float().cpu()
        return states


@torch.no_grad()
def target_states(
    backbone: Backbone, prompts: Sequence[str], sites: Sequence[Site]
) -> tuple[dict[Site, Tensor], Tensor]:
    """Last-token activations of prompts, and the token that the model gives after each.

    Args:
        backbone: The bare model.
        prompts: N texts.
        sites: What to record.

    Returns:
        For each site (N, D) float32 on the CPU, and (N,) long.
    """
    states = {site: torch.empty(len(prompts), backbone.width) for site in sites}
    tokens = torch.empty(len(prompts), dtype=torch.long)
    for rows, encoded in encoded_batches(backbone, prompts):
        with record(backbone.model, sites, encoded.last) as seen:
            tokens[rows] = backbone.last_logits(encoded).argmax(-1).cpu()
        for site in sites:
            states[site][rows] = seen[site].float().cpu()
    return states, tokens


def _by_length(prompts: Sequence[str], size: int) -> Iterator[list[int]]:
    """The places of prompts, a forward pass's at a time, those of like length together."""
    places = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return (places[start : start + size] for start in range(0, len(places), size))


def _size(backbone: Backbone) -> int:
    """Prompts a forward pass: a CPU is busy with a few, and padding costs it more; a GPU waits for kernels to start."""
    return 32 if backbone.device.type == "cpu" else 256


def _followed(backbone: Backbone, targets: Sequence[tuple[int, str]], answers: Sequence[str], tokens: Tensor) -> Tensor:
    """Which targets (N,) the model follows; of an edit with fewer than two such phrasings all count."""
    followed = torch.ones(len(targets), dtype=torch.bool)
    forcing = [i for i, answer in enumerate(answers) if answer]
    for i in forcing:
        followed[i] = int(tokens[i]) == backbone.answer_ids(targets[i][1], answers[i])[0]
    for edit in {e for e, _ in targets}:
        own = [i for i in forcing if targets[i][0] == edit]
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
    router: RouterConfig,
    strength: float,
    settings: Mapping[str, Any],
) -> EditBank:
    """Fit the router of some fitted edits and put them into a bank.

    Args:
        backbone: The bare model.
        fitted: By edit id the request and its maps.
        router: How prompts find their edit.
        strength: Multiple of the full move.
        settings: What to write beside the edits.
    """
    requests = [request for request, _ in fitted.values()]
    if router.ask_aliases:
        requests = with_known_aliases(backbone, requests)
    sites = next(iter(fitted.values()))[1]
    return EditBank(
        requests=tuple(requests),
        maps={site: stack([maps[site] for _, maps in fitted.values()]) for site in sites},
        router=ContentRouter.fit(backbone, requests, list(relations().values()), router),
        strength=strength,
        backbone={"name": backbone.name, "revision": backbone.revision, **backbone.fingerprint},
        settings=settings,
    )


def versions() -> dict[str, str]:
    """Versions of what computes the results."""
    names = ("mega_pl", "torch", "transformers", "lightning", "torchmetrics")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
