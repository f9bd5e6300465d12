"""Readers of edits, one file a benchmark, and edits as Lightning data."""

from mega_pl.data.counterfact import read_counterfact
from mega_pl.data.easyedit import add_aliases, add_portability, read_easyedit
from mega_pl.data.join import join
from mega_pl.data.jsonl import read_jsonl, write_example
from mega_pl.data.knowedit import read_knowedit
from mega_pl.data.mquake import read_mquake
from mega_pl.data.paraphrases import (
    evaluation_prompts,
    implications_for,
    phrasings_for,
    with_implications,
    with_phrasings,
)
from mega_pl.data.records import Cases
from mega_pl.data.relations import Relation, implications, noun_phrases, relations
from mega_pl.data.rippleedits import read_rippleedits
from mega_pl.data.zsre import read_zsre

__all__ = [
    "Cases",
    "Relation",
    "add_aliases",
    "add_portability",
    "evaluation_prompts",
    "implications",
    "implications_for",
    "join",
    "noun_phrases",
    "phrasings_for",
    "read_counterfact",
    "read_easyedit",
    "read_jsonl",
    "read_knowedit",
    "read_mquake",
    "read_rippleedits",
    "read_zsre",
    "relations",
    "with_implications",
    "with_phrasings",
    "write_example",
]
