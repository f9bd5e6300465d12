"""More edits for a bank that is there, fitted as its own were."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from mega_pl.aliasing import with_known_aliases
from mega_pl.backbone import Backbone
from mega_pl.data.prompts import PromptConfig
from mega_pl.edits import EditBank, EditRequest, check_requests
from mega_pl.edits.conflicts import shared_names
from mega_pl.edits.routing import RouterConfig
from mega_pl.fitting import MapConfig, objects_of
from mega_pl.functional import stack
from mega_pl.outcomes import missed_objects, warn_of_missed
from mega_pl.refining import RefineConfig, fit_refined
from mega_pl.supposing import with_followed_implications

Config = TypeVar("Config", MapConfig, PromptConfig, RefineConfig, RouterConfig)


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
    maps, prompts = _config(bank.settings, "maps", MapConfig), _config(bank.settings, "prompts", PromptConfig)
    requests = with_followed_implications(backbone, requests)
    config = _config(bank.settings, "refine", RefineConfig) if "refine" in bank.settings else RefineConfig()
    steps = fit_refined(backbone, requests, list(bank.maps), maps, prompts, config)
    if "router" in bank.settings and _config(bank.settings, "router", RouterConfig).ask_aliases:
        requests = _with_free_aliases(bank, backbone, requests)
    rows = [of_step for of_edit in steps for of_step in of_edit]
    grown = bank.router.add(backbone, requests)
    more = replace(
        bank,
        requests=tuple(requests),
        maps={site: stack([row[site] for row in rows]) for site in bank.maps},
        objects=tuple(objects_of(backbone, requests, maps)),
        router=grown.select(range(len(bank), len(bank) + len(requests))),
        missed={},
        history=(),
    )
    more = replace(more, missed=missed_objects(backbone, more))
    warn_of_missed(more)
    return more


def _with_free_aliases(bank: EditBank, backbone: Backbone, requests: Sequence[EditRequest]) -> list[EditRequest]:
    """Add the aliases that the backbone knows and that are no subject of the bank."""
    known = with_known_aliases(backbone, requests)
    taken = shared_names([*known, *bank.requests])
    return [
        replace(new, aliases=tuple(a for a in new.aliases if a in old.aliases or a not in taken.get(i, {})))
        for i, (old, new) in enumerate(zip(requests, known, strict=True))
    ]


def _config(settings: Mapping[str, Any], name: str, kind: type[Config]) -> Config:
    """How the edits of a bank were fitted.

    Raises:
        ValueError: If its settings do not say, or say it in words that this version does not know.
    """
    if name not in settings:
        raise ValueError(
            f"`settings` of the bank must say its `{name}` for it to grow, but do not; fit all edits again."
        )
    try:
        return kind(**settings[name])
    except TypeError as error:
        raise ValueError(f"`settings` of the bank must say its `{name}` for it to grow, but {error}.") from error
