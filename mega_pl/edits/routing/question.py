"""What a prompt asks last: the sentence that asks, whom it is about, and how it looks with the subject masked.

A prompt is read as a person would read it who wants to answer it. Its last sentence asks. If that names a subject of
the bank, it is about that subject; if it only points back, by a pronoun ("And where was she born?") or by asking again
("Think again and answer:"), it is about the subject that was named last, unless another name came between; if it names
somebody else, it is about nobody in the bank, whatever was said before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mega_pl.edits.routing.subjects import FUNCTION_WORDS, Mention, SubjectFinder, composed, fold

MASK = "X"
"""Stands for the subject of a question."""

Reference = Literal["name", "pronoun", "again"]
"""How a question says whom it is about."""

_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+(?=[\"'(\[]*(?:[^\Wa-z]|\d))|(?<=[。！？])|\n")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:[^\W\d_]|Mr|Mrs|Ms|Dr|St|Prof|Jr|Sr|vs|No|Mt|Ft|Inc|Ltd|Co|Corp|Gen|Sen)\.$"
)
_LABEL = re.compile(r"[\"'(]*\w+\s*[:：]")
_REPLY = re.compile(r"(?:^|[?？]|(?:^|\n|[.!?…？！。]\s*)[\"'(]*\w+\s*[:：])[\"')\]]*$")
_STATEMENT = re.compile(r"[.!…。！][\"')\]]*$")
_REQUEST = re.compile(
    r"(?:please |now |so |and |then )*(?:tell|say|name|give|answer|complete|state|list|explain|describe|write)\b",
    re.IGNORECASE,
)
_PRONOUN = re.compile(r"\b(?:he|she|it|they|him|them|(?P<own>his|her|hers|its|their|theirs))\b", re.IGNORECASE)
_NAME_OF = re.compile(r"\b(?:the )?names? of (?:the )?(?=\w+ )", re.IGNORECASE)
_AGAIN = re.compile(r"\b(?:answer|response|reply|rethink|reconsider|again|sure|correct)\b", re.IGNORECASE)
_AGAIN_WORDS = FUNCTION_WORDS | frozenset(
    "again actual actually best complete consider correct correctly exactly fact final finally give honest "
    "honestly incorrect instead just last let make mistake must name one please precise provide reach real "
    "really reconsider repeat reply response rethink right say second sentence sorry state sure tell think time "
    "true truth try word wrong yes".split()
)
"""The words by which a question is asked again without being said again."""


@dataclass(frozen=True)
class Question:
    """A last question about one subject.

    Args:
        forms: The sentence with its subject masked, as a whole and without what only stands around it.
        edits: Indices of the edits of that subject.
        words: The words that named the subject.
        reference: How the question says whom it is about.
    """

    forms: tuple[str, ...]
    edits: tuple[int, ...]
    words: str
    reference: Reference


@dataclass(frozen=True)
class Sentence:
    """A sentence of a prompt with the names in it.

    Args:
        text: The sentence.
        mentions: Names of the bank's subjects.
    """

    text: str
    mentions: tuple[Mention, ...]

    @property
    def has_other_name(self) -> bool:
        """Whether something is named, or a number given, besides the subjects of the bank."""
        rest = self.text
        for mention in reversed(self.mentions):
            rest = f"{rest[: mention.start]} {rest[mention.end :]}"
        words = re.findall(r"[^\W_]+", rest)
        return any(w.isdigit() or (w[0].isupper() and fold(w) not in FUNCTION_WORDS) for w in words[1:])


def sentences_of(turns: Sequence[str], finder: SubjectFinder) -> list[Sentence]:
    """The sentences of a prompt; "A:" and the like belong to the question before them.

    Args:
        turns: The texts of a conversation, or one text.
        finder: Finds the subjects; a name with a full stop does not end a sentence.
    """
    sentences = [sentence for turn in turns for sentence in _split(composed(turn), finder)]
    if len(sentences) > 1 and _LABEL.fullmatch(sentences[-1].text):
        *rest, question, label = sentences
        return [*rest, Sentence(f"{question.text} {label.text}", question.mentions)]
    return sentences


def last_questions(turns: Sequence[str], finder: SubjectFinder) -> list[Question]:
    """The readings of a prompt's last question, one for each subject that it may be about; none if about nobody.

    Args:
        turns: The texts of a conversation, or one text.
        finder: Finds the subjects.
    """
    sentences = sentences_of(turns, finder)
    if not sentences:
        return []
    *before, last = sentences
    if len(turns) == 1 and _STATEMENT.search(last.text) and not _REQUEST.match(last.text):
        return []
    if last.mentions:
        return list(_named(last, finder, "name"))
    if last.has_other_name:
        return []
    antecedent = _antecedent(before)
    if antecedent is None:
        return []
    if asks_again(last.text):
        return list(_named(antecedent, finder, "again"))
    if antecedent.text.endswith("?") and _begins_answer(last.text):
        return list(_named(antecedent, finder, "again"))
    pronoun = _PRONOUN.search(last.text)
    return list(_pronominal(last, antecedent, finder, pronoun)) if pronoun else []


def awaits_reply(turns: Sequence[str]) -> bool:
    """Whether a prompt's last question is to be answered, as in a chat or a quiz, and not completed by its object.

    >>> awaits_reply(["Where was she born?", ""]), awaits_reply(["Where? A:"]), awaits_reply(["She was born in"])
    (True, True, False)

    Args:
        turns: The texts of a conversation, or one text.
    """
    return bool(_REPLY.search(turns[-1].strip())) if turns else False


def asks_again(text: str) -> bool:
    """Whether a sentence asks for an answer without saying to what.

    >>> asks_again("Think again and give me the right answer:"), asks_again("The answer of the king was")
    (True, False)
    """
    words = {fold(word) for word in re.findall(r"[^\W_]+", text)}
    return bool(_AGAIN.search(text)) and words <= _AGAIN_WORDS


def _begins_answer(text: str) -> bool:
    """Whether a sentence after a question says nothing of its own, as "It is" does."""
    return {fold(word) for word in re.findall(r"[^\W_]+", text)} <= FUNCTION_WORDS


def _split(text: str, finder: SubjectFinder) -> Iterator[Sentence]:
    mentions, start = finder(text), 0
    ends = [m for m in _END.finditer(text) if not any(n.start < m.start() < n.end for n in mentions)]
    stops = [m for m in ends if "\n" in m[0] or not _ABBREVIATION.search(text[: m.start()])]
    for left, right in [*((m.start(), m.end()) for m in stops), (len(text), len(text))]:
        if text[start:left].strip():
            inside = [m for m in mentions if start <= m.start and m.end <= left]
            yield Sentence(text[start:left], tuple(Mention(m.start - start, m.end - start, m.name) for m in inside))
        start = right


def _antecedent(sentences: Sequence[Sentence]) -> Sentence | None:
    """The sentence that named a subject last, if no other name came after it."""
    for sentence in reversed(sentences):
        if sentence.mentions:
            return sentence
        if sentence.has_other_name:
            return None
    return None


def _named(sentence: Sentence, finder: SubjectFinder, reference: Reference) -> Iterator[Question]:
    for name, mention in {m.name: m for m in reversed(sentence.mentions)}.items():
        text = sentence.text
        for place in reversed([m for m in sentence.mentions if m.name == name]):
            text = f"{text[: place.start]}{MASK}{text[place.end :]}"
        words = sentence.text[mention.start : mention.end]
        yield Question(forms_of(text), finder.owners[name], words, reference)


def _pronominal(
    last: Sentence, antecedent: Sentence, finder: SubjectFinder, pronoun: re.Match[str]
) -> Iterator[Question]:
    masked = f"{MASK}'s" if pronoun["own"] else MASK
    text = f"{last.text[: pronoun.start()]}{masked}{last.text[pronoun.end() :]}"
    for question in _named(antecedent, finder, "pronoun"):
        yield Question(forms_of(text), question.edits, question.words, "pronoun")


def forms_of(masked: str) -> tuple[str, ...]:
    """A masked sentence, and what is left of it without a beginning that is not part of the question.

    >>> forms_of("Category:Villages in Poland The owner of X is")
    ('Category:Villages in Poland The owner of X is', 'The owner of X is')

    Args:
        masked: A sentence that holds `MASK`.
    """
    place = re.search(rf"\b{MASK}\b(?!.*\b{MASK}\b)", masked)
    if place is None:
        return (plain(masked),)
    starts = [m.start() for m in re.finditer(r"\b[^\W\d_]+", masked[: place.start()]) if _starts_question(m[0])]
    after = masked[place.start() :]
    tight = masked[starts[-1] :] if starts else after if len(after.split()) > 2 or "," in after else masked
    quoted = [m[1] for m in re.finditer(r"['\"“]([^'\"“”]*)['\"”](?!\w)", masked) if MASK in m[1]]
    return tuple(dict.fromkeys(plain(form.strip(" '\"“”")) for form in (masked, tight, *quoted[-1:])))


def plain(masked: str) -> str:
    """A masked question without the words that only ask for a name: the name of a father is the father.

    >>> plain("The name of the father of X is")
    'the father of X is'
    """
    return _NAME_OF.sub("the ", masked)


def _starts_question(word: str) -> bool:
    return word[0].isupper() and fold(word) in FUNCTION_WORDS and word != MASK
