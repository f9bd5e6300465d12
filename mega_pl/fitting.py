"""Fitting the maps of edits: activations recorded at the sites, and each edit's map solved from them."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mega_pl.aliasing import with_known_aliases
from mega_pl.asking import encoded_batches
from mega_pl.backbone import Backbone, Site, forked, record, steer
from mega_pl.data.prompts import PromptConfig, PromptSet, expand
from mega_pl.data.relations import relations
from mega_pl.edits import ContentRouter, EditBank, EditCase, EditRequest, RouterConfig, check_requests
from mega_pl.edits.checks import check_type
from mega_pl.edits.conflicts import latest
from mega_pl.functional import Transport, Transports, fit_transport, mean_shift, stack
from mega_pl.outcomes import missed_objects, warn_of_missed
from mega_pl.supposing import with_followed_implications

Estimator = Literal["transport", "mean_shift", "none"]

Steps = tuple[dict[Site, Transport], ...]
"""An edit's maps by site: of the last token of a prompt, then of each token of its object."""


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
        whole: Whether there are maps for the tokens of an object too, so that it is written whole, and not only for the
            last token of a prompt.
    """

    estimator: Estimator = "transport"
    rank: int | float | None = 0.95
    max_rank: int = 32
    regularization: float = 1e-2
    relative: bool = True
    strength: float = 1.0
    whole: bool = True

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

    Of two edits that give one fact different objects the later wins, and a warning names both.

    Args:
        backbone: The bare model.
        edits: Requests, or cases of which only the requests are read.
        sites: Where to steer; `default_sites` by default.
        maps: How maps are estimated.
        router: How prompts find their edit.
        prompts: How prompts are multiplied.

    Raises:
        TypeError: If the backbone is none that `load` gives.
        ValueError: If there is no edit, an id comes twice, or an alias is the subject of another edit.
    """
    check_type("`backbone`", backbone, Backbone)
    requests = latest(edits)
    check_requests(requests)
    maps, router, prompts = maps or MapConfig(), router or RouterConfig(), prompts or PromptConfig()
    chosen = list(sites or default_sites(backbone))
    backbone.check_sites(chosen)
    requests = with_followed_implications(backbone, requests)
    sets = [expand(request, prompts) for request in requests]
    steps = fit_maps(backbone, sets, chosen, maps, objects=objects_of(backbone, requests, maps))
    fitted = {request.edit_id: (request, of_edit) for request, of_edit in zip(requests, steps, strict=True)}
    return make_bank(backbone, fitted, router, maps, fit_settings(backbone, maps, router, prompts, 0))


def objects_of(backbone: Backbone, requests: Sequence[EditRequest], config: MapConfig) -> list[tuple[int, ...]]:
    """The token ids of each edit's new object after its prompt, as far as they get maps of their own."""
    if not config.whole:
        return [()] * len(requests)
    return [tuple(backbone.answer_ids(request.filled, request.target_new)) for request in requests]


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
    backbone: Backbone,
    prompts: Sequence[PromptSet],
    sites: Sequence[Site],
    config: MapConfig,
    *,
    objects: Sequence[Sequence[int]] | None = None,
    batch: int = 128,
) -> list[Steps]:
    """Fit the maps of some edits at all sites.

    Sites are fitted in the order of a forward pass, each on source activations that the earlier maps have moved:
    fitted independently, maps of the residual stream would each make the whole move and overshoot together. Maps move
    the last token of a prompt, and attention is causal, so that each prompt is read once and only its last token
    again for each site. The object's tokens are then read after the prompts, and each is fitted in the same way, with
    the maps of those before it active. Target prompts that the model does not follow, which answer something else than
    they force, are left out.

    Args:
        backbone: The bare model.
        prompts: For each edit its prompts.
        sites: Where to steer.
        config: How to estimate.
        objects: For each edit the token ids after which it gets maps too; none by default.
        batch: Source prompts whose caches are kept together; an edit with more is by itself.

    Returns:
        For each edit its maps: of the last token of its prompts, then of each token of its object.
    """
    for of_edit in prompts if config.estimator != "none" else ():
        count = min(len(of_edit.source), len(of_edit.target))
        if count < 2:
            raise ValueError(
                f"an edit must have 2 prompts of each kind or more to be fitted, but {of_edit.edit_id!r} has {count}; "
                "give it `phrasings`, or raise `prompts.prefixes`."
            )
    own = [()] * len(prompts) if objects is None else [tuple(ids) for ids in objects]
    fitted: list[Steps] = []
    for group in _groups(prompts, batch):
        start = len(fitted)
        fitted += _fit_group(backbone, group, own[start : start + len(group)], sorted(sites), config)
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
    backbone: Backbone,
    prompts: Sequence[PromptSet],
    objects: Sequence[tuple[int, ...]],
    sites: Sequence[Site],
    config: MapConfig,
) -> list[Steps]:
    targets = [(e, p, a) for e, of in enumerate(prompts) for p, a in zip(of.target, of.answers, strict=True)]
    after = [objects[e] if answer else () for e, _, answer in targets]
    wanted, tokens = target_states(backbone, [p for _, p, _ in targets], sites, after)
    of_target = _followed(backbone, targets, after, tokens)
    sources = [(e, p, i < of.facts) for e, of in enumerate(prompts) for i, p in enumerate(of.source)]
    of_source = torch.tensor([e for e, *_ in sources])
    reader = LastTokens(backbone, [p for _, p, _ in sources])
    fitted: list[list[dict[Site, Transport]]] = [[] for _ in prompts]
    for step in range(max(map(len, objects)) + 1):
        going = [e for e, ids in enumerate(objects) if len(ids) >= step]
        if step:
            tokens_of = [objects[e][step - 1] if fact and e in going else None for e, _, fact in sources]
            reader.advance(_by_site(fitted, step - 1), of_source, config.strength, tokens_of)
        for e in going:
            fitted[e].append({})
        for site in sites:
            states = reader.states(site, _by_site(fitted, step), of_source, config.strength)
            for e in going:
                source = states[(of_source == e) & reader.active]
                fitted[e][step][site] = config.solve(source, wanted[site][of_target[:, step] == e, step])
    return [tuple(steps) for steps in fitted]


class LastTokens:
    """The last tokens of some prompts, whose beginnings have been read once and are kept as caches.

    Args:
        backbone: The bare model.
        prompts: N texts.
        size: Prompts that are read together, those of like length; by default what suits the device.
    """

    @torch.no_grad()
    def __init__(self, backbone: Backbone, prompts: Sequence[str], *, size: int | None = None) -> None:
        self.backbone, self.active = backbone, torch.ones(len(prompts), dtype=torch.bool)
        self.parts: list[tuple[list[int], dict[str, Tensor], Any]] = []
        for rows in _by_length(prompts, size or _size(backbone)):
            inputs = backbone.encode([prompts[i] for i in rows]).inputs
            before = {name: values[:, :-1] for name, values in inputs.items()}
            cache = None
            if before["input_ids"].shape[1]:
                cache = backbone.model.base_model(**before, use_cache=True).past_key_values
            last = {name: values[:, -1:] for name, values in inputs.items()}
            self.parts.append((rows, {**last, "attention_mask": inputs["attention_mask"]}, cache))

    @torch.no_grad()
    def states(self, site: Site, maps: Mapping[Site, Transports], edits: Tensor, strength: float) -> Tensor:
        """Activations (N, D) of the last tokens at a site, each moved at earlier sites by the map of its edit.

        Args:
            site: What to record.
            maps: For each steered site the map of each edit.
            edits: (N,) long, the edit of each prompt.
            strength: Multiple of the full move.

        Returns:
            float32 on the CPU; of prompts that are still `active`.
        """
        states = torch.empty(len(self.active), self.backbone.width)
        for rows, inputs, cache in self.parts:
            with record(self.backbone.model, [site], torch.zeros(len(rows), dtype=torch.long)) as seen:
                self._read(inputs, None if cache is None else forked(cache), maps, edits[rows], strength)
            states[rows] = seen[site].float().cpu()
        return states

    @torch.no_grad()
    def advance(
        self, maps: Mapping[Site, Transports], edits: Tensor, strength: float, tokens: Sequence[int | None]
    ) -> None:
        """Read the last tokens, moved at all sites, and go on to another token after each; prompts without one end.

        Args:
            maps: For each steered site the map of each edit.
            edits: (N,) long, the edit of each prompt.
            strength: Multiple of the full move.
            tokens: (N,) the id after each prompt, or None where it ends.
        """
        parts = []
        for rows, inputs, cache in self.parts:
            after = self._read(inputs, cache, maps, edits[rows], strength)
            kept = [n for n, i in enumerate(rows) if tokens[i] is not None]
            if not kept:
                continue
            after.batch_select_indices(torch.tensor(kept, device=self.backbone.device))
            mask = inputs["attention_mask"][kept]
            parts.append(
                (
                    [rows[n] for n in kept],
                    {
                        "input_ids": mask.new_tensor([[tokens[rows[n]]] for n in kept]),
                        "attention_mask": torch.cat([mask, torch.ones_like(mask[:, :1])], 1),
                        "position_ids": inputs["position_ids"][kept] + 1,
                    },
                    after,
                )
            )
        self.parts, self.active = parts, torch.tensor([token is not None for token in tokens]) & self.active

    def _read(
        self,
        inputs: dict[str, Tensor],
        cache: Any,  # noqa: ANN401
        maps: Mapping[Site, Transports],
        edits: Tensor,
        strength: float,
    ) -> Any:  # noqa: ANN401
        """Read last tokens behind a cache, moved by the maps of their edits, and give the cache with them."""
        device = self.backbone.device
        moves = {site: partial(_move, of_site.cast(device=device), edits, strength) for site, of_site in maps.items()}
        with steer(self.backbone.model, moves, torch.zeros(len(edits), dtype=torch.long)):
            return self.backbone.model.base_model(**inputs, past_key_values=cache, use_cache=True).past_key_values


@torch.no_grad()
def target_states(
    backbone: Backbone, prompts: Sequence[str], sites: Sequence[Site], after: Sequence[Sequence[int]]
) -> tuple[dict[Site, Tensor], Tensor]:
    """Activations of prompts' last tokens and of what follows them, and the token that the model gives after each.

    Args:
        backbone: The bare model.
        prompts: N texts.
        sites: What to record.
        after: For each prompt the ids of at most S - 1 tokens that follow it.

    Returns:
        For each site (N, S, D) float32 on the CPU, and (N, S) long, arbitrary behind a prompt's own tokens.
    """
    count = max(map(len, after)) + 1
    states = {site: torch.empty(len(prompts), count, backbone.width) for site in sites}
    tokens = torch.empty(len(prompts), count, dtype=torch.long)
    for rows, encoded in encoded_batches(backbone, prompts):
        ids = [[*after[i], *[0] * (count - 1 - len(after[i]))] for i in rows]
        added = torch.tensor(ids, dtype=torch.long, device=backbone.device).view(len(rows), count - 1)
        position = encoded.position_ids[:, -1:] + torch.arange(1, count, device=backbone.device)
        with record(backbone.model, sites) as seen:
            logits = backbone.model(
                input_ids=torch.cat([encoded.input_ids, added], 1),
                attention_mask=torch.cat([encoded.attention_mask, torch.ones_like(added)], 1),
                position_ids=torch.cat([encoded.position_ids, position], 1),
                use_cache=False,
                logits_to_keep=count,
            ).logits
        tokens[rows] = logits.argmax(-1).cpu()
        for site in sites:
            states[site][rows] = seen[site][:, -count:].float().cpu()
    return states, tokens


def _by_length(prompts: Sequence[str], size: int) -> Iterator[list[int]]:
    """The places of prompts, a forward pass's at a time, those of like length together."""
    places = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return (places[start : start + size] for start in range(0, len(places), size))


def _size(backbone: Backbone) -> int:
    """Prompts a forward pass: a CPU is busy with a few, and padding costs it more; a GPU waits for kernels to start."""
    return 32 if backbone.device.type == "cpu" else 256


def _followed(
    backbone: Backbone, targets: Sequence[tuple[int, str, str]], after: Sequence[Sequence[int]], tokens: Tensor
) -> Tensor:
    """The edit (N, S) whose map each target forms at each step, or -1.

    Those count that say what they force, and what only the model knows; where fewer than two of an edit do, all count.
    """
    edits = torch.tensor([e for e, *_ in targets])[:, None].repeat(1, tokens.shape[1])
    steps = torch.arange(tokens.shape[1])
    edits[steps > torch.tensor([len(ids) for ids in after])[:, None]] = -1
    forcing = [n for n, (*_, answer) in enumerate(targets) if answer]
    followed = torch.ones_like(edits, dtype=torch.bool)
    for n in forcing:
        ids = after[n] or backbone.answer_ids(targets[n][1], targets[n][2])[:1]
        followed[n, : len(ids)] = tokens[n, : len(ids)] == torch.tensor(ids)[: tokens.shape[1]]
    for edit in {e for e, *_ in targets}:
        own = torch.tensor([n for n in forcing if targets[n][0] == edit], dtype=torch.long)
        followed[own] |= (followed[own].sum(0) < 2) & torch.ones_like(followed[own])
    return edits.masked_fill(~followed, -1)


def _move(maps: Transports, edit: Tensor, strength: float, x: Tensor) -> Tensor:
    return maps.apply(x, edit.to(x.device), strength)


def _by_site(fitted: Sequence[Sequence[dict[Site, Transport]]], step: int) -> dict[Site, Transports]:
    """The maps of all edits at each site that is fitted at a step; edits that have none there leave all as it is."""
    going = [steps[step] for steps in fitted if len(steps) > step]
    none = MapConfig(estimator="none")
    return {
        site: stack(
            [steps[step][site] if len(steps) > step else none.solve(m.mean[None], m.mean[None]) for steps in fitted]
        )
        for site, m in going[0].items()
    }


def make_bank(
    backbone: Backbone,
    fitted: Mapping[str, tuple[EditRequest, Steps]],
    router: RouterConfig,
    maps: MapConfig,
    settings: Mapping[str, Any],
) -> EditBank:
    """Fit the router of some fitted edits, put them into a bank, and name those whose object does not come out.

    Args:
        backbone: The bare model.
        fitted: By edit id the request and its maps.
        router: How prompts find their edit.
        maps: How they were estimated.
        settings: What to write beside the edits.
    """
    requests = [request for request, _ in fitted.values()]
    if router.ask_aliases:
        requests = with_known_aliases(backbone, requests)
    steps = [of_step for _, of_edit in fitted.values() for of_step in of_edit]
    bank = EditBank(
        requests=tuple(requests),
        maps={site: stack([of_step[site] for of_step in steps]) for site in steps[0]},
        objects=tuple(objects_of(backbone, requests, maps)),
        router=ContentRouter.fit(backbone, requests, list(relations().values()), router),
        strength=maps.strength,
        backbone={"name": backbone.name, "revision": backbone.revision, **backbone.fingerprint},
        settings=settings,
    )
    bank = replace(bank, missed=missed_objects(backbone, bank))
    warn_of_missed(bank)
    return bank


def versions() -> dict[str, str]:
    """Versions of what computes the results."""
    names = ("mega_pl", "torch", "transformers", "lightning", "torchmetrics")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
