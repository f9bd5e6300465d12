"""MEGA as an editor: maps of residual activations at several sites, routed by content."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from mega_pl.backbone import Backbone, Site
from mega_pl.data.prompts import PromptConfig
from mega_pl.editors.protocol import Edited, Editor, check_requests
from mega_pl.edits import NO_EDIT, BankUse, EditRequest, GateConfig
from mega_pl.fitting import MapConfig, fit_edits


@dataclass(frozen=True, kw_only=True)
class MegaConfig:
    """Settings of MEGA.

    Args:
        sites: Where to steer, each as KIND.LAYER; none for `default_sites`.
        maps: How maps are estimated.
        gate: How scopes are told apart.
        prompts: How prompts are multiplied.
    """

    sites: tuple[str, ...] = ()
    maps: MapConfig = field(default_factory=MapConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)

    def __post_init__(self) -> None:
        for site in self.sites:
            Site.parse(site)


@dataclass(frozen=True, eq=False)
class Mega(Editor):
    """Fits a bank of the edits and applies it; `fit_edits` and `EditBank` say how."""

    name: ClassVar[str] = "mega"
    config: MegaConfig = field(default_factory=MegaConfig)

    @contextmanager
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Iterator[Edited]:
        """Put edits into force; see `Editor`.

        Raises:
            ValueError: If the requests do not go together, or there is no such site.
        """
        check_requests(requests)
        bank = fit_edits(
            backbone,
            requests,
            sites=[Site.parse(site) for site in self.config.sites],
            maps=self.config.maps,
            gate=self.config.gate,
            prompts=self.config.prompts,
        )
        with bank.apply(backbone) as use:
            yield Banked(use)


@dataclass(frozen=True, eq=False)
class Banked(Edited):
    """A backbone with a bank in force.

    Args:
        use: The bank.
    """

    use: BankUse

    @property
    def fired(self) -> list[str | None]:
        """The edit that each prompt of the last batch got, or None."""
        return self.use.fired

    def route(self, edits: Sequence[str | None] | None = None, *, forced: bool = False) -> None:
        """Decide which edit each row gets; see `Edited`."""
        index = self.use.bank.index
        self.use.fixed = None if edits is None else [NO_EDIT if edit is None else index(edit) for edit in edits]
        self.use.forced = forced
