"""The protocol of EasyEdit (arXiv:2308.07269) and KnowEdit: agreement of tokens under teacher forcing.

Each answer token is predicted after the right ones before it, which makes answers of several tokens look easier than
they are to a model that writes on its own. Every column is a macro mean over edits of the share of an answer's places
at which the most probable id is the right one or, for locality, the bare model's, be that right or wrong.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Literal

import torch

from mega_pl.asking import Edited, TeacherForced, teacher_forced
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase, Probe, RippleAxis
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.measures import Mean, Measure
from mega_pl.protocols.rows import EvalRow, Outcomes, outcomes

EasyEditKind = Literal[
    "rewrite",
    "rephrase",
    "portability",
    "subject_aliasing",
    "reasoning",
    "logical_generalization",
    "locality",
    "relation_specificity",
    "forgetfulness",
]

COLUMNS: dict[str, frozenset[EasyEditKind]] = {
    "rewrite_acc": frozenset({"rewrite"}),
    "rephrase_acc": frozenset({"rephrase"}),
    "subject_aliasing_acc": frozenset({"subject_aliasing"}),
    "reasoning_acc": frozenset({"reasoning"}),
    "logical_generalization_acc": frozenset({"logical_generalization"}),
    "portability_acc": frozenset({"portability", "subject_aliasing", "reasoning", "logical_generalization"}),
}
"""The columns that ask whether an answer is right, with the tests that each counts."""

LOCAL: dict[str, frozenset[EasyEditKind]] = {
    "relation_specificity_acc": frozenset({"relation_specificity"}),
    "forgetfulness_acc": frozenset({"forgetfulness"}),
    "locality_acc": frozenset({"locality", "relation_specificity", "forgetfulness"}),
}
"""The columns that ask whether an answer is what it was."""


@dataclass(frozen=True, kw_only=True)
class EasyEditTest:
    """One prompt with the answer that is forced after it.

    Args:
        edit_id: The edit that it belongs to.
        kind: What it tests.
        prompt: What is asked.
        answer: The forced answer.
    """

    edit_id: str
    kind: EasyEditKind
    prompt: str
    answer: str


def easyedit_tests(case: EditCase) -> tuple[EasyEditTest, ...]:
    """The tests of a case, kind by kind.

    The edit prompt and its paraphrases are asked for the new object, other questions for their first answer. Locality
    asks the case's `locality` or, where it has none, its neighbourhood prompts with the true object, as EasyEdit's copy
    of CounterFact does. The kinds that KnowEdit has are RippleEdits' axes, of which reasoning is two.
    """
    return tuple(_tests(case))


def _tests(case: EditCase) -> Iterator[EasyEditTest]:
    request = case.request
    neighbours = [(prompt, request.target_true) for prompt in case.neighborhood_prompts]
    kinds: dict[EasyEditKind, list[tuple[str, str]]] = {
        "rewrite": [(request.filled, request.target_new)],
        "rephrase": [(prompt, request.target_new) for prompt in case.paraphrase_prompts],
        "portability": _pairs(case.portability),
        "subject_aliasing": _pairs(case.subject_aliasing),
        "reasoning": _pairs((*case.compositionality_1, *case.compositionality_2)),
        "logical_generalization": _first_queries(case, "Logical_Generalization"),
        "locality": _pairs(case.locality) or neighbours,
        "relation_specificity": _pairs(case.relation_specificity),
        "forgetfulness": _first_queries(case, "Forgetfulness"),
    }
    for kind, pairs in kinds.items():
        for prompt, answer in pairs:
            yield EasyEditTest(edit_id=request.edit_id, kind=kind, prompt=prompt, answer=answer)


def _pairs(probes: Iterable[Probe]) -> list[tuple[str, str]]:
    return [(probe.prompt, probe.answers[0]) for probe in probes]


def _first_queries(case: EditCase, axis: RippleAxis) -> list[tuple[str, str]]:
    """The first query of each test of an axis with the first name of its first answer."""
    queries = (test.queries[0] for test in case.ripple if test.axis == axis)
    return [(query.prompt, query.answers[0][0]) for query in queries]


def ask_easyedit(backbone: Backbone, edited: Edited, tests: Sequence[EasyEditTest]) -> list[TeacherForced]:
    """Force the answers of tests; an answer for each test.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.

    Raises:
        ValueError: If an answer merges with its prompt, or a text is too long.
    """
    return teacher_forced(backbone, [test.prompt for test in tests], [test.answer for test in tests], edited=edited)


EasyEditRow = EvalRow[EasyEditTest, TeacherForced]


def token_agreement(predicted: Sequence[int], expected: Sequence[int]) -> float:
    """Share of an answer's places at which two token ids agree.

    >>> token_agreement([5, 6, 7, 8], [5, 6, 9, 8])
    0.75

    Args:
        predicted: The most probable id at each place.
        expected: As many ids to compare with.
    """
    return fmean(a == b for a, b in zip(predicted, expected, strict=True))


def _right(kinds: frozenset[EasyEditKind], rows: Sequence[EasyEditRow]) -> Outcomes:
    return outcomes((row for row in rows if row.test.kind in kinds), _agreement)


def _agreement(test: EasyEditTest, answer: TeacherForced) -> float:
    return token_agreement(answer.predicted, answer.ids)


def _unchanged(kinds: frozenset[EasyEditKind], rows: Sequence[EasyEditRow]) -> Outcomes:
    """How far the bare model's ids stay; it agrees with itself."""
    local = [row for row in rows if row.test.kind in kinds]
    shares = [token_agreement(row.edited.predicted, row.bare.predicted) for row in local]
    return Outcomes(
        torch.tensor(shares, dtype=torch.float64), torch.ones(len(local)), [row.test.edit_id for row in local]
    )


def _measures() -> dict[str, Measure]:
    right: dict[str, Measure] = {name: Mean(partial(_right, kinds), over="edits") for name, kinds in COLUMNS.items()}
    return right | {name: Mean(partial(_unchanged, kinds), over="edits") for name, kinds in LOCAL.items()}


PROTOCOL: Protocol[EasyEditTest, TeacherForced, EasyEditRow] = Protocol(
    name="easyedit",
    tests=easyedit_tests,
    ask=ask_easyedit,
    answer=TeacherForced,
    measures=_measures,
    headline=("rewrite_acc", "rephrase_acc", "portability_acc", "locality_acc"),
)
