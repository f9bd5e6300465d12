"""The protocol of EasyEdit and KnowEdit: agreement of tokens under teacher forcing."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from mega_pl.asking import Edited, TeacherForced, teacher_forced
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase, Probe, RippleAxis
from mega_pl.evaluation.trials import Trial, measured
from mega_pl.metrics.easyedit import token_agreement
from mega_pl.metrics.scores import Score, macro_score

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


def score_easyedit(trials: Sequence[Trial[EasyEditTest, TeacherForced]], *, seed: int = 0) -> dict[str, Score]:
    """Score trials under EasyEdit's protocol.

    Every column is a macro mean over edits as a fraction; n counts edits. The bare model agrees with itself, so that
    its locality is 1.

    Args:
        trials: One a test, in any order; all of an edit.
        seed: Of the bootstrap.

    Returns:
        The scores under the keys of `EASYEDIT_METRICS`.
    """
    scores = {
        name: macro_score(*measured([t for t in trials if t.test.kind in kinds], _right), seed=seed)
        for name, kinds in COLUMNS.items()
    }
    for name, kinds in LOCAL.items():
        local = [trial for trial in trials if trial.test.kind in kinds]
        unmoved = partial(_unmoved, [trial.bare for trial in local])
        scores[name] = macro_score(*measured(local, unmoved), seed=seed)
    return scores


def _right(tests: list[EasyEditTest], answers: list[TeacherForced]) -> Tensor:
    return token_agreement([answer.predicted for answer in answers], [answer.ids for answer in answers])


def _unmoved(bare: list[TeacherForced], tests: list[EasyEditTest], answers: list[TeacherForced]) -> Tensor:
    return token_agreement([answer.predicted for answer in answers], [answer.predicted for answer in bare])
