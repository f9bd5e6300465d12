"""Everything that decides how edits are fitted."""

from dataclasses import dataclass, field

from mega_pl.backbone import Backbone, Site
from mega_pl.edits import RouterConfig
from mega_pl.errors import MegaValueError
from mega_pl.fitting.maps import MapConfig
from mega_pl.fitting.prompts import PromptConfig
from mega_pl.fitting.refinement import RefineConfig


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How edits are fitted.

    Args:
        sites: Where to steer, each as KIND.LAYER; none for the residual in the last half of the blocks.
        maps: How maps are estimated.
        refine: How a gradient then refines them; by default not at all.
        prompts: How prompts are multiplied.
        router: How prompts find their edit.
        tokens_per_batch: The most tokens of a forward pass; None takes what the device bears.
        seed: Of everything random, written beside the edits.
    """

    sites: tuple[str, ...] = ()
    maps: MapConfig = field(default_factory=MapConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    tokens_per_batch: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for site in self.sites:
            Site.parse(site)
        if self.tokens_per_batch is not None and self.tokens_per_batch < 1:
            raise MegaValueError(f"`tokens_per_batch` must be at least 1, but got {self.tokens_per_batch}.")

    def sites_of(self, backbone: Backbone) -> list[Site]:
        """Where a backbone is steered, in the order of a forward pass.

        Raises:
            ValueError: If it lacks a site.
        """
        sites = sorted(map(Site.parse, self.sites)) or default_sites(backbone)
        backbone.check_sites(sites)
        return sites


def default_sites(backbone: Backbone) -> list[Site]:
    """The residual in the last half of the blocks: after attention, or after the block where that is no site."""
    return [Site(layer, backbone.layout.default_kind) for layer in range(backbone.n_layers // 2, backbone.n_layers)]
