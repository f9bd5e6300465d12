"""Whether a text stays in a language: its script, and the short words that every sentence of the language needs."""

from __future__ import annotations

import re
from typing import Literal, get_args

from mega_pl.errors import MegaValueError

Language = Literal["en", "de", "fr", "zh"]
"""ISO 639-1 codes of the languages that can be told apart."""

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"[^\W\d_]+")

_FREQUENT: dict[Language, str] = {
    "en": """the of and to is was that it for with he she they are his her as at by from this be have has not were
        which their but or who had""",
    "de": """der die das und ist war den von zu mit sich im auf für nicht ein eine einer dem zum wurde er sie es als
        auch bei aus nach wird sind ich""",
    "fr": """le la les et est un une du dans que qui il elle pour pas sur au par avec ce sont été en leur sa ses ou
        aux cette était je""",
}

FUNCTION_WORDS: dict[Language, frozenset[str]] = {
    language: frozenset(words.split()) for language, words in _FREQUENT.items()
}
"""Frequent words by language, none of them in two lists."""


def han_share(text: str) -> float:
    """Share of a text's letters that are Chinese characters; 0 without letters.

    >>> han_share("伦敦 is 2.")
    0.5
    """
    letters = _LETTER.findall(text)
    return sum(bool(_HAN.match(letter)) for letter in letters) / len(letters) if letters else 0.0


def language_of(text: str, *, han: float = 0.5) -> Language | None:
    """The language that a text seems to be in.

    It is Chinese where at least ``han`` of its letters are Chinese characters, and none of the languages where some
    are but fewer. Else it is the one whose `FUNCTION_WORDS` come most often in it, in any case. A heuristic for whole
    clauses: of a lone name, or where two languages are even, it says nothing.

    >>> language_of("Er wurde in der Stadt London geboren"), language_of("London")
    ('de', None)

    Args:
        text: the text.
        han: least share of Chinese characters of a Chinese text, in (0, 1].

    Raises:
        ValueError: if the share is out of range.
    """
    if not 0 < han <= 1:
        raise MegaValueError(f"`han` must lie in (0, 1], but got {han}.")
    share = han_share(text)
    if share >= han:
        return "zh"
    found = [word.lower() for word in _WORD.findall(text)]
    counts = {language: sum(word in words for word in found) for language, words in FUNCTION_WORDS.items()}
    best = max(counts, key=counts.__getitem__)
    even = sorted(counts.values())[-1] == sorted(counts.values())[-2]
    return None if share or even else best


def check_language(language: str) -> None:
    """Refuse a language that is not known.

    Raises:
        ValueError: naming those that are.
    """
    if language not in get_args(Language):
        raise MegaValueError(f"`language` must be one of {', '.join(get_args(Language))}, but got {language!r}.")
