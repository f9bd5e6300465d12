"""Context: what stands before a question must neither set an edit off nor hold it back.

One half states the edited fact, true or new, and then asks something else: the answer must stay what it was. The other
half puts something else first and then asks the edit's own question, also with a pronoun for a subject that was named
before: the new object must come.

Every test counts once. "acc" is the share of the edit's own questions whose next token begins the new object
(`first_token_hit`), overall and by what stands before. "changed" is the share of other questions whose next token is no
longer the bare model's, overall, by what is asked, by how the fact stands before, and by its version; "fired" is the
share of these on which any edit fired, where edits are routed. Both are better low, and are 0 for the bare model. They
keep the tests where the bare model says the same with and without the context.

Of those, a test is left out where an edit of another subject answers a question that names that subject: its answer
ought to change. An edit of the test's own subject by another relation is no excuse. Where edits are routed it is the
one that fired, elsewhere one whose new object comes out instead of the bare model's answer. "stale" is the share of
tests left out by this.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from mega_pl.asking import BARE, Edited, next_tokens
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.edits.request import SLOT
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import find_name, first_token_hit
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.cases import new_names
from mega_pl.protocols.measures import Deferred, Mean, Measure, kept
from mega_pl.protocols.rows import EvalRow, Outcomes, outcomes

ContextQuestion = Literal["edit", "other_subject", "same_subject"]
"""What is asked at last: the edit's own question, or another one about another subject or about the same."""

ContextKind = Literal["direct", "neutral", "chat", "fact", "old_fact", "pronoun"]
"""What stands before: see `ContextTest`."""

ContextVersion = Literal["", "true", "new"]
"""The object with which the context states the edited fact; empty where it does not."""

NEUTRAL = (
    "The ferry leaves at a quarter past six.",
    "Someone had painted the fence green.",
    "Two of the chairs are still wet.",
    "The soup needs a little more salt.",
    "All the lamps in the hall were lit.",
    "The parcel was left with the porter.",
    "A tram went by without stopping.",
    "The ladder is too short for this wall.",
    "Nobody remembered where the keys were.",
    "The wind had turned during the night.",
)
"""Sentences that say nothing about any fact, none of them among those that edits are fitted with."""

EXCHANGES = (
    ("How many days does a week have?", "Seven."),
    ("What is three times four?", "Twelve."),
    ("Please spell the word for a tame animal that barks.", "D, o, g."),
    ("Which is heavier, a feather or a brick?", "A brick."),
    ("Can you wish me a good morning?", "Good morning to you."),
)
"""Turns of a chat, of a user and of an assistant, that are about no subject of an edit."""

MENTIONS = (
    "I was reading about {} yesterday.",
    "Let us talk about {}.",
    "There is a whole shelf of books about {}.",
    "You asked me about {} last week.",
    "There was a question about {} in the quiz.",
)
"""Sentences that name a subject of any kind and say nothing about it."""

QUESTIONS = 2
"""The most other questions of each kind that a case is asked."""

MENTIONED = 3
"""After how many of `MENTIONS` a case is asked with a pronoun."""

CHANGED = ("other_subject", "same_subject", "direct", "neutral", "chat", "true", "new")
"""The groups of other questions that have a column: by what is asked, how the fact stands before, and its version."""

PERSONAL = frozenset(
    f"P{number}"
    for number in (
        *(7, 9, 19, 20, 21, 22, 25, 26, 27, 39, 40, 54, 69, 101, 102, 103, 106, 108, 119, 136, 140, 166, 172, 184, 185),
        *(264, 413, 451, 463, 509, 512, 551, 569, 570, 641, 734, 735, 937, 1066, 1303, 1412, 3373),
    )
)
"""Wikidata properties whose subject is a person, or most often is."""

PREPOSITIONS = (
    *("about", "after", "at", "before", "behind", "by", "for", "from", "in", "into", "near", "of", "on", "than", "to"),
    *("under", "with"),
)
"""Words after which a pronoun stands in the objective case."""


@dataclass(frozen=True, kw_only=True)
class ContextTest:
    """One question after something else.

    Args:
        edit_id: The edit that it belongs to.
        subject: The edit's subject.
        about: What is asked.
        context: What stands before. Before another question it is the edited fact: "direct", "neutral" with one or two
            neutral sentences between, or in a "chat" as the turn before. Before the edit's own question it is "neutral"
            sentences, another "fact", the "old_fact", a "chat" about something else, or a mention of the subject, which
            is a "pronoun" in the question.
        version: The object with which the context states the edited fact.
        question: What is asked, alone.
        prompt: The context and the question; in a chat the question alone.
        exchange: What was said before in a chat, by the user and by the assistant; else empty.
        answer: What answers the question; after an edit the new object.
        new: The new object, then its other names.
    """

    edit_id: str
    subject: str
    about: ContextQuestion
    context: ContextKind
    version: ContextVersion = ""
    question: str
    prompt: str
    exchange: tuple[str, ...] = ()
    answer: str
    new: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ContextAnswer:
    """What a model says right after a prompt.

    Args:
        prediction: Decoded argmax token.
        alone: What the bare model says to the question alone; empty for a model with edits.
        fired: The edit that the prompt got; "" if none did or edits are not routed.
        routed: Whether edits are routed, so that `fired` tells something.
        has_template: Whether the question could be put; not in a chat where the tokenizer has no chat template.
    """

    prediction: str = ""
    alone: str = ""
    fired: str = ""
    routed: bool = False
    has_template: bool = True


ContextRow = EvalRow[ContextTest, ContextAnswer]


def context_tests(case: EditCase, *, seed: int = 0) -> tuple[ContextTest, ...]:
    """The tests of a case: other questions after the edited fact, then its own question after something else.

    Questions about other subjects are neighbourhood prompts, those about the same subject probes of relation
    specificity.

    Args:
        case: The case.
        seed: Of the choice of questions, sentences, exchanges and pronouns, together with the edit's id.
    """
    request = case.request
    draw = random.Random(f"{seed} {request.edit_id}")
    make = partial(ContextTest, edit_id=request.edit_id, subject=request.subject, new=new_names(case))
    return (*_other_questions(case, draw, make), *_own_questions(case, draw, make))


def _other_questions(case: EditCase, draw: random.Random, make: Callable[..., ContextTest]) -> Iterator[ContextTest]:
    request = case.request
    questions: dict[ContextQuestion, list[tuple[str, str]]] = {
        "other_subject": [(text, request.target_true) for text in dict.fromkeys(case.neighborhood_prompts)],
        "same_subject": [(probe.prompt, probe.answers[0]) for probe in case.relation_specificity],
    }
    for about, pairs in questions.items():
        for question, answer in draw.sample(pairs, min(QUESTIONS, len(pairs))):
            for version, target in {"true": request.target_true, "new": request.target_new}.items():
                ask = partial(make, about=about, version=version, question=question, answer=answer)
                fact = f"{request.filled} {target}."
                between = draw.sample(NEUTRAL, draw.randint(1, 2))
                yield ask(context="direct", prompt=f"{fact} {question}")
                yield ask(context="neutral", prompt=" ".join((fact, *between, question)))
                yield ask(context="chat", prompt=question, exchange=(request.filled, f"{target}."))


def _own_questions(case: EditCase, draw: random.Random, make: Callable[..., ContextTest]) -> Iterator[ContextTest]:
    request = case.request
    ask = partial(make, about="edit", question=request.filled, answer=request.target_new)
    for count in (1, 2, 3):
        yield ask(context="neutral", prompt=" ".join((*draw.sample(NEUTRAL, count), request.filled)))
    for probe in draw.sample(case.relation_specificity, min(1, len(case.relation_specificity))):
        yield ask(context="fact", prompt=f"{probe.prompt} {probe.answers[0]}. {request.filled}")
    for text in draw.sample(case.neighborhood_prompts, min(1, len(case.neighborhood_prompts))):
        yield ask(context="fact", prompt=f"{text} {request.target_true}. {request.filled}")
    old = f"{request.filled} {request.target_true}."
    yield ask(context="old_fact", version="true", prompt=f"{old} {request.filled}")
    yield ask(context="chat", prompt=request.filled, exchange=draw.choice(EXCHANGES))
    question = with_pronoun(request.prompt, request.relation in PERSONAL, draw)
    for sentence in draw.sample(MENTIONS, MENTIONED):
        prompt = f"{sentence.replace(SLOT, request.subject)} {question}"
        yield ask(context="pronoun", question=question, prompt=prompt)


def with_pronoun(template: str, personal: bool, draw: random.Random) -> str:
    """A template's question about whatever a pronoun stands for.

    >>> with_pronoun("{}'s capital is", False, random.Random(0))
    'Its capital is'

    Whether a person is "he" or "she" is drawn: nobody knows, and the wrong one still has to lead to the subject.

    Args:
        template: Template with one ``{}``.
        personal: Whether the subject is a person.
        draw: Chooses between "he" and "she".
    """
    subjective, objective, possessive = draw.choice((("he", "him", "his"), ("she", "her", "her")))
    if not personal:
        subjective, objective, possessive = "it", "it", "its"
    start, end = template.split(SLOT)
    owner = next((mark for mark in ("'s ", "’s ", "' ", "’ ") if end.startswith(mark)), "")
    before = start.split()[-1:]
    pronoun = objective if before and before[0].lower() in PREPOSITIONS else subjective
    if owner:
        pronoun, end = possessive, end[len(owner) - 1 :]
    if not before or before[0][-1] in ".?!:":
        pronoun = pronoun.capitalize()
    return f"{start}{pronoun}{end}"


def chat_text(backbone: Backbone, exchange: Sequence[str], question: str) -> str:
    """A chat in the model's own template: an exchange, then the question, which the assistant repeats to go on from.

    Args:
        backbone: Its tokenizer has a chat template.
        exchange: What the user and the assistant said before.
        question: Where the text ends.

    Raises:
        ValueError: If the template changes the question.
    """
    tokenizer = backbone.tokenizer
    turns = zip(("user", "assistant") * 2, (*exchange, question, question), strict=True)
    chat = [{"role": role, "content": content} for role, content in turns]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True))
    if not text.endswith(question):
        raise MegaValueError(
            f"the chat template must end the last turn with {question!r}, but got {text[-40:]!r}; "
            "load the tokenizer without its template."
        )
    return text.removeprefix(tokenizer.bos_token) if backbone.prepends_bos else text  # it is put there once more


def ask_context(backbone: Backbone, edited: Edited, tests: Sequence[ContextTest]) -> list[ContextAnswer]:
    """Ask tests of a model: the token after each prompt. Where there is no chat template, those in a chat stay unasked.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.

    Raises:
        ValueError: If an answer merges with its prompt, a prompt is too long, or the chat template changes a question.
    """
    possible = [test for test in tests if not test.exchange or backbone.tokenizer.chat_template]
    texts = [chat_text(backbone, test.exchange, test.question) if test.exchange else test.prompt for test in possible]
    found = next_tokens(backbone, edited, texts, [(test.answer,) for test in possible])
    routed = edited.fired is not None
    answers = {
        test: ContextAnswer(prediction=answer.prediction, fired=answer.fired, routed=routed)
        for test, answer in zip(possible, found, strict=True)
    }
    return [answers.get(test, ContextAnswer(has_template=False)) for test in tests]


def ask_context_bare(backbone: Backbone, tests: Sequence[ContextTest]) -> list[ContextAnswer]:
    """Ask tests of the bare model as `ask_context` does, and each question alone too."""
    questions = list(dict.fromkeys((test.question, test.answer) for test in tests))
    found = next_tokens(backbone, BARE, [text for text, _ in questions], [(answer,) for _, answer in questions])
    alone = {question: answer.prediction for question, answer in zip(questions, found, strict=True)}
    return [
        replace(answer, alone=alone[test.question, test.answer])
        for test, answer in zip(tests, ask_context(backbone, BARE, tests), strict=True)
    ]


def _own(context: ContextKind | None, rows: Sequence[ContextRow]) -> Outcomes:
    """Whether the edit's own questions are answered with the new object, after one kind of context or any."""
    own = (row for row in rows if row.bare.has_template and row.test.about == "edit")
    return outcomes((row for row in own if context in (None, row.test.context)), _hits)


def _hits(test: ContextTest, answer: ContextAnswer) -> bool:
    return first_token_hit(answer.prediction, test.new)


def _others(kind: str | None, rows: Sequence[ContextRow]) -> list[ContextRow]:
    """The other questions of a group, or all, that the bare model answers as it does without the context."""
    others = [row for row in rows if row.bare.has_template and row.test.about != "edit"]
    unmoved = [row for row in others if row.bare.prediction == row.bare.alone]
    return [row for row in unmoved if kind in (None, row.test.about, row.test.context, row.test.version)]


def _changed(kind: str | None, rows: Sequence[ContextRow]) -> Outcomes:
    others = _others(kind, rows)
    return _noted(others, [row.edited.prediction != row.bare.prediction for row in others])


def _fired(rows: Sequence[ContextRow]) -> Outcomes:
    routed = [row for row in _others(None, rows) if row.edited.routed]
    return _noted(routed, [bool(row.edited.fired) for row in routed])


def _noted(rows: Sequence[ContextRow], edited: Sequence[bool]) -> Outcomes:
    """Outcomes of what the bare model never does, with what tells whether another edit is to be blamed."""
    notes = [
        {
            "edit_id": row.test.edit_id,
            "subject": row.test.subject,
            "question": row.test.question,
            "fired": row.edited.fired if row.edited.routed else None,
            "prediction": row.edited.prediction if row.edited.prediction != row.bare.prediction else "",
        }
        for row in rows
    ]
    return Outcomes(torch.tensor(edited), torch.zeros(len(rows)), [row.test.edit_id for row in rows], notes)


def _edits(rows: Sequence[ContextRow]) -> list[tuple[str, str, tuple[str, ...]]]:
    """The edits of rows: id, subject and names of the new object."""
    return list(dict.fromkeys((row.test.edit_id, row.test.subject, row.test.new) for row in rows))


def _stale(found: Outcomes, edits: list[Any]) -> list[bool]:
    """Where an edit of another subject, of these, answers a question that names that subject."""
    by_id = {edit_id: (subject, new) for edit_id, subject, new in edits}
    begun: dict[str, list[str]] = {}  # by prediction the edits whose new object it begins

    def answering(note: Mapping[str, Any]) -> list[str]:
        if note["fired"] is not None:
            return [note["fired"]] if note["fired"] in by_id else []
        prediction = note["prediction"]
        if prediction not in begun:
            begun[prediction] = [edit_id for edit_id, (_, new) in by_id.items() if first_token_hit(prediction, new)]
        return begun[prediction]

    def is_stale(note: Mapping[str, Any]) -> bool:
        subjects = {by_id[edit_id][0] for edit_id in answering(note) if edit_id != note["edit_id"]}
        return any(find_name(note["question"], (subject,)) is not None for subject in subjects - {note["subject"]})

    return [is_stale(note) for note in found.notes]


def _without_stale(found: Outcomes, edits: list[Any]) -> Outcomes:
    return kept(found, [not stale for stale in _stale(found, edits)])


def _only_stale(found: Outcomes, edits: list[Any]) -> Outcomes:
    return replace(found, edited=torch.tensor(_stale(found, edits)).double())


def _measures() -> dict[str, Measure]:
    contexts: tuple[ContextKind, ...] = ("neutral", "fact", "old_fact", "chat", "pronoun")
    harm = partial(Mean, deferred=Deferred(_edits, _without_stale), higher_is_better=False)
    return {
        "acc": Mean(partial(_own, None)),
        **{f"acc_{context}": Mean(partial(_own, context)) for context in contexts},
        "changed": harm(partial(_changed, None)),
        **{f"changed_{kind}": harm(partial(_changed, kind)) for kind in CHANGED},
        "fired": harm(_fired),
        "stale": Mean(partial(_changed, None), deferred=Deferred(_edits, _only_stale), higher_is_better=None),
    }


PROTOCOL: Protocol[ContextTest, ContextAnswer, ContextRow] = Protocol(
    name="context",
    tests=context_tests,
    ask_bare=ask_context_bare,
    ask=ask_context,
    answer=ContextAnswer,
    measures=_measures,
    headline=("acc", "acc_pronoun", "changed", "changed_same_subject", "fired"),
)
