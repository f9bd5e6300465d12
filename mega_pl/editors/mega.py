"""MEGA as an editor: maps of residual activations at several sites, routed by content."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from mega_pl.asking import Edited
from mega_pl.backbone import Backbone, Site
from mega_pl.data.prompts import PromptConfig
from mega_pl.editors.protocol import Editor, Routed
from mega_pl.edits import EditRequest, RouterConfig
from mega_pl.fitting import MapConfig, fit


@dataclass(frozen=True, kw_only=True)
class MegaConfig:
    """Settings of MEGA.

    Args:
        sites: Where to steer, each as KIND.LAYER; none for `default_sites`.
        maps: How maps are estimated.
        router: How prompts find their edit.
        prompts: How prompts are multiplied.
    """

    sites: tuple[str, ...] = ()
    maps: MapConfig = field(default_factory=MapConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)

    def __post_init__(self) -> None:
        for site in self.sites:
            Site.parse(site)


@dataclass(frozen=True, eq=False)
class Mega(Editor):
    """Fits a bank of the edits and applies it; `fit` and `EditBank` say how."""

    name: ClassVar[str] = "mega"
    config: MegaConfig = field(default_factory=MegaConfig)

    @contextmanager
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Iterator[Edited]:
        """Put edits into force; see `Editor`.

        Raises:
            ValueError: If the requests do not go together, or there is no such site.
        """
        bank = fit(
            backbone,
            requests,
            sites=[Site.parse(site) for site in self.config.sites],
            maps=self.config.maps,
            router=self.config.router,
            prompts=self.config.prompts,
        )
        with bank.apply(backbone) as use:
            yield Routed(use)
