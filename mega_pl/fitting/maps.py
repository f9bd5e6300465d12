"""An edit's maps: its prompts read once, and each site's map solved as the pass of their last tokens goes by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from mega_pl.asking import check_room, read_beginnings, token_counts
from mega_pl.asking.batches import TOKENS, encoded_ids
from mega_pl.backbone import Backbone, Site, record, steer, until
from mega_pl.errors import MegaNumericError, MegaValueError
from mega_pl.fitting.prompts import PromptSet
from mega_pl.functional import BASIS_DTYPES, MapDtype, Transport, check_options, fit_transport, mean_shift, shifting

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
        directions: The most directions that are kept of the solved map, those along which it moves the source most.
        object_directions: The same of the maps for the tokens of an object.
        dtype: Of the vectors that are kept; activations are moved in float32 at least.
        strength: Multiple of the full move.
        whole: Whether there are maps for the tokens of an object too, so that it is written whole, and not only for the
            last token of a prompt.
    """

    estimator: Estimator = "transport"
    rank: int | float | None = 0.95
    max_rank: int = 32
    regularization: float = 1e-2
    relative: bool = True
    directions: int | None = None
    object_directions: int | None = None
    dtype: MapDtype = "float32"
    strength: float = 1.0
    whole: bool = True

    def __post_init__(self) -> None:
        if self.estimator not in get_args(Estimator):
            raise MegaValueError(
                f"`estimator` must be one of {', '.join(get_args(Estimator))}, but got {self.estimator!r}."
            )
        if self.dtype not in BASIS_DTYPES:
            raise MegaValueError(f"`dtype` of maps must be one of {', '.join(BASIS_DTYPES)}, but got {self.dtype!r}.")
        for directions in (self.directions, self.object_directions):
            check_options(self.rank, self.max_rank, self.regularization, directions)
        if not 0 < self.strength <= 2:
            raise MegaValueError(f"`strength` must lie in (0, 2], but got {self.strength}.")

    def solve(self, source: Tensor, target: Tensor) -> Transport:
        """Solve one edit's map at one site in float64 and keep it in `dtype`.

        Args:
            source: (N, D) last-token activations of the source prompts.
            target: (M, D) those of the target prompts.
        """
        if self.estimator == "none":
            found = shifting(torch.zeros(source.shape[1]))
        elif self.estimator == "mean_shift":
            found = mean_shift(source, target)
        else:
            found = fit_transport(
                source,
                target,
                rank=self.rank,
                max_rank=self.max_rank,
                regularization=self.regularization,
                relative=self.relative,
                directions=self.directions,
            )
        return found.rounded(self.dtype, source.double().mean(0))


def object_ids(backbone: Backbone, prompt: str, target_new: str, config: MapConfig) -> tuple[int, ...]:
    """The token ids of a new object after its prompt that get maps of their own."""
    return tuple(backbone.answer_ids(prompt, target_new)) if config.whole else ()


@torch.no_grad()
def fit_maps(
    backbone: Backbone,
    prompts: PromptSet,
    sites: Sequence[Site],
    config: MapConfig,
    *,
    objects: Sequence[int] = (),
    tokens_per_batch: int = TOKENS,
) -> Steps:
    """Fit the maps of an edit at all sites.

    Maps move the last token of a prompt, and attention is causal, so that what stands before it is read once. Then one
    pass of the last tokens goes from site to site: at each the map is solved from what arrives there, moved already by
    the maps before it, and moves it on. (Fitted independently, maps of the residual stream would each make the whole
    move and overshoot together.) The object's tokens follow, a pass each. Target prompts that the model does not
    follow, which answer something else than they force, are left out. An edit is read by itself, so that its maps do
    not hang on others', to the bit.

    Args:
        backbone: The bare model.
        prompts: The edit's.
        sites: Where to steer.
        config: How to estimate.
        objects: The token ids after which it gets maps too; none by default.
        tokens_per_batch: The most tokens of a batch that reads beginnings.

    Returns:
        The maps of the last token of its prompts, then of each token of its object.

    Raises:
        ValueError: If there are too few prompts.
        FloatingPointError: If an activation is not finite.
    """
    count = min(len(prompts.source), len(prompts.target))
    if count < 2 and config.estimator != "none":
        raise MegaValueError(
            f"an edit must have 2 prompts of each kind or more to be fitted, but {prompts.edit_id!r} has {count}; "
            "give it `phrasings`, or raise `prompts.prefixes`."
        )
    sites = sorted(sites)
    everything = [*prompts.source, *prompts.target]
    lengths = [count + len(objects) for count in token_counts(backbone, everything)]
    check_room(backbone, everything, lengths, f"the new object of {prompts.edit_id!r}")
    targets, followed = _targets(backbone, prompts, sites, objects, tokens_per_batch)
    ids = encoded_ids(backbone, prompts.source)
    texts = read_beginnings(backbone, [row[:-1] for row in ids], last=sites[-1], tokens_per_batch=tokens_per_batch)
    tokens = torch.tensor([row[-1:] for row in ids], device=backbone.device)
    steps: list[dict[Site, Transport]] = []
    for step in range(len(objects) + 1):
        if step == 1:
            texts.select(range(prompts.facts))
            config = replace(config, directions=config.object_directions)
        if step:
            tokens = torch.full_like(tokens[: prompts.facts], objects[step - 1])
        maps: dict[Site, Transport] = {}
        moves = {
            site: partial(_solve_and_move, config, maps, site, targets[site][followed[:, step], step], prompts.edit_id)
            for site in sites
        }
        last = torch.zeros(len(tokens), dtype=torch.long)
        with steer(backbone.model, moves, last), until(backbone.model, sites[-1]):
            backbone.model.base_model(**texts.follow(tokens))
        steps.append(maps)
    return tuple(steps)


def _targets(
    backbone: Backbone, prompts: PromptSet, sites: Sequence[Site], objects: Sequence[int], tokens_per_batch: int
) -> tuple[dict[Site, Tensor], Tensor]:
    """The states of target prompts' last tokens and of the object's after them, and which of them count.

    Those count that say what they force, and what only the model knows; where fewer than two do, all count.

    Returns:
        For each site (M, S, D) float32 on the CPU, and (M, S) bool, with S the number of steps.
    """
    ids = encoded_ids(backbone, prompts.target)
    forces = torch.tensor([bool(answer) for answer in prompts.answers])
    texts = read_beginnings(backbone, [row[:-1] for row in ids], tokens_per_batch=tokens_per_batch)
    tokens = torch.tensor([[row[-1], *objects] for row in ids], device=backbone.device)
    with record(backbone.model, sites) as seen:
        output = backbone.model.base_model(**texts.follow(tokens)).last_hidden_state
    said = backbone.model.get_output_embeddings()(output).argmax(-1).cpu()
    if objects:
        wanted = torch.tensor([objects]).expand(len(ids), -1)
    else:
        pairs = zip(prompts.target, prompts.answers, strict=True)
        wanted = torch.tensor([[backbone.answer_ids(p, answer)[0] if answer else 0] for p, answer in pairs])
    follows = torch.ones_like(said, dtype=torch.bool)
    follows[:, : wanted.shape[1]] = said[:, : wanted.shape[1]] == wanted
    lonely = (follows & forces[:, None]).sum(0) < 2
    counts = forces[:, None] & (follows | lonely)
    counts[:, 0] |= ~forces
    return {site: states.float().cpu() for site, states in seen.items()}, counts


def _solve_and_move(
    config: MapConfig, maps: dict[Site, Transport], site: Site, target: Tensor, edit_id: str, states: Tensor
) -> Tensor:
    """Solve the map from what has arrived at a site, keep it, and move that on."""
    _check_finite(edit_id, site, states, target)
    maps[site] = config.solve(states.float().cpu(), target)
    return maps[site].cast(device=states.device)(states, config.strength)


def _check_finite(edit_id: str, site: Site, *states: Tensor) -> None:
    """Refuse activations from which no map can be solved."""
    if not all(bool(values.isfinite().all()) for values in states):
        raise MegaNumericError(
            f"activations must be finite, but those of {edit_id!r} at {site} are not; load the model in bfloat16 or "
            "float32."
        )
