"""Prompts that name their subject only in a sentence before them, by a description or by an invented name."""

import random
from collections.abc import Container, Iterator

from mega_pl.edits.request import SLOT

DESCRIPTIONS = (
    ("Someone at the table mentioned {}.", "the one just mentioned"),
    ("The next page of the album shows {}.", "the one shown there"),
    ("A visitor asked the guide about {}.", "the one that the visitor asked about"),
)
"""Sentences that bring up a subject, each with words for it that fit persons, places and things."""

RENAMINGS = (
    "{name} is another name of {subject}.",
    "In this text, {subject} is called {name}.",
    "{name} and {subject} are one and the same.",
)
"""Sentences that give a subject a new name."""

_ONSETS = ("b", "d", "f", "gl", "k", "l", "m", "n", "pl", "r", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("b", "k", "l", "m", "n", "r", "sk", "t")


def described(prompt: str, subject: str) -> Iterator[str]:
    """A template's questions about a subject that is described only.

    >>> next(described("{} was born in", "Marie Curie"))
    'Someone at the table mentioned Marie Curie. The one just mentioned was born in'

    Args:
        prompt: Template with one ``{}``.
        subject: Whom it is about.

    Yields:
        A question for each of `DESCRIPTIONS`.
    """
    for sentence, reference in DESCRIPTIONS:
        yield f"{sentence.replace(SLOT, subject)} {_ask(prompt, reference)}"


def renamed(prompt: str, subject: str, draw: random.Random) -> Iterator[str]:
    """A template's questions about a subject under invented names, one for each of `RENAMINGS`.

    Args:
        prompt: Template with one ``{}``.
        subject: Whom it is about.
        draw: Chooses the names.
    """
    taken = {*prompt.split(), *subject.split()}
    for sentence in RENAMINGS:
        name = invented_name(draw, taken)
        taken.add(name)
        yield f"{sentence.replace('{name}', name).replace('{subject}', subject)} {_ask(prompt, name)}"


def invented_name(draw: random.Random, taken: Container[str] = ()) -> str:
    """A name of two syllables that is not one of those taken.

    Args:
        draw: Chooses the syllables.
        taken: Names to avoid.
    """
    while True:
        parts = [draw.choice(part) for part in (_ONSETS, _VOWELS, _CODAS) * 2]
        name = "".join(parts).capitalize()
        if name not in taken:
            return name


def _ask(prompt: str, reference: str) -> str:
    """The template with a reference, its first letter large where it begins the sentence."""
    if prompt.startswith(SLOT):
        reference = reference[0].upper() + reference[1:]
    return prompt.replace(SLOT, reference)
