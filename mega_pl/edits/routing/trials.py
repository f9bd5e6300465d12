"""The thresholds, and what a model's next token is worth as evidence: learned from questions put to the model.

Right are the wordings of some of the edits, each held out of what it is compared with. Wrong are questions about their
subjects by other relations, whose references are held out in turn, as if the template bank did not hold them. The
threshold lets a stated share of the wrong ones pass; where right are told from wrong, it lies between them. There are
two, of the text alone and of all evidence.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mega_pl.asking import next_log_probs
from mega_pl.backbone import Backbone
from mega_pl.edits.request import SLOT, EditRequest
from mega_pl.edits.routing.answers import AnswerEvidence
from mega_pl.edits.routing.matcher import masked
from mega_pl.edits.routing.scope import SAME, Scope, Scopes
from mega_pl.edits.routing.vectors import Vectors
from mega_pl.functional.logistic import fit_logistic

SAMPLE = 48
"""About how many edits are tried."""

OWN_WORDINGS = 4
"""The most own wordings of each of them."""

OTHER_RELATIONS = 6
"""The most questions about each one's subject by other relations."""

BASE_RELATIONS = 4
"""The most questions by yet other relations over which the probability of an object is averaged."""

ANYTHING = "Everyone has heard of {}, and"
"""Begins what may be said of anybody and anything; it is averaged over as well."""

PENALTY = 4.0
"""Of the weights a nat, beside the sum over all trials: few trials teach little, and the model is surer of an edit's
own wordings than of those that people use."""

LEAST = -30.0
"""The lowest threshold."""

CAUTION = 2 / 3
"""How far between wrong and right questions the threshold lies where the model tells them apart."""

ENOUGH = 64
"""Wrong questions from which on the threshold is set on them."""

Phrasings = Sequence[Sequence[str]]
"""By relation index its templates."""


@dataclass(frozen=True)
class Trial:
    """A question about an edit's subject.

    Args:
        edit: Index of the edit.
        template: The question.
        relation: The relation that it asks, -1 if it is not of the template bank.
        right: Whether it is the edit's question.
    """

    edit: int
    template: str
    relation: int
    right: bool


def first_tokens(backbone: Backbone, requests: Sequence[EditRequest]) -> Tensor:
    """The first token (E,) of each edit's true object after its prompt."""
    return torch.tensor([backbone.answer_ids(r.filled, r.target_true)[0] for r in requests]).long()


def base_log_probs(
    backbone: Backbone, requests: Sequence[EditRequest], scopes: Sequence[Scope], phrasings: Phrasings
) -> Tensor:
    """Log-probability (E,) of the first token of each edit's true object, averaged over other questions.

    Args:
        backbone: The bare model.
        requests: E edits.
        scopes: Of these.
        phrasings: By relation index its templates.
    """
    pairs = [
        (edit, template.replace(SLOT, request.subject))
        for edit, (request, scope) in enumerate(zip(requests, scopes, strict=True))
        for template in (ANYTHING, *(phrasings[r][0] for r in _others(request, scope)[:BASE_RELATIONS]))
    ]
    owners = torch.tensor([edit for edit, _ in pairs]).long()
    found = next_log_probs(backbone, [text for _, text in pairs], first_tokens(backbone, requests)[owners])
    means = torch.zeros(len(requests)).index_add(0, owners, found.exp()) / torch.bincount(owners)
    return means.clamp(min=1e-30).log()


@dataclass(frozen=True)
class Outcome:
    """Trials, and what the text alone says of them.

    Args:
        trials: N questions.
        right: (N,) bool, which are their edits'.
        text: (N,) logits, each trial held out; minus infinity is a veto.
        spared: (N,) bool, where no answer speaks against them.
    """

    trials: tuple[Trial, ...]
    right: Tensor
    text: Tensor
    spared: Tensor

    def threshold(self, logits: Tensor, false_alarms: float, recall: float) -> float | None:
        """Where logits (N,) part right from wrong; None where too few are wrong to tell."""
        wrong = logits[~self.right].clamp(min=LEAST)
        if len(wrong) < ENOUGH:
            return None
        low = float(wrong.quantile(1 - false_alarms, interpolation="higher"))
        high = float(logits[self.right].quantile(1 - recall, interpolation="lower"))
        return max(low, low + CAUTION * (high - low))


def try_out(requests: Sequence[EditRequest], scopes: Scopes, phrasings: Phrasings, vectors: Vectors) -> Outcome:
    """Put questions to a sample of edits.

    Args:
        requests: The edits.
        scopes: Of these.
        phrasings: By relation index its templates.
        vectors: Makes vectors of questions.
    """
    sample = range(0, len(requests), max(1, len(requests) // SAMPLE))
    trials = [trial for edit in sample for trial in _trials(edit, requests[edit], scopes.edits[edit], phrasings)]
    texts = [masked([trial.template])[0] for trial in trials]
    points = scopes.matcher.space(vectors(texts))
    owners = torch.tensor([trial.relation for trial in trials])
    evidence, spared = scopes.evidence(
        points,
        texts,
        [(i, trial.edit) for i, trial in enumerate(trials)],
        hidden=owners[:, None] == scopes.matcher.owners,
        unseen=points @ scopes.questions.T > SAME,
        others=False,
    )
    right = torch.tensor([trial.right for trial in trials])
    return Outcome(tuple(trials), right, scopes.matcher.logits(evidence), spared)


def hear(
    backbone: Backbone,
    requests: Sequence[EditRequest],
    scopes: Scopes,
    phrasings: Phrasings,
    outcome: Outcome,
    false_alarms: float,
    recall: float,
) -> AnswerEvidence | None:
    """Learn what the next token is worth, and the threshold of all evidence.

    Args:
        backbone: The bare model.
        requests: The edits.
        scopes: Of these.
        phrasings: By relation index its templates.
        outcome: Of these.
        false_alarms: Share of the wrong questions that may pass.
        recall: Share of the right ones that should pass.

    Returns:
        The evidence, or None where no other question can be asked.
    """
    if outcome.right.all():
        return None
    base = base_log_probs(backbone, requests, scopes.edits, phrasings)
    matcher = scopes.matcher
    answers = AnswerEvidence(
        first_tokens(backbone, requests), base, (0.0, 0.0), (matcher.threshold, matcher.open_threshold)
    )
    edits = torch.tensor([trial.edit for trial in outcome.trials])
    prompts = [trial.template.replace(SLOT, requests[trial.edit].subject) for trial in outcome.trials]
    heard = answers(next_log_probs(backbone, prompts, answers.tokens[edits]), edits, outcome.spared)
    free = outcome.text.isfinite()  # a veto holds whatever the model says
    nats = torch.ones(heard.shape[1])
    weights, _ = fit_logistic(
        heard[free], outcome.right[free], offset=outcome.text[free], scale=nats, penalty=PENALTY / int(free.sum())
    )
    answers = replace(answers, weights=tuple(weights.tolist()))
    threshold = outcome.threshold(outcome.text + answers.logits(heard), false_alarms, recall)
    if threshold is None:
        return answers
    moved = matcher.at(threshold)
    return replace(answers, thresholds=(moved.threshold, moved.open_threshold))


def _others(request: EditRequest, scope: Scope) -> list[int]:
    """Other relations that lead from the same types as an edit's, in an order of its own."""
    found = sorted(scope.rivals - scope.relations)
    random.Random(request.edit_id).shuffle(found)
    return found


def _trials(edit: int, request: EditRequest, scope: Scope, phrasings: Phrasings) -> Iterator[Trial]:
    """Own wordings of an edit, and questions about its subject that its base does not hold."""
    for template in dict.fromkeys((request.prompt, *request.phrasings[: OWN_WORDINGS - 1])):
        yield Trial(edit, template, -1, right=True)
    draw = random.Random(request.edit_id)
    for relation in _others(request, scope)[BASE_RELATIONS:][:OTHER_RELATIONS]:
        yield Trial(edit, draw.choice(phrasings[relation]), relation, right=False)
    for group in request.contrasts[:OTHER_RELATIONS]:
        yield Trial(edit, group[0], -1, right=False)
