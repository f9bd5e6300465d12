"""The protocol of RippleEdits (arXiv:2307.12976): greedy answers about what follows from an edit and what does not.

A query is answered if the text names every entity of its answer. A test is executed if its conditions are complete and
the bare model answers them all. An axis is the mean, over the edits that succeed and have an executed test there, of
the share of executed tests that pass; n counts those edits, so that it differs between methods. `average` is the mean
of the axes that have such an edit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from mega_pl.asking import BARE, NEW_TOKENS, Continuation, Edited, continuations
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase, Query, RippleAxis
from mega_pl.errors import MegaValueError
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.cases import new_names
from mega_pl.protocols.measures import Combined, Deferred, Mean, Measure, kept
from mega_pl.protocols.rows import EvalRow, Outcomes, outcomes


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
        RippleAnswer(texts=_texts(texts), conditions=_texts(known), fired=tuple(text.fired for text in texts))
        for texts, known in zip(queries, conditions, strict=True)
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
    return [RippleAnswer(texts=_texts(texts), fired=tuple(text.fired for text in texts)) for texts in written]


def names_all(text: str, entities: Sequence[Sequence[str]]) -> bool:
    """Whether a text names every entity of an answer by one of its names.

    A name is found as a case-sensitive substring, as RippleEdits does, so that "Rome" is found in "Romeo". Names of
    one character count only if that is a digit; an entity without another name is never found.

    >>> names_all(" Paris and 7 others", [["Lutetia", "Paris"], ["7"]])
    True

    Args:
        text: What the model writes after the prompt, without the prompt.
        entities: The names of each entity.

    Raises:
        ValueError: If there is no entity.
    """
    if not entities:
        raise MegaValueError("`entities` must hold at least one entity, but got none.")
    return all(any(name in text for name in names if len(name) > 1 or name.isdigit()) for names in entities)


def passes(test: RippleQuestion, answer: RippleAnswer) -> bool:
    """Whether a test passes: all of its queries are answered (AND), or any (OR)."""
    answered = [names_all(text, query.answers) for text, query in zip(answer.texts, test.queries, strict=True)]
    return all(answered) if test.every else any(answered)


def executed(row: "RippleRow") -> bool:
    """Whether a test counts: its conditions are complete, and the bare model answers them all."""
    pairs = zip(row.bare.conditions, row.test.conditions, strict=True)
    return row.test.filterable and all(names_all(text, condition.answers) for text, condition in pairs)


def _texts(continued: Sequence[Continuation]) -> tuple[str, ...]:
    return tuple(continuation.text for continuation in continued)


def _written(
    backbone: Backbone, edited: Edited, groups: Sequence[Sequence[Query]], new_tokens: int
) -> list[list[Continuation]]:
    """What the model writes after each query of each group."""
    prompts = [query.prompt for group in groups for query in group]
    written = iter(continuations(backbone, prompts, new_tokens, edited=edited))
    return [[next(written) for _ in group] for group in groups]


RippleRow = EvalRow[RippleQuestion, RippleAnswer]


def _facts(rows: Sequence[RippleRow]) -> Outcomes:
    return outcomes((row for row in rows if row.test.axis == "Fact"), passes)


def _executed(axis: RippleAxis, rows: Sequence[RippleRow]) -> Outcomes:
    return outcomes((row for row in rows if row.test.axis == axis and executed(row)), passes)


def _successes(rows: Sequence[RippleRow]) -> list[tuple[str, bool]]:
    """Which edits succeed: their fact is answered."""
    return [(row.test.edit_id, passes(row.test, row.edited)) for row in rows if row.test.axis == "Fact"]


def _of_successful_edits(found: Outcomes, successes: list[tuple[str, bool]]) -> Outcomes:
    succeeds = dict(successes)
    for edit in found.edits:
        if edit not in succeeds:
            raise MegaValueError(f"`rows` must hold a Fact test for each edit, but got none of edit {edit!r}.")
    return kept(found, [succeeds[edit] for edit in found.edits])


def _measures() -> dict[str, Measure]:
    successful = Deferred(_successes, _of_successful_edits)
    axes = {
        axis.lower(): Mean(partial(_executed, axis), over="edits", deferred=successful) for axis in get_args(RippleAxis)
    }
    return {"edit_success": Mean(_facts, over="edits"), **axes, "average": Combined(axes.values(), "arithmetic")}


PROTOCOL: Protocol[RippleQuestion, RippleAnswer, RippleRow] = Protocol(
    name="rippleedits",
    tests=ripple_tests,
    ask_bare=ask_ripple_bare,
    ask=ask_ripple,
    answer=RippleAnswer,
    measures=_measures,
    headline=("average",),
)
