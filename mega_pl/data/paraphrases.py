"""Phrasings and implications of an edit from the bank of relations, and none that an evaluation asks."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from itertools import chain

from mega_pl.data.relations import implications, relations
from mega_pl.edits.checks import check_type, type_and_value
from mega_pl.edits.request import SLOT, EditCase, EditRequest
from mega_pl.errors import MegaTypeError
from mega_pl.functional.text import canonical

Rewrite = Callable[[EditRequest], Iterable[str]]
"""Gives more templates of an edit's fact, such as those of a language model."""


_NO_PROMPTS = frozenset({"request", "answers", "condition_answers", "axis", "language", "new", "true"})
"""Fields of a case, and of what it holds, whose texts are not asked; those of any other field are."""


def evaluation_prompts(case: EditCase) -> tuple[str, ...]:
    """Everything that an evaluation of the case asks of a model, save the edit prompt itself."""
    check_type("`case`", case, EditCase)
    return tuple(dict.fromkeys(_texts(case)))


def _texts(value: object) -> Iterator[str]:
    """The texts in a case or a part of one, whatever fields it has."""
    if isinstance(value, str):
        yield from (value,) if value else ()
    elif isinstance(value, Iterable):
        yield from chain.from_iterable(map(_texts, value.items() if isinstance(value, Mapping) else value))
    elif is_dataclass(value):
        yield from chain.from_iterable(
            _texts(getattr(value, f.name)) for f in fields(value) if f.name not in _NO_PROMPTS
        )


def phrasings_for(request: EditRequest, *, exclude: Iterable[str], rewrite: Rewrite | None = None) -> tuple[str, ...]:
    """The templates on which an edit may be fitted: its own, the bank's for its relation, and a model's.

    A template is left out if a prompt that an evaluation asks is, or ends in, the template with the subject or one of
    its aliases, whatever stands before it (CounterFact puts an unrelated sentence there) and however it is spelt, see
    `canonical` in `mega_pl.functional.text`.

    Args:
        request: The edit.
        exclude: What evaluations ask, see `evaluation_prompts`.
        rewrite: Gives more templates.

    Returns:
        Different templates.
    """
    relation = relations().get(request.relation)
    bank = relation.phrasings if relation else ()
    return _unasked((*request.phrasings, *bank, *(rewrite(request) if rewrite else ())), request, exclude)


def implications_for(request: EditRequest, *, exclude: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """The questions that build on an edit: its own as they are, or else the bank's for its relation.

    Of the bank's those are left out that an evaluation asks, as `phrasings_for` says.

    Args:
        request: The edit.
        exclude: What evaluations ask, see `evaluation_prompts`.

    Returns:
        For each question its templates.
    """
    if request.implications:
        return request.implications
    bank = (template for group in implications(request.relation) for template in group)
    return tuple((template,) for template in _unasked(bank, request, exclude))


def with_phrasings(cases: Iterable[EditCase], *, rewrite: Rewrite | None = None) -> list[EditCase]:
    """Give each edit all templates that none of its evaluations asks, in place of the phrasings that it has.

    Args:
        cases: Edits with what evaluates them.
        rewrite: Gives more templates.
    """
    return [replace(case, request=_with_phrasings(case, rewrite)) for case in cases]


def _with_phrasings(case: EditCase, rewrite: Rewrite | None) -> EditRequest:
    prompts = evaluation_prompts(case)
    return replace(case.request, phrasings=phrasings_for(case.request, exclude=prompts, rewrite=rewrite))


def with_implications(cases: Iterable[EditCase]) -> list[EditCase]:
    """Give each edit without implications those of its relation that none of its evaluations asks.

    Args:
        cases: Edits with what evaluates them.
    """
    return [
        replace(case, request=replace(case.request, implications=implications_for(case.request, exclude=prompts)))
        for case in cases
        for prompts in [evaluation_prompts(case)]
    ]


def _unasked(templates: Iterable[str], request: EditRequest, exclude: Iterable[str]) -> tuple[str, ...]:
    """The different ones of the templates that no prompt ends in."""
    if isinstance(exclude, str):
        raise MegaTypeError(f"`exclude` must hold prompts, but got {type_and_value(exclude)}; write [{exclude!r}].")
    evaluated = [canonical(prompt) for prompt in exclude]
    kept: dict[str, str] = {}
    for template in templates:
        filled = tuple(canonical(template.replace(SLOT, name)) for name in (request.subject, *request.aliases))
        if not any(prompt.endswith(filled) for prompt in evaluated):
            kept.setdefault(filled[0], template)
    return tuple(kept.values())
