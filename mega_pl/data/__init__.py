"""Files of edits, one reader a format, and edits as Lightning data."""

from mega_pl.data.join import join
from mega_pl.data.paraphrases import (
    evaluation_prompts,
    implications_for,
    phrasings_for,
    with_implications,
    with_phrasings,
)
from mega_pl.data.readers.jsonl import write_example
from mega_pl.data.reading import DataFile, add, read
from mega_pl.data.records import Cases
from mega_pl.data.relations import Relation, implications, noun_phrases, relations

__all__ = [
    "Cases",
    "DataFile",
    "Relation",
    "add",
    "evaluation_prompts",
    "implications",
    "implications_for",
    "join",
    "noun_phrases",
    "phrasings_for",
    "read",
    "relations",
    "with_implications",
    "with_phrasings",
    "write_example",
]
