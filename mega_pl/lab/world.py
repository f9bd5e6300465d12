"""The lab's world: true facts about countries, cities and people, and the ways to ask for them."""

import builtins
import csv
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

from mega_pl.fitting.prompts import PREFIXES

TABLES = {"country": "countries.tsv", "city": "cities.tsv", "person": "people.tsv"}


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A relation and its phrasings, each ending right before the object.

    Args:
        name: Column of the fact tables.
        property: Wikidata property id.
        subjects: Kind of the subject: country, city or person.
        objects: Kind of the object.
        templates: Phrasings with one ``{}``, free for fitting.
        heldout: Phrasings with one ``{}``, asked only by evaluations.
        phrases: Noun phrases with one ``{}`` that stand for the object.
        heldout_phrases: Noun phrases kept for evaluations.
    """

    name: str
    property: str
    subjects: str
    objects: str
    templates: tuple[str, ...]
    heldout: tuple[str, ...]
    phrases: tuple[str, ...] = ()
    heldout_phrases: tuple[str, ...] = ()

    @builtins.property  # the field `property` hides the name
    def all_templates(self) -> tuple[str, ...]:
        """Every phrasing, those free for fitting first."""
        return self.templates + self.heldout

    @builtins.property
    def all_phrases(self) -> tuple[str, ...]:
        """Every noun phrase, those free for fitting first."""
        return self.phrases + self.heldout_phrases


@dataclass(frozen=True)
class Fact:
    """A true statement: ``object`` answers ``relation`` asked of ``subject``."""

    subject: str
    relation: str
    object: str


@dataclass(frozen=True)
class TwoHop:
    """A question about ``subject`` through ``bridge``: ``second(first(subject)) = object``."""

    subject: str
    first: str
    bridge: str
    second: str
    object: str


def fill(template: str, subject: str) -> str:
    """Put a subject into a phrasing, with a capital letter where it begins the sentence.

    >>> fill("{} is a city in", "the birthplace of Marie Curie")
    'The birthplace of Marie Curie is a city in'
    """
    text = template.replace("{}", subject)
    return text[0].upper() + text[1:]


class World:
    """All facts of the lab, indexed.

    Attributes:
        relations: Relation by name.
        entities: Kind (country, city, person) by entity name.
        aliases: Other names by entity name; entities without any are absent.
        answers: Object by (subject, relation name).
        second_hops: Names of the relations asked of a bridge, by the name of the relation that gives it.
    """

    def __init__(self) -> None:
        source = files("mega_pl.lab") / "facts"
        table = tomllib.loads((source / "relations.toml").read_text("utf-8"))
        self.relations = {row["name"]: _relation(row) for row in table["relation"]}
        self.second_hops = {first: tuple(seconds) for first, seconds in table["two_hop"].items()}
        self.alias_templates = tuple(table["text"]["aliases"])
        self.prefixes = PREFIXES
        self.heldout_prefixes = tuple(table["text"]["heldout_prefixes"])
        self.entities: dict[str, str] = {}
        self.aliases: dict[str, tuple[str, ...]] = {}
        self.answers: dict[tuple[str, str], str] = {}
        columns = {(r.subjects, _column(r.name)): r.name for r in self.relations.values()}
        for kind, name in TABLES.items():
            with (source / name).open(encoding="utf-8") as handle:
                for row in csv.DictReader(handle, delimiter="\t"):
                    self.entities[row["name"]] = kind
                    if row["aliases"]:
                        self.aliases[row["name"]] = tuple(row["aliases"].split(";"))
                    for column, value in row.items():
                        if value and (kind, column) in columns:
                            self.answers[row["name"], columns[kind, column]] = value

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        """Every fact, in the order of the tables."""
        return tuple(Fact(s, r, o) for (s, r), o in self.answers.items())

    @cached_property
    def two_hops(self) -> tuple[TwoHop, ...]:
        """Every two-hop question whose bridge and answer are in the tables."""
        return tuple(self._two_hops())

    @cached_property
    def objects(self) -> dict[str, tuple[str, ...]]:
        """The distinct objects of each relation, in the order of first appearance."""
        pools: dict[str, dict[str, None]] = {name: {} for name in self.relations}
        for fact in self.facts:
            pools[fact.relation][fact.object] = None
        return {name: tuple(pool) for name, pool in pools.items()}

    def _two_hops(self) -> Iterator[TwoHop]:
        for fact in self.facts:
            for second in self.second_hops.get(fact.relation, ()):
                answer = self.answers.get((fact.object, second))
                # "the spouse of the spouse" and "the country of the country" say nothing new
                if answer is not None and answer != fact.subject:
                    yield TwoHop(fact.subject, fact.relation, fact.object, second, answer)


def _relation(row: dict[str, Any]) -> Relation:
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}
    return Relation(**fields)


def _column(relation: str) -> str:
    return relation.removeprefix("native ") if relation.startswith("native ") else relation
