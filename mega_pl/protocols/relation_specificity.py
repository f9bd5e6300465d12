"""Relation specificity: other facts about an edit's subject must stay what they were, known to the model or not.

The questions are those of RippleEdits (arXiv:2307.12976). `sake` keeps of them the ones that the bare model answers and
asks whether the answer is right; here all are kept, and asked whether the answer is the bare model's.

Every test counts once. "unchanged" is the share of questions whose next token is the bare model's, and "kept" the share
of those that the bare model answers rightly (`first_token_hit`) that are still right; both are 1 for the bare model.
"fired" is the share on which any edit fired, where edits are routed; it is better low. In a batch, an edit that is
about the very fact that another one's question asks is no excuse.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mega_pl.asking import Edited, next_logits
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.functional.text import first_token_hit
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.measures import Mean, Measure
from mega_pl.protocols.rows import EvalRow, Outcomes, outcomes


@dataclass(frozen=True, kw_only=True)
class RelationTest:
    """A question about an edit's subject by another relation.

    Args:
        edit_id: The edit.
        prompt: What is asked.
        answers: The right answer, then its other names.
    """

    edit_id: str
    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RelationAnswer:
    """What a model says right after a prompt.

    Args:
        token: Id of the argmax token; two that are parts of a character may be decoded alike.
        prediction: The token decoded.
        fired: The edit that the prompt got; "" if none did or edits are not routed.
        routed: Whether edits are routed, so that `fired` tells something.
    """

    token: int
    prediction: str
    fired: str = ""
    routed: bool = False


RelationRow = EvalRow[RelationTest, RelationAnswer]


def relation_specificity_tests(case: EditCase) -> tuple[RelationTest, ...]:
    """The tests of a case: its probes of relation specificity, whatever they are conditioned on."""
    return tuple(
        RelationTest(edit_id=case.request.edit_id, prompt=probe.prompt, answers=probe.answers)
        for probe in case.relation_specificity
    )


def ask_relation_specificity(backbone: Backbone, edited: Edited, tests: Sequence[RelationTest]) -> list[RelationAnswer]:
    """Ask tests of a model: the token after each prompt.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.

    Raises:
        ValueError: If a prompt is too long.
    """
    answers: dict[int, RelationAnswer] = {}
    for i, logits, fired in next_logits(backbone, edited, [test.prompt for test in tests]):
        token, routed = int(logits.argmax()), edited.fired is not None
        text = str(backbone.tokenizer.decode([token]))
        answers[i] = RelationAnswer(token=token, prediction=text, fired=fired, routed=routed)
    return [answers[i] for i in range(len(tests))]


def _hits(test: RelationTest, answer: RelationAnswer) -> bool:
    return first_token_hit(answer.prediction, test.answers)


def _has_fired(test: RelationTest, answer: RelationAnswer) -> bool:
    return bool(answer.fired)


def _unchanged(rows: Sequence[RelationRow]) -> Outcomes:
    same = torch.tensor([row.edited.token == row.bare.token for row in rows])
    return Outcomes(same, torch.ones(len(rows)), [row.test.edit_id for row in rows])


def _kept(rows: Sequence[RelationRow]) -> Outcomes:
    return outcomes((row for row in rows if _hits(row.test, row.bare)), _hits)


def _fired(rows: Sequence[RelationRow]) -> Outcomes:
    return outcomes((row for row in rows if row.edited.routed), _has_fired)


def _measures() -> dict[str, Measure]:
    return {"unchanged": Mean(_unchanged), "kept": Mean(_kept), "fired": Mean(_fired, higher_is_better=False)}


PROTOCOL: Protocol[RelationTest, RelationAnswer, RelationRow] = Protocol(
    name="relation_specificity",
    tests=relation_specificity_tests,
    ask=ask_relation_specificity,
    answer=RelationAnswer,
    measures=_measures,
)
