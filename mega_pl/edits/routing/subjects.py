"""Finding the subjects of a bank in a text: many names at once, by words, the longest name first."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import ahocorasick

from mega_pl.functional.text import PLAIN_MARKS

_SPACELESS = (("\u0e00", "\u0eff"), ("\u3040", "\u9fff"), ("\uac00", "\ud7af"), ("\U00020000", "\U0003ffff"))
"""Thai and Lao, Japanese and Chinese, Korean, whose particles follow without a space, and rare Chinese characters."""

_BEFORE, _AFTER = re.compile(r"([^\W\d_]+) $"), re.compile(r" ([^\W\d_]+)")
"""The words that only a space parts from a name, whatever follows them."""

FUNCTION_WORDS = frozenset(
    "a about after all also an and answer any are as at be because been before but by can could did do does "
    "for from had has have he her here his how i if in into is it its may me might must my no not now of off "
    "on once one only or our out over own q question shall she should so some such than that the their them "
    "then there these they this those to too under until up us was we were what when where which while who "
    "whom whose why will with would you your".split()
)
"""Words that name something only where they are a title, and that may stand beside a name with a capital letter."""


@dataclass(frozen=True)
class Mention:
    """A name in a text.

    Args:
        start: Where it begins in the text.
        end: Where it ends.
        name: Its folded form.
    """

    start: int
    end: int
    name: str


@lru_cache(maxsize=1 << 16)
def _folded(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character.translate(PLAIN_MARKS))
    return "".join(c for c in plain if not unicodedata.combining(c)).casefold()


def composed(text: str) -> str:
    """The text in NFKC with plain apostrophes and single spaces, in which places are counted; lines stay lines."""
    lines = unicodedata.normalize("NFKC", text.translate(PLAIN_MARKS)).splitlines()
    return "\n".join(line for line in (" ".join(line.split()) for line in lines) if line)


def fold(text: str) -> str:
    """What remains of a text when case, accents, compatibility forms and kinds of apostrophes and dashes are ignored.

    >>> fold("L’Île-de-France") == fold("l'ile‐de‐FRANCE")
    True
    """
    return "".join(map(_folded, composed(text)))


class SubjectFinder:
    """Finds names in texts by Aho and Corasick's automaton (1975): one pass however many names there are.

    Names match whole words, whatever their case and accents. Of overlapping names the longest counts. A name of one
    word that only begins or ends a longer name with capital letters is none ("Abraham" in "Abraham Lincoln"), and one
    that is a function word ("From", the title) must stand inside a sentence as it is written.

    Args:
        names: By name the places of those whom it names, for example edits of a bank.
    """

    def __init__(self, names: Mapping[str, Iterable[int]]) -> None:
        self.owners: dict[str, tuple[int, ...]] = {}
        self._spelling: dict[str, set[str]] = {}
        for name, places in names.items():
            key = fold(name)
            if key:
                self.owners[key] = tuple(dict.fromkeys((*self.owners.get(key, ()), *places)))
                self._spelling.setdefault(key, set()).add(composed(name))
        self._automaton = ahocorasick.Automaton()
        for key in self.owners:
            self._automaton.add_word(key, key)
        if self.owners:
            self._automaton.make_automaton()

    def __call__(self, text: str) -> list[Mention]:
        """The names in a text that `composed` gave, from left to right."""
        if not self.owners:
            return []
        parts = [_folded(character) for character in text]
        places = [i for i, part in enumerate(parts) for _ in part]
        folded = "".join(parts)
        found = [Mention(places[end - len(key) + 1], places[end] + 1, key) for end, key in self._automaton.iter(folded)]
        chosen: list[Mention] = []
        for mention in sorted(found, key=lambda m: (m.start - m.end, m.start)):
            free = all(mention.end <= other.start or mention.start >= other.end for other in chosen)
            if free and _is_whole(text, mention) and self._is_name(text, mention):
                chosen.append(mention)
        return sorted(chosen, key=lambda m: m.start)

    def _is_name(self, text: str, mention: Mention) -> bool:
        if " " in mention.name:
            return True
        if mention.name in FUNCTION_WORDS:
            return text[mention.start : mention.end] in self._spelling[mention.name] and not _opens(text, mention.start)
        neighbours = _BEFORE.search(text[: mention.start]), _AFTER.match(text[mention.end :])
        return not any(word and _is_part_of_name(word[1]) for word in neighbours)


def names_of(subjects: Sequence[str], aliases: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """By name the subjects that it names; a subject's own name wins over an alias of another.

    Args:
        subjects: E names.
        aliases: For each its other names.
    """
    own: dict[str, list[int]] = {}
    for i, subject in enumerate(subjects):
        own.setdefault(subject, []).append(i)
    keys = {fold(subject) for subject in own}
    for i, others in enumerate(aliases):
        for alias in others:
            if fold(alias) not in keys:
                own.setdefault(alias, []).append(i)
    return own


def _is_whole(text: str, mention: Mention) -> bool:
    """Whether no word goes on at either end; scripts that set no spaces have no ends of words."""
    inner = (at for at in (mention.start, mention.end) if 0 < at < len(text))
    return not any(_is_letter(text[at - 1]) and _is_letter(text[at]) for at in inner)


def _is_letter(character: str) -> bool:
    """Whether a character belongs to a word that spaces delimit."""
    spaceless = any(first <= character <= last for first, last in _SPACELESS)
    return character.isalnum() and not spaceless


def _is_part_of_name(word: str) -> bool:
    return len(word) > 1 and word[0].isupper() and fold(word) not in FUNCTION_WORDS


def _opens(text: str, start: int) -> bool:
    """Whether a sentence or a quotation begins here."""
    before = text[:start].rstrip()
    return not before or before[-1] in ".!?:\"'([\n"
