"""Mediated context: the subject stands in a sentence before the question, which refers to it indirectly.

An edit that is tied to the subject's name in the question does not reach such a question; one that changes what the
model takes for a fact does. Because the name is in the prompt all the same, an edit may also answer where it must not:
the controls ask about other subjects.

"description" and "renaming" are shares of next tokens that begin the new object (`first_token_hit`), with "_followed"
among those tests where the bare model begins the true one, which shows that it follows the reference. The other columns
are shares of next tokens that are the bare model's: there the bare model has 1. Every test counts once.
"""

import random
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from mega_pl.asking import NextToken
from mega_pl.data.records import to_templates
from mega_pl.edits import EditCase
from mega_pl.edits.request import SLOT
from mega_pl.functional.text import between, canonical, first_token_hit
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.cases import ask_objects, new_names
from mega_pl.protocols.measures import Mean, Measure
from mega_pl.protocols.rows import EvalRow, Outcomes, outcomes

MediatedKind = Literal["description", "renaming", "description_other", "renaming_other", "aside"]
"""How the subject comes into a question: see `MediatedTest`."""

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

OTHERS = 3
"""The most other subjects that a case is asked about."""


@dataclass(frozen=True, kw_only=True)
class MediatedTest:
    """One question after a sentence that names a subject.

    Args:
        edit_id: The edit that it belongs to.
        kind: "description" where the edited subject is described in the question, "renaming" where it has an invented
            name there; "description_other" and "renaming_other" are the same about another subject of the relation;
            in an "aside" the sentence names the edited subject and the question another one.
        prompt: What is asked.
        new: The new object, then its other names.
        true: The true object.
    """

    edit_id: str
    kind: MediatedKind
    prompt: str
    new: tuple[str, ...]
    true: str


def mediated_tests(case: EditCase, *, seed: int = 0) -> tuple[MediatedTest, ...]:
    """The tests of a case, kind by kind.

    Other subjects are those of the neighbourhood prompts that read like the edit prompt or one of its paraphrases.

    Args:
        case: The case.
        seed: Of the invented names, together with the edit's id.
    """
    request, names = case.request, new_names(case)
    return tuple(
        MediatedTest(edit_id=request.edit_id, kind=kind, prompt=prompt, new=names, true=request.target_true)
        for kind, prompt in _prompts(case, random.Random(f"{seed} {request.edit_id}"))
    )


def _prompts(case: EditCase, draw: random.Random) -> Iterator[tuple[MediatedKind, str]]:
    prompt, subject = case.request.prompt, case.request.subject
    others = other_subjects(case)[:OTHERS]
    yield from (("description", text) for text in described(prompt, subject))
    yield from (("renaming", text) for text in renamed(prompt, subject, draw))
    yield from (("description_other", text) for other in others for text in described(prompt, other))
    yield from (("renaming_other", text) for other in others for text in renamed(prompt, other, draw))
    sentence = DESCRIPTIONS[0][0].replace(SLOT, subject)
    yield from (("aside", f"{sentence} {text}") for text in case.neighborhood_prompts[:OTHERS])


def other_subjects(case: EditCase) -> tuple[str, ...]:
    """The subjects of those neighbourhood prompts that fill a template of the edited fact."""
    request = case.request
    templates = (request.prompt, *request.phrasings, *to_templates(case.paraphrase_prompts, request.subject))
    found = (_subject(text, template) for text in case.neighborhood_prompts for template in templates)
    return tuple(dict.fromkeys(s for s in found if s and canonical(s) != canonical(request.subject)))


def _subject(text: str, template: str) -> str:
    """What fills a template to give a text; empty where nothing does."""
    start, end = template.split(SLOT)
    return (between(text, start, end) or "").strip()


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
        yield f"{sentence.replace(SLOT, subject)} {_refer(prompt, reference)}"


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
        yield f"{sentence.replace('{name}', name).replace('{subject}', subject)} {_refer(prompt, name)}"


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


def _refer(prompt: str, reference: str) -> str:
    """The template with a reference, its first letter large where it begins the sentence."""
    if prompt.startswith(SLOT):
        reference = reference[0].upper() + reference[1:]
    return prompt.replace(SLOT, reference)


MediatedRow = EvalRow[MediatedTest, NextToken]


def _hits(test: MediatedTest, answer: NextToken) -> bool:
    return first_token_hit(answer.prediction, test.new)


def _all(row: MediatedRow) -> bool:
    return True


def _followed(row: MediatedRow) -> bool:
    """Whether the bare model begins the true object."""
    return first_token_hit(row.bare.prediction, (row.test.true,))


def _acting(kind: MediatedKind, counts: Callable[[MediatedRow], bool], rows: Sequence[MediatedRow]) -> Outcomes:
    return outcomes((row for row in rows if row.test.kind == kind and counts(row)), _hits)


def _unchanged(kind: MediatedKind, rows: Sequence[MediatedRow]) -> Outcomes:
    own = [row for row in rows if row.test.kind == kind]
    same = [row.edited.prediction == row.bare.prediction for row in own]
    return Outcomes(torch.tensor(same), torch.ones(len(own)), [row.test.edit_id for row in own])


def _measures() -> dict[str, Measure]:
    acting: tuple[MediatedKind, ...] = ("description", "renaming")
    controls: tuple[MediatedKind, ...] = ("description_other", "renaming_other", "aside")
    found: dict[str, Measure] = {}
    for kind in acting:
        found[kind] = Mean(partial(_acting, kind, _all))
        found[f"{kind}_followed"] = Mean(partial(_acting, kind, _followed))
    return found | {kind: Mean(partial(_unchanged, kind)) for kind in controls}


PROTOCOL: Protocol[MediatedTest, NextToken, MediatedRow] = Protocol(
    name="mediated", tests=mediated_tests, ask=ask_objects, answer=NextToken, measures=_measures
)
