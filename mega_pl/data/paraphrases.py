"""Phrasings of an edit without any service: a bank of templates by relation, and none that an evaluation asks."""

import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import chain

from mega_pl.edits.request import SLOT, EditCase, EditRequest

Rewrite = Callable[[EditRequest], Iterable[str]]
"""Gives more templates of an edit's fact, such as those of a language model."""


@cache
def templates() -> dict[str, tuple[str, ...]]:
    """The bank: for each Wikidata property its templates, which the bare object continues."""
    text = files("mega_pl.data").joinpath("templates", "wikidata.toml").read_text(encoding="utf-8")
    return {relation: tuple(phrasings) for relation, phrasings in tomllib.loads(text).items()}


def evaluation_prompts(case: EditCase) -> tuple[str, ...]:
    """Everything that an evaluation of the case asks of a model, save the edit prompt itself."""
    return tuple(dict.fromkeys(_prompts(case)))


def _prompts(case: EditCase) -> Iterator[str]:
    yield from case.paraphrase_prompts
    yield from case.neighborhood_prompts
    yield from case.attribute_prompts
    yield from case.generation_prompts
    for probe in chain(
        case.relation_specificity,
        case.compositionality_1,
        case.compositionality_2,
        case.subject_aliasing,
        case.locality,
        case.portability,
    ):
        yield from (prompt for prompt in (probe.prompt, probe.condition_prompt) if prompt)
    for test in case.ripple:
        yield from (query.prompt for query in (*test.queries, *test.conditions))


def phrasings_for(request: EditRequest, *, exclude: Iterable[str], rewrite: Rewrite | None = None) -> tuple[str, ...]:
    """The templates on which an edit may be fitted: its own, the bank's for its relation, and a model's.

    A template is left out if a prompt that an evaluation asks is, or ends in, the template with the subject, whatever
    stands before it (CounterFact puts an unrelated sentence there) and whatever its case and spaces.

    Args:
        request: The edit.
        exclude: What evaluations ask, see `evaluation_prompts`.
        rewrite: Gives more templates.

    Returns:
        Different templates.
    """
    evaluated = [_plain(prompt) for prompt in exclude]
    found = [*request.phrasings, *templates().get(request.relation, ()), *(rewrite(request) if rewrite else ())]
    kept: dict[str, str] = {}
    for template in found:
        filled = _plain(template.replace(SLOT, request.subject))
        if not any(prompt.endswith(filled) for prompt in evaluated):
            kept.setdefault(filled, template)
    return tuple(kept.values())


def with_phrasings(cases: Iterable[EditCase], *, rewrite: Rewrite | None = None) -> list[EditCase]:
    """Give each edit all templates that none of its evaluations asks, in place of the phrasings that it has.

    Args:
        cases: Edits with what evaluates them.
        rewrite: Gives more templates.
    """
    return [replace(case, request=replace(case.request, phrasings=_phrasings(case, rewrite))) for case in cases]


def _phrasings(case: EditCase, rewrite: Rewrite | None) -> tuple[str, ...]:
    return phrasings_for(case.request, exclude=evaluation_prompts(case), rewrite=rewrite)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
