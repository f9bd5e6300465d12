"""Merging what two files say about the same edits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mega_pl.data import join
from mega_pl.edits.request import EditCase, EditRequest, Probe

REQUEST = EditRequest(edit_id="1", prompt="{} is in", subject="Rome", target_new="Peru", target_true="Italy")
PROBE = Probe(prompt="p", answers=("a",))


def test_fields_that_one_side_fills_are_taken_from_it() -> None:
    a = EditCase(request=replace(REQUEST, phrasings=("{} lies in",)), paraphrase_prompts=("x",))
    b = EditCase(request=replace(REQUEST, relation="P17", prompt="Where is {}? In"), subject_aliasing=(PROBE,))
    joined = join([a], [b])
    request = replace(REQUEST, phrasings=("{} lies in",), relation="P17")
    assert joined == [EditCase(request=request, paraphrase_prompts=("x",), subject_aliasing=(PROBE,))]


def test_cases_of_one_side_only_are_kept_in_order() -> None:
    cases = [EditCase(request=replace(REQUEST, edit_id=name)) for name in ("b", "a", "d", "c")]
    assert [case.request.edit_id for case in join(cases[:2], [cases[3], cases[1], cases[2]])] == ["b", "a", "c", "d"]


def test_joining_with_itself_or_with_nothing_changes_nothing() -> None:
    cases = [EditCase(request=REQUEST, paraphrase_prompts=("x",))]
    assert join(cases, cases) == join(cases, []) == join([], cases) == cases


@pytest.mark.parametrize("name", ["subject", "target_new", "target_true"])
def test_different_edits_under_one_id_are_refused(name: str) -> None:
    changes: dict[str, Any] = {name: "Chile"}
    other = EditCase(request=replace(REQUEST, **changes))
    with pytest.raises(ValueError, match=f"`{name}` of edit '1' must be the same in both, but got .* and 'Chile'"):
        join([EditCase(request=REQUEST)], [other])


def test_an_id_twice_on_one_side_is_refused() -> None:
    case = EditCase(request=REQUEST)
    with pytest.raises(ValueError, match="`cases_b` must hold an edit id once, but '1' comes twice"):
        join([], [case, case])


def test_the_two_real_forms_of_popular_join(ripples: list[EditCase], knowedits: list[EditCase]) -> None:
    joined = join(ripples, knowedits)
    assert [case.request for case in joined] == [case.request for case in ripples]


def test_an_edit_in_two_spellings_is_the_same_in_both() -> None:
    ours = EditCase(request=replace(REQUEST, subject="Ren\u00e9 O'Neill"))
    theirs = EditCase(request=replace(REQUEST, subject="RENE\u0301\u00a0O\u2019Neill", target_true="italy"))
    assert join([ours], [theirs]) == [ours]
