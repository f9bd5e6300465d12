"""Confidence: is an edited model sure of the new object however it is asked, under its other names, and of it alone?

With p_k the probability of the new object's first token after the k-th wording of an edit's question, o* the new
object, A its other names and O objects of another meaning, the true one and others that edits of the relation have:

- mean = (1/K) Σ_k p_k;
- variation = sqrt((1/K) Σ_k (p_k − mean)²) / mean, the coefficient of variation, 0 where wording does not matter;
- separation = share of pairs (k, o in O) with p_k(o*) > p_k(o), ties half, the area under the ROC curve;
- log_odds = mean over pairs (k, o in O) of ln p_k(o*) − ln p_k(o), in nats;
- agreement = share of triples (k, a in A, o in O) with p_k(a) > p_k(o), ties half;
- alias_gap = mean over pairs (k, a in A) of |ln p_k(o*) − ln p_k(a)|, in nats.

Each is taken within an edit, and edits are averaged. Only first tokens are looked at, so that names which begin with
the new object's first token say nothing and are left out.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mega_pl.asking import Edited, NextToken, next_tokens
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.functional.statistics import auroc, coefficient_of_variation
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.cases import new_names, relation_of
from mega_pl.protocols.measures import Mean, Measure
from mega_pl.protocols.rows import EvalRow, Outcomes

ConfidenceKind = Literal["plain", "prefix", "surface", "paraphrase"]
"""The edit prompt as it is, after a neutral sentence, with other case or punctuation, and in other words."""

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
        objects = found.setdefault(relation_of(case.request), {})
        objects |= dict.fromkeys((case.request.target_true, case.request.target_new))
    return {relation: tuple(names) for relation, names in found.items()}


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


ConfidenceRow = EvalRow[ConfidenceTest, NextToken]


@dataclass(frozen=True)
class _LogProbs:
    """The log-probabilities that one answer gives, in nats; nan for a name that begins as the new object does.

    Args:
        new: (1,) of the new object.
        same: (A,) of its other names.
        other: (O,) of objects of another meaning.
    """

    new: Tensor
    same: Tensor
    other: Tensor

    @classmethod
    def of(cls, test: ConfidenceTest, answer: NextToken) -> "_LogProbs":
        values = torch.tensor(answer.log_probs, dtype=torch.float64)
        apart = torch.tensor([i != answer.ids[0] for i in answer.ids])
        values[1:] = values[1:].where(apart[1:], math.nan)
        names = len(test.same)
        return cls(values[:1], values[1:names], values[names:])


def _separation(found: _LogProbs) -> Tensor:
    return torch.tensor([auroc(found.new, _present(found.other))], dtype=torch.float64)


def _log_odds(found: _LogProbs) -> Tensor:
    return found.new - found.other


def _agreement(found: _LogProbs) -> Tensor:
    return torch.tensor([auroc(_present(found.same), _present(found.other))], dtype=torch.float64)


def _alias_gap(found: _LogProbs) -> Tensor:
    return (found.new - found.same).abs()


def _probability(found: _LogProbs) -> Tensor:
    return found.new.exp()


def _outcomes(
    kinds: Sequence[ConfidenceKind], judge: Callable[[_LogProbs], Tensor], rows: Sequence[ConfidenceRow]
) -> Outcomes:
    """One or several outcomes for each wording of some kinds; nan stands for one that tells nothing."""
    own = [row for row in rows if row.test.kind in kinds]
    edited, bare = (
        [judge(_LogProbs.of(row.test, answer)) for row, answer in zip(own, answers, strict=True)]
        for answers in ([row.edited for row in own], [row.bare for row in own])
    )
    edits = [row.test.edit_id for row, values in zip(own, edited, strict=True) for _ in values]
    return Outcomes(torch.cat([torch.zeros(0), *edited]), torch.cat([torch.zeros(0), *bare]), edits)


def _present(values: Tensor) -> Tensor:
    return values[~values.isnan()]


def _mean(values: Tensor) -> float:
    """Mean of the outcomes that tell something; nan without any."""
    present = _present(values)
    return float(present.mean()) if len(present) else math.nan


def _measures() -> dict[str, Measure]:
    families: tuple[ConfidenceKind, ...] = ("prefix", "surface", "paraphrase")
    every: tuple[ConfidenceKind, ...] = ("plain", *families)
    within = partial(Mean, over="edits", within=_mean)
    found: dict[str, Measure] = {"plain": within(partial(_outcomes, ("plain",), _probability))}
    found |= {f"{kind}_mean": within(partial(_outcomes, (kind,), _probability)) for kind in families}
    for kind in families:  # with the edit prompt itself, from which the others are departures
        both = partial(_outcomes, ("plain", kind), _probability)
        found[f"{kind}_variation"] = Mean(both, over="edits", within=coefficient_of_variation, higher_is_better=False)
    return found | {
        "separation": within(partial(_outcomes, every, _separation)),
        "log_odds": within(partial(_outcomes, every, _log_odds)),
        "agreement": within(partial(_outcomes, every, _agreement)),
        "alias_gap": within(partial(_outcomes, every, _alias_gap), higher_is_better=False),
    }


def _adapt(backbone: Backbone, cases: Sequence[EditCase]) -> "Protocol[ConfidenceTest, NextToken, ConfidenceRow]":
    """The protocol with the objects of all cases to choose from."""
    return replace(PROTOCOL, tests=partial(confidence_tests, objects=objects_by_relation(cases)), adapted=True)


PROTOCOL: Protocol[ConfidenceTest, NextToken, ConfidenceRow] = Protocol(
    name="confidence",
    tests=confidence_tests,
    ask=ask_confidence,
    answer=NextToken,
    measures=_measures,
    adapt=_adapt,
)
