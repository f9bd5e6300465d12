"""Confidence: is an edited model sure of the new object however it is asked, under its other names, and of it alone?"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from mega_pl.asking import Edited, NextToken, next_tokens
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase, EditRequest
from mega_pl.evaluation.generation import new_names
from mega_pl.evaluation.trials import Trial
from mega_pl.metrics.confidence import CONFIDENCE_METRICS, ConfidenceKind, edit_confidence
from mega_pl.metrics.scores import Score, macro_score

NEUTRAL = (
    "The kettle had just boiled.",
    "Two cyclists waited at the crossing.",
    "The printer ran out of paper.",
    "A window stood open all afternoon.",
    "The choir practised until nine.",
    "Nobody had swept the stairs.",
    "The shop closes early on Mondays.",
    "Fog lay over the harbour.",
)
"""Sentences that say nothing about any fact, none of them among those that edits are fitted with."""

PREFIXES = 4
"""How many of them a case is asked after."""

OTHERS = 8
"""The most objects of another meaning, the true one included."""


@dataclass(frozen=True, kw_only=True)
class ConfidenceTest:
    """One wording of an edit's question.

    Args:
        edit_id: The edit that it belongs to.
        kind: How it departs from the edit prompt.
        prompt: What is asked.
        same: The new object, then its other names.
        other: Objects of another meaning, the true one first.
    """

    edit_id: str
    kind: ConfidenceKind
    prompt: str
    same: tuple[str, ...]
    other: tuple[str, ...]


def confidence_tests(
    case: EditCase, *, objects: Mapping[str, Sequence[str]] | None = None, seed: int = 0
) -> tuple[ConfidenceTest, ...]:
    """The tests of a case, kind by kind.

    Args:
        case: The case.
        objects: By relation its objects, as `objects_by_relation` gives them, to be drawn from; without any the true
            object stands alone for what has another meaning.
        seed: Of the choice of sentences and objects, together with the edit's id.
    """
    request, names = case.request, new_names(case)
    draw = random.Random(f"{seed} {request.edit_id}")
    wordings = list(_wordings(case, draw))
    known = (objects or {}).get(relation_of(request), ())
    pool = sorted({*known} - {*names, request.target_true})
    others = (request.target_true, *draw.sample(pool, min(len(pool), OTHERS - 1)))
    return tuple(
        ConfidenceTest(edit_id=request.edit_id, kind=kind, prompt=prompt, same=names, other=others)
        for kind, prompt in wordings
    )


def objects_by_relation(cases: Sequence[EditCase]) -> dict[str, tuple[str, ...]]:
    """Every object, new or true, that cases have for a relation."""
    found: dict[str, dict[str, None]] = {}
    for case in cases:
        of_relation = found.setdefault(relation_of(case.request), {})
        of_relation |= dict.fromkeys((case.request.target_true, case.request.target_new))
    return {relation: tuple(names) for relation, names in found.items()}


def relation_of(request: EditRequest) -> str:
    """The relation of an edit, which its template stands for where it names none."""
    return request.relation or request.prompt


def _wordings(case: EditCase, draw: random.Random) -> Iterator[tuple[ConfidenceKind, str]]:
    prompt = case.request.filled
    yield "plain", prompt
    yield from (("prefix", f"{sentence} {prompt}") for sentence in draw.sample(NEUTRAL, PREFIXES))
    yield from (("surface", text) for text in (prompt[0].swapcase() + prompt[1:], f'"{prompt}', f"- {prompt}"))
    yield "surface", f"... {prompt}"
    yield from (("paraphrase", text) for text in case.paraphrase_prompts)


def ask_confidence(backbone: Backbone, edited: Edited, tests: Sequence[ConfidenceTest]) -> list[NextToken]:
    """Ask tests of a model: the log-probabilities of all objects' first tokens, those of the same meaning first.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.

    Raises:
        ValueError: If an object merges with its prompt, or a prompt is too long.
    """
    return next_tokens(backbone, edited, [t.prompt for t in tests], [t.same + t.other for t in tests])


def score_confidence(trials: Sequence[Trial[ConfidenceTest, NextToken]], *, seed: int = 0) -> dict[str, Score]:
    """Score trials by the equations of `mega_pl.metrics.confidence`; n counts edits.

    Args:
        trials: One a test, in any order; all of an edit.
        seed: Of the bootstrap.

    Returns:
        The scores under the keys of `CONFIDENCE_METRICS`.
    """
    of: dict[str, list[Trial[ConfidenceTest, NextToken]]] = {}
    for trial in trials:
        of.setdefault(trial.test.edit_id, []).append(trial)
    edited = {edit: _of_edit(group, lambda trial: trial.edited) for edit, group in of.items()}
    bare = {edit: _of_edit(group, lambda trial: trial.bare) for edit, group in of.items()}
    scores: dict[str, Score] = {}
    for name in CONFIDENCE_METRICS:
        kept = [edit for edit in of if not math.isnan(edited[edit][name] + bare[edit][name])]
        after, before = (torch.tensor([side[edit][name] for edit in kept]).double() for side in (edited, bare))
        scores[name] = macro_score(after, before, kept, seed=seed)
    return scores


def _of_edit(
    trials: Sequence[Trial[ConfidenceTest, NextToken]],
    side: Callable[[Trial[ConfidenceTest, NextToken]], NextToken],
) -> dict[str, float]:
    """One model's measures of one edit."""
    new, same, other = [], [], []
    for trial in trials:
        answer, names = side(trial), len(trial.test.same)
        values = torch.tensor(answer.log_probs, dtype=torch.float64)
        apart = torch.tensor([i != answer.ids[0] for i in answer.ids])
        new.append(float(values[0]))
        same.append(values[:names][apart[:names]])
        other.append(values[names:][apart[names:]])
    return edit_confidence([trial.test.kind for trial in trials], new, same, other)
