"""What cannot be in force together, and the rule for two edits of one fact: the later wins, and is named."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import chain

from mega_pl.edits.checks import check_type
from mega_pl.edits.request import EditCase, EditRequest
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import canonical


def superseded(requests: Sequence[EditRequest]) -> dict[int, int]:
    """By index of a request the index of the last later one that gives its fact another object."""
    later: dict[tuple[str, str], dict[str, int]] = {}
    found: dict[int, int] = {}
    for i, request in reversed(list(enumerate(requests))):
        keys = fact_keys(request)
        own = canonical(request.target_new)
        others = [j for key in keys for new, j in later.get(key, {}).items() if new != own]
        if others:
            found[i] = max(others)
        for key in keys:
            later.setdefault(key, {}).setdefault(own, i)
    return dict(sorted(found.items()))


def latest(edits: Sequence[EditRequest | EditCase]) -> list[EditRequest]:
    """The requests without those whose fact gets another object from a later one; each is named with the later one.

    Raises:
        ValueError: If there is none, or an id comes twice.
    """
    check_type("`edits`", edits, Sequence)
    requests = [edit.request if isinstance(edit, EditCase) else edit for edit in edits]
    check_ids(requests)
    gone = superseded(requests)
    for earlier, later in gone.items():
        warn_of(requests[earlier], requests[later])
    return [request for i, request in enumerate(requests) if i not in gone]


def warn_of(earlier: EditRequest, later: EditRequest) -> None:
    """Say in one line that a later edit takes the place of an earlier one."""
    warnings.warn(
        f"{later.edit_id!r} takes the place of {earlier.edit_id!r}, because the later edit of a fact wins: "
        f"{earlier.filled!r} goes on with {later.target_new!r} instead of {earlier.target_new!r}.",
        stacklevel=4,
    )


def check_requests(requests: Sequence[EditRequest]) -> None:
    """Refuse requests that cannot be in force together.

    Raises:
        ValueError: If there is none, an id comes twice, one fact gets two objects, or an alias is another's subject.
    """
    check_ids(requests)
    names = (reason for of_request in shared_names(requests).values() for reason in of_request.values())
    for reason in chain(conflicts(requests).values(), names):
        raise MegaValueError(reason)


def check_ids(requests: Sequence[EditRequest]) -> None:
    """Refuse no request, and requests of one id.

    Raises:
        TypeError: If they are not a sequence of requests.
        ValueError: If there is none, or an id comes twice.
    """
    check_type("`edits`", requests, Sequence)
    if not requests:
        raise MegaValueError("`edits` must hold at least one edit, but got none.")
    ids: set[str] = set()
    for request in requests:
        check_type("an item of `edits`", request, EditRequest)
        if request.edit_id in ids:
            raise MegaValueError(f"`edits` must have different ids, but got {request.edit_id!r} more than once.")
        ids.add(request.edit_id)


def conflicts(requests: Sequence[EditRequest]) -> dict[int, str]:
    """The requests that give a fact another object than an earlier one does, by index, each with the reason."""
    found: dict[int, str] = {}
    facts: dict[tuple[str, str], EditRequest] = {}
    for i, request in enumerate(requests):
        keys = fact_keys(request)
        first = next((facts[key] for key in keys if key in facts), request)
        if canonical(first.target_new) == canonical(request.target_new):
            facts |= dict.fromkeys(keys, request)
        else:
            found[i] = (
                f"`edits` must give one fact one object, but {first.edit_id!r} gives {first.target_new!r} and "
                f"{request.edit_id!r} gives {request.target_new!r} to {request.filled!r}; leave one out."
            )
    return found


def fact_keys(request: EditRequest) -> list[tuple[str, str]]:
    """What two requests share, at least one of it, that edit one fact."""
    subject, prompt = canonical(request.subject), canonical(request.prompt)
    return [(subject, prompt), (subject, request.relation or prompt)]


def shared_names(requests: Sequence[EditRequest]) -> dict[int, dict[str, str]]:
    """By index of a request those of its aliases that are the subject of another, each with the reason."""
    subjects = {canonical(request.subject): request.edit_id for request in requests}
    found: dict[int, dict[str, str]] = {}
    for i, request in enumerate(requests):
        for alias in request.aliases:
            name = canonical(alias)
            if name in subjects and name != canonical(request.subject):
                found.setdefault(i, {})[alias] = (
                    f"`aliases` of edit {request.edit_id!r} must not be the subject of another edit, but {alias!r} is "
                    f"that of {subjects[name]!r}; leave it out."
                )
    return found
