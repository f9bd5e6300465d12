"""From requests to a bank: prompts, maps, their refinement, the router, and what becomes of it; no Lightning."""

from mega_pl.fitting.config import FitConfig, default_sites
from mega_pl.fitting.fitter import EditFitter, FittedEdit, fit, fit_more, settings, versions
from mega_pl.fitting.maps import MapConfig, Steps, fit_maps
from mega_pl.fitting.prompts import PromptConfig
from mega_pl.fitting.refinement import RefineConfig

__all__ = [
    "EditFitter",
    "FitConfig",
    "FittedEdit",
    "MapConfig",
    "PromptConfig",
    "RefineConfig",
    "Steps",
    "default_sites",
    "fit",
    "fit_maps",
    "fit_more",
    "settings",
    "versions",
]
