"""Noun phrases that name a subject through another name, such as "the spouse of Pierre Curie": the model knows whom."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mega_pl.asking import continued
from mega_pl.backbone import Backbone
from mega_pl.edits.routing.matcher import RelationMatcher, stems
from mega_pl.edits.routing.question import MASK, Question, forms_of
from mega_pl.edits.routing.subjects import SubjectFinder, composed, fold

PHRASINGS = 2
"""Templates of a relation by which the bare model is asked for its object."""

TOKENS = 12
"""The most tokens in which it names one."""

_WORD = r"[^\W\d_a-z][\w'.-]*"
_NAME = rf"{_WORD}(?:(?: (?:of|de|da|di|du|von|van|der|den|la|le|del|the|al|bin|y|and))? {_WORD})*"


@dataclass(frozen=True, eq=False)
class NounPhrases:
    """Finds noun phrases in questions and asks the bare model whom they name.

    Args:
        matcher: Knows the nouns of each relation.
        phrasings: By relation index the templates by which its object is asked for.
        answers: By relation and name what the model answered so far; it is the same whatever edits there are.
    """

    matcher: RelationMatcher
    phrasings: tuple[tuple[str, ...], ...]
    answers: dict[tuple[int, str], list[str]] = field(default_factory=dict)

    def questions(
        self, backbone: Backbone, sentences: Sequence[str], relations: set[int], finder: SubjectFinder
    ) -> list[list[Question]]:
        """For each sentence its readings in which a noun phrase is replaced by the subject that it names.

        Args:
            backbone: The model, asked as it is without edits.
            sentences: What prompts ask last.
            relations: The relations that lead to what the bank's subjects are.
            finder: Finds the subjects.
        """
        found = [
            [
                (match, relation)
                for match in self._pattern.finditer(text)
                if _asks_more(text, match)
                for relation in self._named(match, relations)
            ]
            for text in sentences
        ]
        self._ask(backbone, {(relation, match["name"]) for of in found for match, relation in of})
        readings = []
        for text, of in zip(sentences, found, strict=True):
            named = [(match, self._subject(relation, match["name"], finder)) for match, relation in of]
            readings.append([_reading(text, match, finder.owners[subject]) for match, subject in named if subject])
        return readings

    def _ask(self, backbone: Backbone, phrases: set[tuple[int, str]]) -> None:
        """Ask to whom each relation leads from a name, and remember the answers."""
        new = sorted(phrases - self.answers.keys())
        prompts = [(phrase, t.replace("{}", phrase[1])) for phrase in new for t in self.phrasings[phrase[0]]]
        texts = continued(backbone, [prompt for _, prompt in prompts], TOKENS)
        for (phrase, _), text in zip(prompts, texts, strict=True):
            self.answers.setdefault(phrase, []).append(text)

    def _subject(self, relation: int, name: str, finder: SubjectFinder) -> str:
        """The subject of the bank, folded, that an answer begins with, or nothing."""
        return next(filter(None, (_first_subject(text, finder) for text in self.answers[relation, name])), "")

    def _named(self, match: re.Match[str], relations: set[int]) -> set[int]:
        return self.matcher.relations_of_noun(fold(match["noun"])) & relations

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        noun = f"(?P<noun>(?i:{self.matcher.noun_pattern}))"
        return re.compile(rf"\b(?:[Tt]he (?:\w+ or )?)?{noun} (?:of|(?:that|which|who) [a-z]+) (?P<name>{_NAME})")


def _reading(text: str, phrase: re.Match[str], edits: tuple[int, ...]) -> Question:
    """A sentence as a question about whom a noun phrase in it names."""
    forms = forms_of(f"{text[: phrase.start()]}{MASK}{text[phrase.end() :]}")
    return Question(forms, edits, phrase[0], "name")


def _asks_more(text: str, phrase: re.Match[str]) -> bool:
    """Whether a sentence asks something of whom a phrase names; "The name of the spouse of Y is" only asks who."""
    return bool(stems([text[: phrase.start()], text[phrase.end() :]]) - {"name"})


def _first_subject(answer: str, finder: SubjectFinder) -> str:
    """The subject with which an answer begins, folded, or nothing."""
    text = composed(answer)
    mentions = finder(text)
    return mentions[0].name if mentions and text[: mentions[0].start].strip().casefold() in ("", "the") else ""
