"""Making an edit: what the package can suggest for it, the fit, and what has become of it."""

from __future__ import annotations

import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from mega_pl.asking import answers
from mega_pl.backbone import Backbone
from mega_pl.data.relations import relations
from mega_pl.edits import EditBank, EditRequest
from mega_pl.edits.conflicts import superseded
from mega_pl.edits.prediction import Prediction, predict
from mega_pl.edits.request import SLOT
from mega_pl.errors import MegaValueError
from mega_pl.fitting import fit
from mega_pl.fitting.aliases import with_known_aliases
from mega_pl.functional.text import canonical, find_all
from mega_pl.look.studio import stoppable

NEXT_TO_IT = 6
"""Questions beside an edit that are asked after its fit."""

TOKENS = 8
"""Tokens of the answers to them."""

MARKS = {True: "✓", False: "✗", None: "? the model did not know it"}
"""Whether an answer is as it should be."""


@dataclass(frozen=True)
class Suggestions:
    """What the package knows of a fact before it is changed.

    Args:
        prompt: A wording of the relation, the first after which the model says what it says after most.
        target_true: What the bare model says now.
        phrasings: Other wordings, with one `{}`.
        aliases: Names of the subject that the bare model takes for the same.
    """

    prompt: str
    target_true: str
    phrasings: tuple[str, ...]
    aliases: tuple[str, ...]


def suggest(backbone: Backbone, subject: str, prompt: str, relation: str) -> Suggestions:
    """What there is to say of a fact.

    Args:
        backbone: The bare model, which is asked for the old object and for aliases.
        subject: What the fact is about.
        prompt: Its wording; blank for the relation's own.
        relation: Name of its relation; blank if unknown.

    Raises:
        ValueError: If the subject is blank, or there is neither a wording nor a relation.
    """
    known = relations().get(relation)
    wordings = known.phrasings if known else ()
    requests = [
        EditRequest(prompt=template, subject=subject, target_new="?", target_true="!", relation=relation)
        for template in ([prompt.strip()] if prompt.strip() else wordings or ("",))
    ]
    said = answers(backbone, [request.filled for request in requests], least=0.0, most=1)
    objects = [next(iter(of), "").partition(",")[0] for of in said]  # "Paris, France"
    true = Counter(objects).most_common(1)[0][0]
    request = requests[objects.index(true)]
    (named,) = with_known_aliases(backbone, [request])
    others = tuple(wording for wording in wordings if wording != request.prompt)
    return Suggestions(request.prompt, true, others, named.aliases)


@dataclass(frozen=True)
class Check:
    """A question that was asked before and after an edit.

    Args:
        kind: What it is to the edit: its prompt, another wording, or something next to it.
        question: What was asked.
        bare: What the model says without edits.
        edited: What it says with them.
        fired: The edit that answered; "" for none.
        good: Whether that is how it should be: wordings of the edit give the new object, and the edit answers nothing
            else. None where the bare model did not know the wording.
    """

    kind: str
    question: str
    bare: str
    edited: str
    fired: str
    good: bool | None


def put(backbone: Backbone, bank: EditBank | None, request: EditRequest) -> tuple[EditBank, list[str]]:
    """Fit an edit and put it into a bank, in the place of what it replaces.

    Args:
        backbone: The bare model.
        bank: The edits so far; None for none.
        request: The edit.

    Returns:
        The bank, and what there is to be told: conflicts, and objects that do not come out whole.

    Raises:
        ValueError: If the edit does not go together with the others.
    """
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if bank is None:
            made = fit(backbone, [request])
        elif request.edit_id in bank.ids:
            made = bank.replace(backbone, [request])
        else:
            made = bank.add(backbone, [request])
    return made, [str(warning.message) for warning in seen if warning.category is UserWarning]


def replaced(bank: EditBank | None, request: EditRequest) -> list[str]:
    """The ids of the edits that an edit would take the place of."""
    if bank is None:
        return []
    gone = [bank.ids[i] for i in superseded([*bank.requests, request]) if i < len(bank)]
    return list(dict.fromkeys([*gone, *([request.edit_id] if request.edit_id in bank.ids else [])]))


def check(backbone: Backbone, bank: EditBank, edit_id: str) -> list[Check]:
    """Ask an edit's prompt, its paraphrases, and what stands next to it.

    Args:
        backbone: The bare model.
        bank: The edits.
        edit_id: Which of them.

    Raises:
        KeyError: If the bank has no such edit.
    """
    request = bank[edit_id]
    known = relations().get(request.relation)
    wordings = dict.fromkeys([*request.phrasings, *(known.phrasings if known else ())])
    wordings.pop(request.prompt, None)
    beside = [r for r in relations().values() if known and r is not known and set(r.subjects) & set(known.subjects)]
    questions = [("the edit's prompt", request.filled)]
    questions += [("another wording", wording.replace(SLOT, request.subject)) for wording in wordings]
    questions += [("another name", request.prompt.replace(SLOT, name)) for name in request.aliases]
    questions += [
        (f"next to it: {r.label}", r.phrasings[0].replace(SLOT, request.subject)) for r in beside[:NEXT_TO_IT]
    ]
    found = predict(backbone, bank, [question for _, question in questions], TOKENS)
    return [
        Check(kind, p.prompt, p.bare.strip(), p.edited.strip(), p.fired or "", _good(kind, p, request))
        for (kind, _), p in zip(questions, found, strict=True)
    ]


def _good(kind: str, found: Prediction, request: EditRequest) -> bool | None:
    """Whether a question is answered as it should be."""
    if kind.startswith("next to it"):
        return found.fired != request.edit_id
    if found.fired != request.edit_id:
        return False
    if found.edited.strip().startswith(request.target_new):
        return True
    return False if found.bare.strip().startswith(request.target_true) else None


def mend(
    backbone: Backbone, bank: EditBank, edit_id: str, *, alias: str = "", phrasing: str = ""
) -> tuple[EditBank, list[str]]:
    """Fit an edit again with another name of its subject, or another wording of its fact.

    A name is its subject's: all edits of that subject get it.

    Args:
        backbone: The bare model.
        bank: The edits.
        edit_id: Which of them.
        alias: The name; blank for none.
        phrasing: The wording, as in `with_more`; blank for none.

    Returns:
        The bank, and the ids of the edits that were fitted again.

    Raises:
        KeyError: If the bank has no such edit.
        ValueError: If there is nothing new in it, or it does not go together with the other edits.
    """
    subject = canonical(bank[edit_id].subject)
    old = [r for r in bank.requests if r.edit_id == edit_id or (alias.strip() and canonical(r.subject) == subject)]
    new = [with_more(r, alias=alias, phrasing=phrasing if r.edit_id == edit_id else "") for r in old]
    changed = [one for one, before in zip(new, old, strict=True) if one != before]
    if not changed:
        raise MegaValueError(f"an edit must get a new name or wording, but {edit_id!r} has it already.")
    made = bank.replace(backbone, changed)
    return made, [request.edit_id for request in changed]


def with_more(request: EditRequest, *, alias: str = "", phrasing: str = "") -> EditRequest:
    """A request with another name of its subject, or another wording of its fact.

    Args:
        request: The request.
        alias: The name.
        phrasing: The wording, with one `{}` or with the subject or one of its names in it.

    Raises:
        ValueError: If the wording names the subject nowhere.
    """
    if alias.strip() and alias.strip() not in (request.subject, *request.aliases):
        request = replace(request, aliases=(*request.aliases, alias.strip()))
    wording = templated(phrasing.strip(), request.subject, *request.aliases)
    if wording and wording not in (request.prompt, *request.phrasings):
        request = replace(request, phrasings=(*request.phrasings, wording))
    return request


def templated(text: str, *names: str) -> str:
    """A text with `{}` where it has one of some names, the longest first; one that has it already is kept."""
    for name in sorted(names, key=len, reverse=True):
        places = find_all(text, name) if SLOT not in text else []
        if places:
            start, stop = places[0]
            return f"{text[:start]}{SLOT}{text[stop:]}"
    return text


@contextmanager
def counted_passes(backbone: Backbone, show: Callable[[str], None]) -> Iterator[None]:
    """Say how many passes of the model some work has taken, and how long, before each of them."""
    start, passes = time.perf_counter(), 0

    def count() -> None:
        nonlocal passes
        passes += 1
        show(f"{passes} passes of the model, {time.perf_counter() - start:.1f} s")

    with stoppable(backbone.model, threading.Event(), count):
        yield


def lines(text: str) -> tuple[str, ...]:
    """The lines of a text that are not blank."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def rows(checks: Sequence[Check]) -> list[list[str]]:
    """Checks as the rows of a table."""
    return [[c.kind, c.question, c.bare, c.edited, c.fired or "none", _mark(c)] for c in checks]


def _mark(check: Check) -> str:
    """Whether a question is answered as it should be, in words."""
    if check.kind.startswith("next to it") and check.good:
        return "✓ another edit" if check.fired else "✓ unchanged"
    return MARKS[check.good]


def doubts(bank: EditBank, edit_id: str, checks: Sequence[Check]) -> list[str]:
    """What a person should know of an edit that was just fitted."""
    request, bare = bank[edit_id], checks[0].bare
    found = []
    if not bare.startswith(request.target_true):
        found.append(f"The bare model says “{bare}” there, and not the old object “{request.target_true}”.")
    if request.relation not in relations():
        found.append("Without a relation an edit answers most questions about its subject.")
    return found
