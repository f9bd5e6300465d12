"""Relation linearity: are the edits of relations that an affine map captures more, or less, successful?

What is judged of a relation belongs to the bare model (`mega_pl.evaluation.relations`) and is told to the protocol
beforehand; what it asks of a model with edits is the edit prompt.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from mega_pl.asking import BARE, Edited, NextToken, next_tokens
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.evaluation.confidence import relation_of
from mega_pl.evaluation.generation import new_names
from mega_pl.evaluation.protocol import Protocol
from mega_pl.evaluation.relations import Faithfulness
from mega_pl.evaluation.trials import Trial, measured
from mega_pl.functional.linearity import spearman
from mega_pl.metrics.functional import first_token_hits
from mega_pl.metrics.scores import NOT_AVAILABLE, Score, macro_score, rate_score


@dataclass(frozen=True, kw_only=True)
class LinearityTest:
    """An edit prompt whose relation was judged.

    Args:
        edit_id: The edit.
        relation: Its relation, or its template where it names none.
        prompt: What is asked.
        new: The new object, then its other names.
        true: The true object.
        linear: As in `Faithfulness`.
        constant: As in `Faithfulness`.
    """

    edit_id: str
    relation: str
    prompt: str
    new: tuple[str, ...]
    true: str
    linear: bool
    constant: bool


LinearityTrial = Trial[LinearityTest, NextToken]


def linearity(judged: Mapping[str, Faithfulness]) -> Protocol[LinearityTest, NextToken, LinearityTrial]:
    """The protocol of relation linearity for cases whose relations were judged.

    Args:
        judged: What `relation_linearity` gave for them; other cases have no test.
    """

    def tests(case: EditCase) -> tuple[LinearityTest, ...]:
        known = judged.get(case.request.edit_id)
        return () if known is None else (_test(case, known),)

    return Protocol(
        name="linearity",
        tests=tests,
        ask_bare=lambda backbone, asked: ask_linearity(backbone, BARE, asked),
        ask=ask_linearity,
        answer=NextToken,
        row=Trial,
        score=score_linearity,
    )


def _test(case: EditCase, known: Faithfulness) -> LinearityTest:
    request = case.request
    return LinearityTest(
        edit_id=request.edit_id,
        relation=relation_of(request),
        prompt=request.filled,
        new=new_names(case),
        true=request.target_true,
        linear=known.linear,
        constant=known.constant,
    )


def ask_linearity(backbone: Backbone, edited: Edited, tests: Sequence[LinearityTest]) -> list[NextToken]:
    """Ask edit prompts of a model: the next token, and the log-probabilities of the new and the true object.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.

    Raises:
        ValueError: If an object merges with its prompt, or a prompt is too long.
    """
    return next_tokens(backbone, edited, [t.prompt for t in tests], [(t.new[0], t.true) for t in tests])


def score_linearity(trials: Sequence[LinearityTrial], *, seed: int = 0, samples: int = 1000) -> dict[str, Score]:
    """Score trials.

    "faithfulness" and "constant" are means over relations (n counts them) of the shares of faithful prompts, for maps
    and for mere means; both are the bare model's own. "success" is the share of edits whose prompt is continued with
    the new object. "correlation" is Spearman's rank correlation over relations of faithfulness with success; n counts
    relations, and the interval comes from drawing relations. It is not available under three relations or where one
    side does not vary, and its value of the bare model is nan where that has no success that varies.

    Args:
        trials: One an edit, in any order.
        seed: Of the bootstrap.
        samples: Draws for the correlation's interval.
    """
    relations = [trial.test.relation for trial in trials]
    linear, constant = (
        torch.tensor([getattr(trial.test, name) for trial in trials]).double() for name in ("linear", "constant")
    )
    success, before, edits = measured(trials, _hits)
    means = [_means(side, relations) for side in (linear, success, before)]
    return {
        "faithfulness": macro_score(linear, linear, relations, seed=seed),
        "constant": macro_score(constant, constant, relations, seed=seed),
        "success": rate_score(success, before, edits, seed=seed),
        "correlation": _correlation(*means, seed=seed, samples=samples),
    }


def _hits(tests: list[LinearityTest], answers: list[NextToken]) -> Tensor:
    return first_token_hits([answer.prediction for answer in answers], [test.new for test in tests])


def _means(values: Tensor, relations: Sequence[str]) -> Tensor:
    return torch.tensor(
        [
            fmean(value for value, own in zip(values.tolist(), relations, strict=True) if own == relation)
            for relation in sorted(set(relations))
        ]
    )


def _correlation(faithful: Tensor, success: Tensor, before: Tensor, *, seed: int, samples: int) -> Score:
    value, n = spearman(faithful, success), len(faithful)
    if math.isnan(value):
        return NOT_AVAILABLE
    draws = torch.randint(n, (samples, n), generator=torch.Generator().manual_seed(seed))
    values = torch.tensor([spearman(faithful[draw], success[draw]) for draw in draws])
    low, high = values.nanquantile(torch.tensor([0.025, 0.975])).tolist()
    return Score(value, n, (low, high), spearman(faithful, before))
