"""Bringing together what two files say about the same edits."""

from collections.abc import Iterable
from dataclasses import fields, replace
from typing import TypeVar

from mega_pl.edits.request import EditCase, EditRequest
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import canonical

_Part = TypeVar("_Part", EditCase, EditRequest)

_IDENTITY = ("subject", "target_new", "target_true")


def join(cases_a: Iterable[EditCase], cases_b: Iterable[EditCase]) -> list[EditCase]:
    """Merge the cases of the same edits, such as CounterFact's prompts with RippleEdits' probes.

    A field that only one of the two fills is taken from there; one that both fill is taken from ``cases_a``.

    Args:
        cases_a: Cases with different edit ids; their order comes first.
        cases_b: Cases with different edit ids; those with an id of their own follow.

    Raises:
        ValueError: If two cases have the same edit id but not the same subject, target_new and target_true, or an
            id comes twice on one side.
    """
    merged = _by_id(cases_a, "cases_a")
    for edit_id, case in _by_id(cases_b, "cases_b").items():
        merged[edit_id] = _merge_cases(merged[edit_id], case) if edit_id in merged else case
    return list(merged.values())


def _by_id(cases: Iterable[EditCase], name: str) -> dict[str, EditCase]:
    found: dict[str, EditCase] = {}
    for case in cases:
        if case.request.edit_id in found:
            raise MegaValueError(f"`{name}` must hold an edit id once, but {case.request.edit_id!r} comes twice.")
        found[case.request.edit_id] = case
    return found


def _merge_cases(a: EditCase, b: EditCase) -> EditCase:
    for name in _IDENTITY:
        first, second = getattr(a.request, name), getattr(b.request, name)
        if canonical(first) != canonical(second):
            raise MegaValueError(
                f"`{name}` of edit {a.request.edit_id!r} must be the same in both, but got {first!r} and {second!r}."
            )
    return replace(_fill(a, b), request=_fill(a.request, b.request))


def _fill(a: _Part, b: _Part) -> _Part:
    empty = [field.name for field in fields(a) if getattr(a, field.name) == field.default]
    return replace(a, **{name: getattr(b, name) for name in empty})
