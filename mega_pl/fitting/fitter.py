"""The one way from requests to a bank: edits are fitted one after the other, then the router on all of them."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any, TypeVar

from tqdm.auto import tqdm

from mega_pl.backbone import Backbone, tokens_that_fit
from mega_pl.data.relations import relations
from mega_pl.edits import ContentRouter, EditBank, EditCase, EditRequest, RouterConfig, check_requests
from mega_pl.edits.checks import check_type
from mega_pl.edits.conflicts import latest, shared_names
from mega_pl.errors import MegaValueError
from mega_pl.fitting.aliases import with_known_aliases
from mega_pl.fitting.config import FitConfig
from mega_pl.fitting.implications import with_followed_implications
from mega_pl.fitting.maps import MapConfig, Steps, fit_maps, object_ids
from mega_pl.fitting.outcomes import missed_objects, warn_of_missed
from mega_pl.fitting.prompts import PromptConfig, expand, phrasings
from mega_pl.fitting.refinement import RefineConfig, refine
from mega_pl.functional import stack

Config = TypeVar("Config", MapConfig, PromptConfig, RefineConfig, RouterConfig)


@dataclass(frozen=True, eq=False)
class FittedEdit:
    """An edit and its maps.

    Args:
        request: As it was asked for.
        followed: The same with the implications that the model follows.
        steps: Its maps.
    """

    request: EditRequest
    followed: EditRequest
    steps: Steps


class EditFitter:
    """Fits edits, each by itself, and puts them into a bank.

    What an edit's maps are does not hang on what else is fitted, when or where, to the bit: a fit may be broken off and
    gone on with, dealt out to processes, or grow by further edits.

    Args:
        backbone: The bare model.
        config: How edits are fitted.

    Raises:
        TypeError: If the backbone is none that `load` gives.
        ValueError: If the backbone lacks a site, or the router's encoder does not load.
    """

    def __init__(self, backbone: Backbone, config: FitConfig | None = None) -> None:
        check_type("`backbone`", backbone, Backbone)
        self.backbone, self.config = backbone, config or FitConfig()
        self.sites = self.config.sites_of(backbone)
        self.config.router.vectors(backbone)
        self.fitted: dict[str, FittedEdit] = {}
        self._bank: EditBank | None = None

    def update(self, requests: Sequence[EditRequest]) -> list[FittedEdit]:
        """Fit the edits that are not yet; one whose id has been fitted for another request is fitted again.

        Args:
            requests: The edits.

        Returns:
            What was fitted now.
        """
        new = [r for r in requests if r.edit_id not in self.fitted or self.fitted[r.edit_id].request != r]
        followed = with_followed_implications(self.backbone, new)
        bar = tqdm(zip(new, followed, strict=True), "edits", len(new), leave=False, disable=None)
        edits = [FittedEdit(request, known, self._steps(known)) for request, known in bar]
        self.keep(edits)
        return edits

    def keep(self, edits: Iterable[FittedEdit]) -> None:
        """Take edits over that have been fitted with the same settings, elsewhere or earlier."""
        for edit in edits:
            self.fitted[edit.request.edit_id] = edit
            self._bank = None

    @property
    def finished(self) -> EditBank | None:
        """The bank of all edits fitted so far, if it has been made."""
        return self._bank

    def adopt(self, bank: EditBank) -> None:
        """Take a bank for that of all edits fitted so far."""
        self._bank = bank

    def bank(self, order: Sequence[str] = ()) -> EditBank:
        """The bank of all edits fitted so far; the router is fitted when there are new ones.

        Args:
            order: Ids in the order in which they come last; by default all are in the order of their fit.

        Raises:
            ValueError: If nothing has been fitted, or the edits do not go together.
        """
        if self._bank is None:
            if not self.fitted:
                raise MegaValueError("a bank must have at least one edit, but none has been fitted; run `fit` first.")
            place = {edit_id: i for i, edit_id in enumerate(order)}
            self.fitted = dict(sorted(self.fitted.items(), key=lambda item: place.get(item[0], -1)))
            self._bank = self._made()
        return self._bank

    def _steps(self, request: EditRequest) -> Steps:
        """The maps of one edit."""
        config, backbone = self.config, self.backbone
        tokens = config.tokens_per_batch or tokens_that_fit(backbone)
        prompts, own = expand(request, config.prompts, backbone), phrasings(request, config.prompts)
        objects = object_ids(backbone, request.filled, request.target_new, config.maps)
        first, *others = fit_maps(backbone, prompts, self.sites, config.maps, objects=objects, tokens_per_batch=tokens)
        strength = config.maps.strength
        return (refine(backbone, request, own, first, strength, config.refine, tokens_per_batch=tokens), *others)

    def _made(self) -> EditBank:
        backbone, config = self.backbone, self.config
        requests = [edit.followed for edit in self.fitted.values()]
        check_requests(requests)
        if config.router.ask_aliases:
            requests = with_known_aliases(backbone, requests)
        bank = EditBank(
            **_edits(backbone, requests, [edit.steps for edit in self.fitted.values()], config.maps),
            router=ContentRouter.fit(backbone, requests, list(relations().values()), config.router),
            strength=config.maps.strength,
            backbone={"name": backbone.name, "revision": backbone.revision, **backbone.fingerprint},
            settings=settings(backbone, config),
        )
        return _judged(backbone, bank)


def fit(backbone: Backbone, edits: Sequence[EditRequest | EditCase], config: FitConfig | None = None) -> EditBank:
    """Fit edits and put them into a bank.

    Of two edits that give one fact different objects the later wins, and a warning names both.

    Args:
        backbone: The bare model.
        edits: Requests, or cases of which only the requests are read.
        config: How edits are fitted.

    Raises:
        TypeError: If the backbone is none that `load` gives.
        ValueError: If there is no edit, an id comes twice, or an alias is the subject of another edit.
    """
    check_type("`backbone`", backbone, Backbone)
    requests = latest(edits)
    check_requests(requests)
    fitter = EditFitter(backbone, config)
    fitter.update(requests)
    return fitter.bank()


def fit_more(bank: EditBank, backbone: Backbone, requests: Sequence[EditRequest]) -> EditBank:
    """Fit edits with the settings of a bank; its own are neither fitted again nor part of what is returned.

    Args:
        bank: The bank, whose router learns the edits; its thresholds stay.
        backbone: The bare model that the bank was fitted on.
        requests: The edits.

    Returns:
        A bank of these edits alone, to be put behind the others.

    Raises:
        ValueError: If the edits cannot be in force together, or the bank does not say how it was fitted.
    """
    check_requests(requests)
    fitter = EditFitter(backbone, _config_of(bank))
    fitter.update(requests)
    known = [edit.followed for edit in fitter.fitted.values()]
    if fitter.config.router.ask_aliases:
        known = _with_free_aliases(bank, backbone, known)
    grown = bank.router.add(backbone, known)
    more = replace(
        bank,
        **_edits(backbone, known, [edit.steps for edit in fitter.fitted.values()], fitter.config.maps),
        router=grown.select(range(len(bank), len(bank) + len(known))),
        history=(),
    )
    return _judged(backbone, more)


def settings(backbone: Backbone, config: FitConfig) -> dict[str, Any]:
    """Seed, versions and hyper-parameters of a fit, ready for JSON."""
    return {
        "seed": config.seed,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "versions": versions(),
        "maps": asdict(config.maps),
        "router": asdict(config.router),
        "prompts": asdict(config.prompts),
        "refine": asdict(config.refine),
    }


def versions() -> dict[str, str]:
    """Versions of what computes the results."""
    names = ("mega_pl", "torch", "transformers", "lightning", "torchmetrics")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _edits(
    backbone: Backbone, requests: Sequence[EditRequest], steps: Sequence[Steps], config: MapConfig
) -> dict[str, Any]:
    """The fields of a bank that belong to single edits, but for the router."""
    rows = [of_step for of_edit in steps for of_step in of_edit]
    return {
        "requests": tuple(requests),
        "maps": {site: stack([row[site] for row in rows]) for site in rows[0]},
        "objects": tuple(object_ids(backbone, r.filled, r.target_new, config) for r in requests),
        "missed": {},
        "digests": (),
    }


def _judged(backbone: Backbone, bank: EditBank) -> EditBank:
    """The bank with the edits named whose object does not come out."""
    bank = replace(bank, missed=missed_objects(backbone, bank))
    warn_of_missed(bank)
    return bank


def _with_free_aliases(bank: EditBank, backbone: Backbone, requests: Sequence[EditRequest]) -> list[EditRequest]:
    """Add the aliases that the backbone knows and that are no subject of the bank."""
    known = with_known_aliases(backbone, requests)
    taken = shared_names([*known, *bank.requests])
    return [
        replace(new, aliases=tuple(a for a in new.aliases if a in old.aliases or a not in taken.get(i, {})))
        for i, (old, new) in enumerate(zip(requests, known, strict=True))
    ]


def _config_of(bank: EditBank) -> FitConfig:
    """How the edits of a bank were fitted."""
    return FitConfig(
        sites=tuple(map(str, bank.maps)),
        maps=_part(bank.settings, "maps", MapConfig),
        refine=_part(bank.settings, "refine", RefineConfig),
        prompts=_part(bank.settings, "prompts", PromptConfig),
        router=_part(bank.settings, "router", RouterConfig),
        seed=int(bank.settings.get("seed", 0)),
    )


def _part(settings: Mapping[str, Any], name: str, kind: type[Config]) -> Config:
    """A part of a bank's settings.

    Raises:
        ValueError: If they do not say it, or say it in words that this version does not know.
    """
    if name not in settings:
        raise MegaValueError(
            f"`settings` of the bank must say its `{name}` for it to grow, but do not; fit all edits again."
        )
    try:
        return kind(**settings[name])
    except TypeError as error:
        raise MegaValueError(f"`settings` of the bank must say its `{name}` for it to grow, but {error}.") from error
