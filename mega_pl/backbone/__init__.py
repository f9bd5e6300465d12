"""The only room that knows an architecture: where its sites are, reading and steering them, loading and tokenising."""

from mega_pl.backbone.backbone import Backbone, Dtype, Encoded, PaddingSide
from mega_pl.backbone.caches import forked
from mega_pl.backbone.hooks import Steering, record, steer, steer_tokens, until
from mega_pl.backbone.layout import Layout, blocks, check_sites, layout_of, layout_of_config
from mega_pl.backbone.loading import load, load_outline
from mega_pl.backbone.memory import tokens_that_fit
from mega_pl.backbone.reading import UNKNOWN, Pass, Reading, each_pass, prompt_lengths
from mega_pl.backbone.sites import SITE_KINDS, Site, SiteKind
from mega_pl.backbone.visits import Call, visited

__all__ = [
    "SITE_KINDS",
    "UNKNOWN",
    "Backbone",
    "Call",
    "Dtype",
    "Encoded",
    "Layout",
    "PaddingSide",
    "Pass",
    "Reading",
    "Site",
    "SiteKind",
    "Steering",
    "blocks",
    "check_sites",
    "each_pass",
    "forked",
    "layout_of",
    "layout_of_config",
    "load",
    "load_outline",
    "prompt_lengths",
    "record",
    "steer",
    "steer_tokens",
    "tokens_that_fit",
    "until",
    "visited",
]
