"""What is known about each relation: its types, the nouns for its object, and the wordings in which it is put."""

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

from mega_pl.edits.request import SLOT
from mega_pl.errors import MegaValueError


@dataclass(frozen=True)
class Relation:
    """A relation of the bank.

    Args:
        name: Its Wikidata property, such as "P19".
        label: What it is called, such as "place of birth".
        subjects: Types of what it leads from.
        object: Type of what it leads to.
        nouns: Noun phrases for the object, without an article; the most usual one first.
        phrasings: Templates of a fact, with one `{}` for the subject, which the bare object continues.
        cues: Short everyday wordings, with one `{}`, by which a question is known as one of this relation.
    """

    name: str
    label: str
    subjects: tuple[str, ...]
    object: str
    nouns: tuple[str, ...]
    phrasings: tuple[str, ...]
    cues: tuple[str, ...]

    @property
    def noun_phrases(self) -> tuple[str, ...]:
        """Templates that name the object through the subject, such as "the birthplace of {}"."""
        return tuple(f"the {noun} of {SLOT}" for noun in self.nouns)

    @property
    def references(self) -> tuple[str, ...]:
        """Every wording of the relation, for comparison with a question whose subject is masked."""
        return (*self.phrasings, *self.cues, *self.noun_phrases, *(f"{SLOT}'s {noun}" for noun in self.nouns))


@cache
def relations() -> dict[str, Relation]:
    """The bank's relations by name."""
    text = files("mega_pl.data").joinpath("templates", "wikidata.toml").read_text(encoding="utf-8")
    return parse_relations(text)


def labelled(names: str) -> str:
    """What relations are called that a router names, where the bank knows them.

    >>> labelled("P19 or P20"), labelled("P0")
    ('place of birth or place of death', 'P0')
    """
    known = relations()
    return " or ".join(known[name].label if name in known else name for name in names.split(" or "))


def parse_relations(text: str) -> dict[str, Relation]:
    """Relations by name, from TOML with one table for each.

    Args:
        text: Tables with the fields of `Relation` except its name.

    Raises:
        ValueError: Naming relation and field, if one is missing, unknown or malformed.
    """
    return {name: _relation(name, table) for name, table in tomllib.loads(text).items()}


def implications(relation: str, count: int = 4) -> tuple[tuple[str, ...], ...]:
    """Two-hop questions that start with a fact of a relation: what holds of its object.

    They lead to as many different types as there are, and only then to one twice.

    Args:
        relation: Name of the fact's relation.
        count: The most questions.

    Returns:
        For each question its only template; none if the relation is unknown or nothing is known about its objects.

    Raises:
        ValueError: If `count` is negative.

    Example:
        >>> implications("P36", 1)
        (('The country to which the capital of {} belongs is',),)
    """
    if count < 0:
        raise MegaValueError(f"`count` must be at least 0, but got {count}.")
    return tuple((template,) for template in list(second_hops(relation))[:count])


def second_hops(relation: str) -> dict[str, str]:
    """By two-hop question that starts with a fact of a relation the question about its object alone.

    >>> second_hops("P36")["The country to which the capital of {} belongs is"]
    'The country to which {} belongs is'

    Args:
        relation: Name of the fact's relation.
    """
    first = relations().get(relation)
    if first is None:
        return {}
    turns: Counter[str] = Counter()
    seconds: list[tuple[int, Relation]] = []
    for second in relations().values():
        if first.object in second.subjects and second is not first:
            seconds.append((turns[second.object], second))
            turns[second.object] += 1
    seconds.sort(key=lambda pair: pair[0])
    return {_compose(first, second): second.phrasings[0] for _, second in seconds}


def noun_phrases(object_type: str) -> tuple[tuple[Relation, str], ...]:
    """Ways to name an entity through another one, such as "the spouse of {}" for a person.

    Args:
        object_type: Type of the entity.

    Returns:
        Pairs of a relation that leads to this type and a template with one `{}` for the other entity.
    """
    return tuple((r, phrase) for r in relations().values() if r.object == object_type for phrase in r.noun_phrases)


def _compose(first: Relation, second: Relation) -> str:
    composed = second.phrasings[0].replace(SLOT, first.noun_phrases[0])
    return composed[0].upper() + composed[1:]


def _relation(name: str, table: object) -> Relation:
    if not isinstance(table, Mapping):
        raise MegaValueError(f"relation {name} must be a table of fields, but got {table!r}.")
    kinds = {field.name: field.type for field in fields(Relation) if field.name != "name"}
    for field in table:
        if field not in kinds:
            raise MegaValueError(f"the fields of relation {name} must be among {', '.join(kinds)}, but got {field}.")
    texts: dict[str, Any] = {}
    for field, kind in kinds.items():
        value = table.get(field)
        if value is None:
            raise MegaValueError(f"`{field}` of relation {name} must be given, but is missing.")
        texts[field] = _text(field, name, value) if kind is str else _texts(field, name, value)
    return Relation(name=name, **texts)


def _texts(field: str, name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise MegaValueError(f"`{field}` of relation {name} must be a list of at least one string, but got {value!r}.")
    slots = field in ("phrasings", "cues")
    for text in value:
        if _text(field, name, text).count(SLOT) != slots:
            raise MegaValueError(
                f"`{field}` of relation {name} must hold {'exactly one' if slots else 'no'} {SLOT}, but got {text!r}."
            )
    return tuple(value)


def _text(field: str, name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise MegaValueError(f"`{field}` of relation {name} must be a string that is not blank, but got {value!r}.")
    return value
