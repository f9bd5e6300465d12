"""The protocol of RippleEdits: greedy answers, tests gated by what the bare model knows, edits by their success."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mega_pl.asking import BARE, NEW_TOKENS, Continuation, Edited, continuations
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase, Query, RippleAxis
from mega_pl.errors import MegaValueError
from mega_pl.evaluation.generation import new_names
from mega_pl.evaluation.trials import Trial, measured
from mega_pl.metrics.functional import edit_means
from mega_pl.metrics.rippleedits import AXES, names_all, verdict
from mega_pl.metrics.scores import Score, average_score, macro_score


@dataclass(frozen=True, kw_only=True)
class RippleQuestion:
    """One test of RippleEdits, or the edited fact itself.

    Args:
        edit_id: The edit that it belongs to.
        axis: The axis; "Fact" asks whether the edit succeeded.
        queries: What is asked.
        conditions: What the bare model has to answer for the test to be executed.
        every: Whether all queries must be answered, or any of them.
        filterable: Whether `conditions` is complete; a test that is not is never executed.
    """

    edit_id: str
    axis: RippleAxis | Literal["Fact"]
    queries: tuple[Query, ...]
    conditions: tuple[Query, ...] = ()
    every: bool = False
    filterable: bool = True


@dataclass(frozen=True, kw_only=True)
class RippleAnswer:
    """What a model writes.

    Args:
        texts: After each query.
        conditions: After each condition; empty for an edited model, which is not asked.
        fired: The edit that each query got; "" if none did or edits are not routed.
    """

    texts: tuple[str, ...]
    conditions: tuple[str, ...] = ()
    fired: tuple[str, ...] = ()


def ripple_tests(case: EditCase) -> tuple[RippleQuestion, ...]:
    """The edited fact and the tests of a case; nothing where it has no test.

    The fact is answered by any name of the new object (`new_names`).
    """
    if not case.ripple:
        return ()
    edit_id, names = case.request.edit_id, new_names(case)
    fact = Query(prompt=case.request.filled, answers=(names,))
    questions = [RippleQuestion(edit_id=edit_id, axis="Fact", queries=(fact,))]
    questions += [
        RippleQuestion(
            edit_id=edit_id,
            axis=test.axis,
            queries=test.queries,
            conditions=test.conditions,
            every=test.every,
            filterable=test.filterable,
        )
        for test in case.ripple
    ]
    return tuple(questions)


def ask_ripple_bare(
    backbone: Backbone, tests: Sequence[RippleQuestion], *, new_tokens: int = NEW_TOKENS
) -> list[RippleAnswer]:
    """Ask tests and their conditions of a bare model. Arguments as for `ask_ripple`."""
    queries = _written(backbone, BARE, [test.queries for test in tests], new_tokens)
    conditions = _written(backbone, BARE, [test.conditions for test in tests], new_tokens)
    return [
        RippleAnswer(texts=_texts(said), conditions=_texts(known), fired=tuple(answer.fired for answer in said))
        for said, known in zip(queries, conditions, strict=True)
    ]


def ask_ripple(
    backbone: Backbone, edited: Edited, tests: Sequence[RippleQuestion], *, new_tokens: int = NEW_TOKENS
) -> list[RippleAnswer]:
    """Ask tests of a model with edits in force; an answer for each test.

    Answers are greedy and have up to 30 tokens. RippleEdits' code writes 30 more tokens than the prompt has characters,
    and searches the prompt too.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.
        new_tokens: The most tokens to write.

    Raises:
        ValueError: If a text is too long for the model.
    """
    written = _written(backbone, edited, [test.queries for test in tests], new_tokens)
    return [RippleAnswer(texts=_texts(said), fired=tuple(answer.fired for answer in said)) for said in written]


def score_ripple(trials: Sequence[Trial[RippleQuestion, RippleAnswer]], *, seed: int = 0) -> dict[str, Score]:
    """Score trials under RippleEdits' protocol.

    A query is answered if the text names every entity of its answer. A test is executed if its conditions are known
    and the bare model answers them all. An axis is the mean, over the edits that succeeded and have an executed test
    there, of the share of executed tests that pass; n counts those edits, so that it differs between methods. `average`
    is the mean of the axes that have such an edit.

    Args:
        trials: One a test, in any order; all of an edit.
        seed: Of the bootstrap.

    Returns:
        The scores under the keys of `RIPPLEEDITS_METRICS`, and `average`.

    Raises:
        ValueError: If an edit has tests but not the one of its fact.
    """
    facts = [trial for trial in trials if trial.test.axis == "Fact"]
    succeeded = {trial.test.edit_id: _passes(trial.test, trial.edited) for trial in facts}
    axes: dict[str, Score] = {}
    parts = []
    for axis in AXES:
        kept = [trial for trial in trials if trial.test.axis == axis and _kept(trial, succeeded)]
        passed, bare, edits = measured(kept, _passed)
        axes[axis.lower()] = macro_score(passed, bare, edits, seed=seed)
        parts.append(edit_means(passed, edits))
    return {
        "edit_success": macro_score(*measured(facts, _passed), seed=seed),
        **axes,
        "average": average_score(list(axes.values()), parts, seed=seed),
    }


def _kept(trial: Trial[RippleQuestion, RippleAnswer], succeeded: dict[str, bool]) -> bool:
    """Whether the test was executed, of an edit that succeeded."""
    test = trial.test
    if test.edit_id not in succeeded:
        raise MegaValueError(f"`trials` must hold a Fact test for each edit, but got none of edit {test.edit_id!r}.")
    said = zip(trial.bare.conditions, test.conditions, strict=True)
    known = test.filterable and all(names_all(text, condition.answers) for text, condition in said)
    return known and succeeded[test.edit_id]


def _passed(tests: list[RippleQuestion], answers: list[RippleAnswer]) -> Tensor:
    return torch.tensor([_passes(*pair) for pair in zip(tests, answers, strict=True)], dtype=torch.bool)


def _passes(test: RippleQuestion, answer: RippleAnswer) -> bool:
    said = zip(answer.texts, test.queries, strict=True)
    return verdict([names_all(text, query.answers) for text, query in said], every=test.every)


def _texts(written: Sequence[Continuation]) -> tuple[str, ...]:
    return tuple(continuation.text for continuation in written)


def _written(
    backbone: Backbone, edited: Edited, groups: Sequence[Sequence[Query]], new_tokens: int
) -> list[list[Continuation]]:
    """What the model writes after each query of each group."""
    prompts = [query.prompt for group in groups for query in group]
    written = iter(continuations(backbone, prompts, new_tokens, edited=edited))
    return [[next(written) for _ in group] for group in groups]
