"""Readers of edits, one file a benchmark, and the tests that a protocol makes of them."""

from mega_pl.data.counterfact import read_counterfact
from mega_pl.data.join import join
from mega_pl.data.jsonl import read_jsonl
from mega_pl.data.knowedit import read_knowedit
from mega_pl.data.rippleedits import read_rippleedits
from mega_pl.data.sake import DOUBT_TEMPLATES, Test, sake_tests

__all__ = [
    "DOUBT_TEMPLATES",
    "Test",
    "join",
    "read_counterfact",
    "read_jsonl",
    "read_knowedit",
    "read_rippleedits",
    "sake_tests",
]
