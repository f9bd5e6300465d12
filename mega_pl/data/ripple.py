"""The tests of RippleEdits (arXiv:2307.12976) from whichever file holds them, and what SAKE reads of them."""

from collections.abc import Iterable

from mega_pl.data.popular import Edited, conditions_of, split_on
from mega_pl.edits.request import Probe, Query, RippleAxis, RippleTest


def query(prompt: str, entities: Iterable[Iterable[str]]) -> Query | None:
    """A question with the names by which the benchmark knows its answers: longer than one character, or a digit.

    Args:
        prompt: The question.
        entities: For each answer its value and then its aliases; blank ones are left out.

    Returns:
        None if no answer has such a name.
    """
    named = (dict.fromkeys(name for name in names if len(name) > 1 or name.isdigit()) for names in entities)
    answers = tuple(tuple(names) for names in named if names)
    return Query(prompt=prompt, answers=answers) if answers else None


def ripple_test(
    axis: RippleAxis,
    queries: Iterable[Query | None],
    edited: Edited,
    *,
    conditions: Iterable[Query | None] | None = None,
    every: bool = False,
) -> RippleTest | None:
    """A test of those queries that have an answer.

    Args:
        axis: Its list.
        queries: What it asks.
        edited: The edit.
        conditions: What it asks of the bare model; None where the file leaves that out, so that a rule has to tell.
        every: Whether all queries must be answered, or any of them.

    Returns:
        None if no query has an answer: the benchmark would pass it whatever the model says.
    """
    questions = tuple(query for query in queries if query)
    if not questions:
        return None
    if conditions is None:
        given = conditions_of(axis, questions[0], edited)
    else:
        given = tuple(query for query in conditions if query)
    return RippleTest(axis=axis, queries=questions, conditions=given or (), every=every, filterable=given is not None)


def probes(tests: Iterable[RippleTest], axis: RippleAxis) -> tuple[Probe, ...]:
    """What SAKE reads of an axis: of a test the first query and condition, of each of these the first answer."""
    return tuple(_probe(test) for test in tests if test.axis == axis)


def aliases(tests: Iterable[RippleTest], template: str) -> tuple[str, ...]:
    """The other names of a subject, under which the tests of its aliases ask the edit's own prompt.

    Args:
        tests: The tests of a record.
        template: The edit's prompt.
    """
    queries = (query for test in tests if test.axis == "Subject_Aliasing" for query in test.queries)
    return tuple(name for query in queries if (name := split_on(template, query.prompt)) is not None)


def _probe(test: RippleTest) -> Probe:
    question, conditions = test.queries[0], test.conditions[:1]
    return Probe(
        prompt=question.prompt,
        answers=question.answers[0],
        condition_prompt="".join(condition.prompt for condition in conditions),
        condition_answers=tuple(name for condition in conditions for name in condition.answers[0]),
    )
