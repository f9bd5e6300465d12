"""Mediated context: the subject stands in a sentence before the question, which refers to it indirectly.

An edit that is tied to the subject's name in the question does not reach such a question; one that changes what the
model takes for a fact does. Because the name is in the prompt all the same, an edit may also answer where it must not:
the controls ask about other subjects.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mega_pl.asking import Edited, NextToken, next_tokens
from mega_pl.backbone import Backbone
from mega_pl.data.mediation import DESCRIPTIONS, described, renamed
from mega_pl.data.records import to_templates
from mega_pl.edits import EditCase
from mega_pl.edits.request import SLOT
from mega_pl.evaluation.generation import new_names
from mega_pl.evaluation.trials import Trial, measured
from mega_pl.functional.text import between, canonical
from mega_pl.metrics.functional import first_token_hits
from mega_pl.metrics.mediated import MediatedKind, same_tokens
from mega_pl.metrics.scores import Score, rate_score

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


def ask_mediated(backbone: Backbone, edited: Edited, tests: Sequence[MediatedTest]) -> list[NextToken]:
    """Ask tests of a model: the token after each prompt, and the log-probabilities of the new and the true object.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.

    Raises:
        ValueError: If an object merges with its prompt, or a prompt is too long.
    """
    return next_tokens(backbone, edited, [t.prompt for t in tests], [(t.new[0], t.true) for t in tests])


def score_mediated(trials: Sequence[Trial[MediatedTest, NextToken]], *, seed: int = 0) -> dict[str, Score]:
    """Score trials; every test counts once, and n counts tests.

    "description" and "renaming" are shares of next tokens that begin the new object (`first_token_hit`), with
    "_followed" among those tests where the bare model begins the true one, which shows that it follows the reference.
    The other columns are shares of next tokens that are the bare model's: there the bare model has 1.

    Args:
        trials: One a test, in any order.
        seed: Of the bootstrap.

    Returns:
        The scores under the keys of `MEDIATED_METRICS`.
    """
    of: dict[MediatedKind, list[Trial[MediatedTest, NextToken]]] = {}
    for trial in trials:
        of.setdefault(trial.test.kind, []).append(trial)
    scores: dict[str, Score] = {}
    kinds: tuple[MediatedKind, ...] = ("description", "renaming")
    for kind in kinds:
        asked = of.get(kind, [])
        follows = first_token_hits([t.bare.prediction for t in asked], [(t.test.true,) for t in asked]).tolist()
        kept = [trial for trial, follow in zip(asked, follows, strict=True) if follow]
        scores[kind] = rate_score(*measured(asked, _hits), seed=seed)
        scores[f"{kind}_followed"] = rate_score(*measured(kept, _hits), seed=seed)
    controls: tuple[MediatedKind, ...] = ("description_other", "renaming_other", "aside")
    return scores | {kind: _unmoved(of.get(kind, []), seed) for kind in controls}


def _hits(tests: list[MediatedTest], answers: list[NextToken]) -> Tensor:
    return first_token_hits([answer.prediction for answer in answers], [test.new for test in tests])


def _unmoved(trials: Sequence[Trial[MediatedTest, NextToken]], seed: int) -> Score:
    same = same_tokens([t.edited.prediction for t in trials], [t.bare.prediction for t in trials])
    return rate_score(same, torch.ones_like(same), [t.test.edit_id for t in trials], seed=seed)
