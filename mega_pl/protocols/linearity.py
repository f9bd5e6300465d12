"""Relation linearity: are the edits of relations that an affine map captures more, or less, successful?

What is judged of a relation belongs to the bare model (`mega_pl.protocols.linear_relations`) and is found before any
case is asked; what is asked of a model with edits is the edit prompt.

"faithfulness" and "constant" are means over relations (n counts them) of the shares of faithful prompts, for maps and
for mere means; both are the bare model's own. "success" is the share of edits whose prompt is continued with the new
object. "correlation" is Spearman's rank correlation over relations of faithfulness with success.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from mega_pl.asking import NextToken
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.functional.linearity import spearman
from mega_pl.functional.text import first_token_hit
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.cases import ask_objects, new_names, relation_of
from mega_pl.protocols.linear_relations import Faithfulness, relation_linearity
from mega_pl.protocols.measures import NOT_AVAILABLE, Mean, Measure, Score
from mega_pl.protocols.rows import EvalRow, Outcomes, outcomes


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


LinearityRow = EvalRow[LinearityTest, NextToken]


def linearity_tests(case: EditCase, *, judged: Mapping[str, Faithfulness] | None = None) -> tuple[LinearityTest, ...]:
    """The edit prompt of a case whose relation was judged; nothing of another.

    Args:
        case: The case.
        judged: What `relation_linearity` gave.
    """
    request = case.request
    found = (judged or {}).get(request.edit_id)
    if found is None:
        return ()
    return (
        LinearityTest(
            edit_id=request.edit_id,
            relation=relation_of(request),
            prompt=request.filled,
            new=new_names(case),
            true=request.target_true,
            linear=found.linear,
            constant=found.constant,
        ),
    )


class Correlation(Measure):
    """Spearman's rank correlation over relations of faithfulness with the success of edits.

    n counts relations, and the interval comes from drawing relations. It is not available under three relations or
    where one side does not vary, and its value of the bare model is nan where that has no success that varies.

    Args:
        samples: Draws for the interval.
    """

    def __init__(self, samples: int = 1000) -> None:
        super().__init__(_with_faithfulness)
        self.samples = samples

    def _score(self, seed: int) -> Score:
        found = self.counted()
        relations = [relation for relation, _ in found.notes]
        linear = torch.tensor([linear for _, linear in found.notes]).double()
        faithful, success, before = (_means(side, relations) for side in (linear, found.edited, found.bare))
        value, n = spearman(faithful, success), len(faithful)
        if math.isnan(value):
            return NOT_AVAILABLE
        draws = torch.randint(n, (self.samples, n), generator=torch.Generator().manual_seed(seed))
        values = torch.tensor([spearman(faithful[draw], success[draw]) for draw in draws])
        low, high = values.nanquantile(torch.tensor([0.025, 0.975])).tolist()
        return Score(value, n, (low, high), spearman(faithful, before))


def _means(values: Tensor, relations: Sequence[str]) -> Tensor:
    return torch.tensor(
        [
            fmean(value for value, own in zip(values.tolist(), relations, strict=True) if own == relation)
            for relation in sorted(set(relations))
        ]
    )


def _hits(test: LinearityTest, answer: NextToken) -> bool:
    return first_token_hit(answer.prediction, test.new)


def _success(rows: Sequence[LinearityRow]) -> Outcomes:
    return outcomes(rows, _hits)


def _with_faithfulness(rows: Sequence[LinearityRow]) -> Outcomes:
    return replace(_success(rows), notes=[(row.test.relation, row.test.linear) for row in rows])


def _faithful(which: Literal["linear", "constant"], rows: Sequence[LinearityRow]) -> Outcomes:
    """What the bare model's own maps reach, relation by relation; no edit changes it."""
    shares = torch.tensor([getattr(row.test, which) for row in rows])
    return Outcomes(shares, shares, [row.test.relation for row in rows])


def _measures() -> dict[str, Measure]:
    return {
        "faithfulness": Mean(partial(_faithful, "linear"), over="edits"),
        "constant": Mean(partial(_faithful, "constant"), over="edits"),
        "success": Mean(_success),
        "correlation": Correlation(),
    }


def _adapt(backbone: Backbone, cases: Sequence[EditCase]) -> "Protocol[LinearityTest, NextToken, LinearityRow]":
    """The protocol for cases whose relations are judged in the bare model."""
    judged = relation_linearity(backbone, cases)
    return replace(PROTOCOL, tests=partial(linearity_tests, judged=judged), adapted=True)


PROTOCOL: Protocol[LinearityTest, NextToken, LinearityRow] = Protocol(
    name="linearity",
    tests=linearity_tests,
    ask=ask_objects,
    answer=NextToken,
    measures=_measures,
    adapt=_adapt,
)
