"""Context: what stands before a question must neither set an edit off nor hold it back.

One half states the edited fact, true or new, and then asks something else: the answer must stay what it was. The other
half puts something else first and then asks the edit's own question, also with a pronoun for a subject that was named
before: the new object must come.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mega_pl.asking import BARE, Edited, next_tokens
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.edits.request import SLOT
from mega_pl.errors import MegaValueError
from mega_pl.evaluation.generation import new_names
from mega_pl.evaluation.trials import Trial, measured
from mega_pl.functional.text import find_name
from mega_pl.metrics.functional import first_token_hit, first_token_hits
from mega_pl.metrics.mediated import same_tokens
from mega_pl.metrics.scores import Score, rate_score

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


ContextTrial = Trial[ContextTest, ContextAnswer]


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
    kept = [test for test in tests if not test.exchange or backbone.tokenizer.chat_template]
    texts = [chat_text(backbone, test.exchange, test.question) if test.exchange else test.prompt for test in kept]
    said = next_tokens(backbone, edited, texts, [(test.answer,) for test in kept])
    routed = edited.fired is not None
    answers = {
        test: ContextAnswer(prediction=answer.prediction, fired=answer.fired, routed=routed)
        for test, answer in zip(kept, said, strict=True)
    }
    return [answers.get(test, ContextAnswer(has_template=False)) for test in tests]


def ask_context_bare(backbone: Backbone, tests: Sequence[ContextTest]) -> list[ContextAnswer]:
    """Ask tests of the bare model as `ask_context` does, and each question alone too."""
    questions = list(dict.fromkeys((test.question, test.answer) for test in tests))
    said = next_tokens(backbone, BARE, [text for text, _ in questions], [(answer,) for _, answer in questions])
    alone = {question: answer.prediction for question, answer in zip(questions, said, strict=True)}
    return [
        replace(answer, alone=alone[test.question, test.answer])
        for test, answer in zip(tests, ask_context(backbone, BARE, tests), strict=True)
    ]


def score_context(trials: Sequence[ContextTrial], *, seed: int = 0) -> dict[str, Score]:
    """Score trials; every test counts once, and n counts tests.

    "acc" is the share of the edit's own questions whose next token begins the new object (`first_token_hit`), overall
    and by what stands before. "changed" is the share of other questions whose next token is no longer the bare model's,
    overall, by what is asked, by how the fact stands before, and by its version; "fired" is the share of these on which
    any edit fired, where edits are routed. Both are better low, and are 0 for the bare model. They keep the tests where
    the bare model says the same with and without the context.

    Of those, a test is left out where an edit of another subject answers a question that names that subject: its
    answer ought to change. An edit of the test's own subject by another relation is no excuse. Where edits are routed
    it is the one that fired, elsewhere one whose new object comes out instead of the bare model's answer. "stale" is
    the share of tests left out by this.

    Args:
        trials: One a test, in any order; all of the edits in force.
        seed: Of the bootstrap.
    """
    put = [trial for trial in trials if trial.bare.has_template]
    own = [trial for trial in put if trial.test.about == "edit"]
    others = [t for t in put if t.test.about != "edit" and t.bare.prediction == t.bare.alone]
    edits = {trial.test.edit_id: trial.test for trial in trials}
    stale = [_is_stale(trial, edits) for trial in others]
    kept = [trial for trial, left_out in zip(others, stale, strict=True) if not left_out]
    routed = [trial for trial in kept if trial.edited.routed]

    scores = {"acc": rate_score(*measured(own, _hits), seed=seed)}
    for kind in ("neutral", "fact", "old_fact", "chat", "pronoun"):
        scores[f"acc_{kind}"] = rate_score(*measured([t for t in own if t.test.context == kind], _hits), seed=seed)
    scores["changed"] = _share(kept, _changes(kept), seed)
    for kind in CHANGED:
        of_kind = [t for t in kept if kind in (t.test.about, t.test.context, t.test.version)]
        scores[f"changed_{kind}"] = _share(of_kind, _changes(of_kind), seed)
    scores["fired"] = _share(routed, torch.tensor([bool(t.edited.fired) for t in routed]), seed)
    return scores | {"stale": _share(others, torch.tensor(stale), seed)}


def _is_stale(trial: ContextTrial, edits: Mapping[str, ContextTest]) -> bool:
    """Whether an edit of another subject, of these by their ids, answers a question that names that subject."""
    test, edited = trial.test, trial.edited
    if edited.routed:
        found = [edits[edited.fired]] if edited.fired in edits else []
    elif edited.prediction != trial.bare.prediction:
        found = [edit for edit in edits.values() if first_token_hit(edited.prediction, edit.new)]
    else:
        found = []
    others = [edit for edit in found if edit.edit_id != test.edit_id and edit.subject != test.subject]
    return any(find_name(test.question, (edit.subject,)) is not None for edit in others)


def _hits(tests: list[ContextTest], answers: list[ContextAnswer]) -> Tensor:
    return first_token_hits([answer.prediction for answer in answers], [test.new for test in tests])


def _changes(trials: Sequence[ContextTrial]) -> Tensor:
    return ~same_tokens([trial.edited.prediction for trial in trials], [trial.bare.prediction for trial in trials])


def _share(trials: Sequence[ContextTrial], outcomes: Tensor, seed: int) -> Score:
    """The share of what the bare model never does."""
    return rate_score(outcomes, torch.zeros_like(outcomes), [trial.test.edit_id for trial in trials], seed=seed)
