"""Relation specificity: other facts about an edit's subject must stay what they were, known to the model or not.

The questions are those of RippleEdits (arXiv:2307.12976). `sake` keeps of them the ones that the bare model answers and
asks whether the answer is right; here all are kept, and asked whether the answer is the bare model's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mega_pl.asking import BARE, Edited, encoded_batches
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.evaluation.protocol import Protocol
from mega_pl.evaluation.trials import Trial, measured
from mega_pl.metrics.functional import first_token_hits
from mega_pl.metrics.scores import Score, rate_score


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


RelationTrial = Trial[RelationTest, RelationAnswer]


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


@torch.no_grad()
def next_logits(backbone: Backbone, edited: Edited, prompts: Sequence[str]) -> Iterator[tuple[int, Tensor, str]]:
    """Of each prompt, batch by batch, its place, the logits (V,) of what follows it, and the edit it got or ""."""
    for rows, encoded in encoded_batches(backbone, [edited.prompt(prompt) for prompt in prompts]):
        logits = backbone.last_logits(encoded)
        fired = edited.fired or [None] * len(rows)
        yield from ((i, row, edit or "") for i, row, edit in zip(rows, logits, fired, strict=True))


def score_relation_specificity(trials: Sequence[RelationTrial], *, seed: int = 0) -> dict[str, Score]:
    """Score trials; every test counts once, and n counts tests.

    "unchanged" is the share of questions whose next token is the bare model's, and "kept" the share of those that the
    bare model answers rightly (`first_token_hit`) that are still right; both are 1 for the bare model. "fired" is the
    share on which any edit fired, where edits are routed; it is better low. In a batch, an edit that is about the very
    fact that another one's question asks is no excuse.

    Args:
        trials: One a test, in any order.
        seed: Of the bootstrap.
    """
    right = _right([t.test for t in trials], [t.bare for t in trials]).tolist()
    known = [trial for trial, is_right in zip(trials, right, strict=True) if is_right]
    unchanged = torch.tensor([trial.edited.token == trial.bare.token for trial in trials])
    edits = [trial.test.edit_id for trial in trials]
    return {
        "unchanged": rate_score(unchanged, torch.ones_like(unchanged), edits, seed=seed),
        "kept": rate_score(*measured(known, _right), seed=seed),
        "fired": rate_score(*measured([t for t in trials if t.edited.routed], _fired), seed=seed),
    }


def _right(tests: list[RelationTest], answers: list[RelationAnswer]) -> Tensor:
    return first_token_hits([answer.prediction for answer in answers], [test.answers for test in tests])


def _fired(tests: list[RelationTest], answers: list[RelationAnswer]) -> Tensor:
    return torch.tensor([bool(answer.fired) for answer in answers])


RELATION_SPECIFICITY: Protocol[RelationTest, RelationAnswer, RelationTrial] = Protocol(
    name="relation_specificity",
    tests=relation_specificity_tests,
    ask_bare=lambda backbone, tests: ask_relation_specificity(backbone, BARE, tests),
    ask=ask_relation_specificity,
    answer=RelationAnswer,
    row=Trial,
    score=score_relation_specificity,
    lower_is_better=("fired",),
)
