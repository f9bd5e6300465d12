"""Editors x backbones x data x protocols: the engine that runs them, and what the results look like."""

from mega_pl.compare.engine import Mode, Result, compare_editors
from mega_pl.compare.report import (
    Block,
    averages,
    bars,
    blocks,
    growth,
    heat_maps,
    latex,
    markdown,
    overviews,
    routing,
)

__all__ = [
    "Block",
    "Mode",
    "Result",
    "averages",
    "bars",
    "blocks",
    "compare_editors",
    "growth",
    "heat_maps",
    "latex",
    "markdown",
    "overviews",
    "routing",
]
