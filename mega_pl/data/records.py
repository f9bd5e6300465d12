"""Reading JSON files of edits, and saying in one line where one is wrong.

A reader has a function from one `Record` to one `EditCase`. What that function refuses, it refuses with a `ValueError`
that names field, rule and value; `read_each` puts the file and the record in front.
"""

import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import Literal, TypeVar, get_args

from mega_pl.data.files import read_values
from mega_pl.edits.request import SLOT, EditCase, Probe
from mega_pl.edits.routing.subjects import FUNCTION_WORDS
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import canonical, find_all, is_unicode

Item = TypeVar("Item")

OnBad = Literal["raise", "skip"]
"""What a reader does with a record that it must refuse: raise, or leave it out, warn once a file and count it."""

AskModel = Callable[[str], str]
"""Gives what a bare model completes a prompt with, for a record of a new fact, which names no object to be replaced."""


class Cases(list[EditCase]):
    """The cases of a file in its order, and what was left out of it.

    Args:
        cases: The cases.
        refusals: For each record left out, and each phrasing of one, its file, place, field and reason.
    """

    def __init__(self, cases: Iterable[EditCase] = (), refusals: Iterable[str] = ()) -> None:
        super().__init__(cases)
        self.refusals = tuple(refusals)


class Record:
    """A JSON object whose fields are read by type.

    White space around a string is dropped: objects and answers are tokenised after exactly one space.

    Args:
        value: What the JSON file holds at this place.
        path: The fields that lead here, for messages; empty at the top of a record.
        left_out: Where to add why texts are not in what its methods give; a list of its own by default.

    Raises:
        ValueError: If ``value`` is not an object.
    """

    def __init__(self, value: object, path: str = "", left_out: list[str] | None = None) -> None:
        if not isinstance(value, Mapping):
            place = f"`{path}`" if path else "a record"
            raise MegaValueError(f"{place} must be a JSON object, but got {reprlib.repr(value)}.")
        self._fields = value
        self._path = path
        self.left_out = [] if left_out is None else left_out

    def names(self) -> set[str]:
        """The names of the fields."""
        return set(self._fields)

    def text(self, *names: str, default: str | None = None) -> str:
        """The string in the first of these fields that is there; without ``default`` one of them has to be."""
        for name in names:
            value = self._fields.get(name)
            if isinstance(value, str):
                return self._text(name, value)
            if value is not None:
                raise self.refusal(name, "a string", value)
        if default is None:
            raise self.refusal(" or ".join(names), "a string", None)
        return default

    def identifier(self, name: str, default: int | None = None) -> str:
        """An id that the file writes as an integer or as a string."""
        value = self._fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | str):
            rule = "an integer of fewer digits" if isinstance(value, Decimal) else "an integer or a string"
            raise self.refusal(name, rule, value)
        return self._text(name, str(value))

    def flag(self, name: str) -> bool:
        """A truth value, false where the field is absent."""
        value = self._fields.get(name)
        if not isinstance(value, bool | None):
            raise self.refusal(name, "true or false", value)
        return bool(value)

    def texts(self, name: str, *, blank: bool = False) -> tuple[str, ...]:
        """A list of strings, empty where the field is absent; blank ones are refused unless ``blank``."""
        return self._texts(name, self._fields.get(name), blank)

    def first_texts(self, *names: str) -> tuple[str, ...]:
        """The strings in the first of these fields that is there, a list or a single one; empty without any."""
        name = self._first(names)
        value = self._fields.get(name)
        return self._texts(name, [value] if isinstance(value, str) else value, False)

    def groups(self, name: str) -> list[tuple[str, ...]]:
        """A list of lists of strings, empty where the field is absent; a string stands for a list of itself."""
        lists = [[value] if isinstance(value, str) else value for value in self._list(name)]
        return [self._texts(f"{name}[{i}]", value, True) for i, value in enumerate(lists)]

    def templates(self, name: str, subject: str) -> tuple[str, ...]:
        """The different templates that a list of phrasings gives; those that give none are left out, and counted."""
        return self._templates(name, self.texts(name), subject)

    def questions(self, name: str, subject: str) -> tuple[tuple[str, ...], ...]:
        """A list of questions, each a list of its phrasings, as templates; questions without one are left out."""
        groups = (self._templates(f"{name}[{i}]", group, subject) for i, group in enumerate(self.groups(name)))
        return tuple(templates for templates in groups if templates)

    def _templates(self, name: str, texts: Iterable[str], subject: str) -> tuple[str, ...]:
        found: list[str] = []
        for i, text in enumerate(texts):
            template = to_template(text, subject)
            if template is None:
                rule = f"a text in which {subject!r} stands exactly once"
                self.left_out.append(str(self.refusal(f"{name}[{i}]", rule, text)))
            else:
                found.append(template)
        return tuple(dict.fromkeys(found))

    def child(self, *names: str) -> "Record":
        """The object in the first of these fields that is there; empty without any."""
        name = self._first(names)
        value = self._fields.get(name)
        return Record({} if value is None else value, self._at(name), self.left_out)

    def children(self, *names: str) -> "list[Record]":
        """The list of objects in the first of these fields that is there; empty without any."""
        name = self._first(names)
        return [Record(value, self._at(f"{name}[{i}]"), self.left_out) for i, value in enumerate(self._list(name))]

    def refusal(self, name: str, rule: str, value: object) -> ValueError:
        """The error for a field that breaks a rule; None stands for a missing one."""
        got = "is missing" if value is None else f"got {reprlib.repr(value)}"
        return ValueError(f"`{self._at(name)}` must be {rule}, but {got}.")

    def _first(self, names: tuple[str, ...]) -> str:
        """The first of the names that has a value, else the first of them."""
        return next((name for name in names if self._fields.get(name) is not None), names[0])

    def _texts(self, name: str, value: object, blank: bool) -> tuple[str, ...]:
        if not isinstance(value, list | None):
            raise self.refusal(name, "a list of strings", value)
        for i, text in enumerate(value or []):
            if not isinstance(text, str) or not (blank or text.strip()):
                raise self.refusal(f"{name}[{i}]", "a string" if blank else "a string that is not blank", text)
        return tuple(self._text(f"{name}[{i}]", text) for i, text in enumerate(value or []))

    def _text(self, name: str, value: str) -> str:
        if not is_unicode(value):
            raise self.refusal(name, "whole characters, without half of a surrogate pair", value)
        return value.strip()

    def _list(self, name: str) -> list[object]:
        value = self._fields.get(name)
        if value is not None and not isinstance(value, list):
            raise self.refusal(name, "a list", value)
        return value or []

    def _at(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def read_each(
    path: str | Path, parse: Callable[[Record, int], Item], on_bad: OnBad, *, skip: int = 0, limit: int | None = None
) -> tuple[list[Item], list[str]]:
    """Read a JSON list of records, or one JSON object a line.

    Args:
        path: The file, in UTF-8, by itself or packed by gzip.
        parse: Makes something of a record and its 0-based index in the file; refuses with `ValueError`.
        on_bad: Whether a refused record raises, or is left out with a warning.
        skip: Records to pass over at the front.
        limit: The most records to take after those.

    Returns:
        What was made, in file order, and why records and phrasings were left out, each with its file and place.

    Raises:
        ValueError: If there is no such file, it is of another kind or has no record but those passed over, or
            (``on_bad="raise"``) at the first refused record.
    """
    if on_bad not in get_args(OnBad):
        raise MegaValueError(f"`on_bad` must be one of {', '.join(get_args(OnBad))}, but got {on_bad!r}.")
    found: list[Item] = []
    refusals: list[str] = []
    left_out: list[str] = []
    index = -1
    for index, (place, value) in islice(enumerate(read_values(Path(path))), skip, skip + limit if limit else None):
        try:
            if isinstance(value, ValueError):
                raise value
            record = Record(value)
            found.append(parse(record, index))
            left_out += (f"{path}, {place}: {reason}" for reason in record.left_out)
        except ValueError as error:
            refusals.append(f"{path}, {place}: {error}")
            if on_bad == "raise":
                raise MegaValueError(refusals[0]) from error
    if index < 0:
        raise MegaValueError(f"{path}: `skip` must be less than the number of records, but got {skip}.")
    reasons = [*refusals, *left_out]
    if reasons:
        counts = ((len(refusals), "of the records"), (len(left_out), "of the phrasings"))
        summary = " and ".join(f"{count} {things}" for count, things in counts if count)
        warnings.warn(f"Left out {summary}; the first was {reasons[0]}", stacklevel=5)  # whoever calls `read` or `add`
    return found, reasons


def read_cases(
    path: str | Path,
    parse: Callable[[Record, int], EditCase | Sequence[EditCase]],
    on_bad: OnBad,
    *,
    skip: int = 0,
    limit: int | None = None,
) -> Cases:
    """Read a file of edits, one or several a record, whose ids have to differ; see `read_each`."""
    ids: set[str] = set()

    def parse_once(record: Record, index: int) -> list[EditCase]:
        parsed = parse(record, index)
        cases = [parsed] if isinstance(parsed, EditCase) else list(parsed)
        for case in cases:
            if case.request.edit_id in ids:
                raise MegaValueError(f"the edit id must be unique in a file, but {case.request.edit_id!r} came before.")
        ids.update(case.request.edit_id for case in cases)
        return cases

    found, reasons = read_each(path, parse_once, on_bad, skip=skip, limit=limit)
    return Cases(chain.from_iterable(found), reasons)


def add_to_cases(
    cases: Iterable[EditCase],
    path: str | Path,
    add: Callable[[Mapping[str, EditCase], Record], EditCase | None],
    on_bad: OnBad,
    *,
    skip: int = 0,
    limit: int | None = None,
) -> Cases:
    """Add to cases what a file says about them; records of other cases are passed over, see `read_each`.

    Args:
        cases: The cases, which keep their order.
        path: The file.
        add: Gives the case that a record speaks of, with what it says; None if it is of no case.
        on_bad: Whether a refused record raises, or is left out with a warning.
        skip: Records to pass over at the front.
        limit: The most records to take after those.

    Raises:
        ValueError: As `read_each`, or if the file speaks of none of the cases.
    """
    known = {case.request.edit_id: case for case in cases}
    met: set[str] = set()

    def take(record: Record, index: int) -> None:
        case = add(known, record)
        if case is not None:
            known[case.request.edit_id] = case
            met.add(case.request.edit_id)

    _, refusals = read_each(path, take, on_bad, skip=skip, limit=limit)
    if not met:
        raise MegaValueError(
            f"{path}: a record must have the `case_id` of one of the {len(known)} cases, but none has."
        )
    return Cases(known.values(), refusals)


def object_before(prompt: str, field: str, ask: AskModel | None) -> str:
    """What a model gives for the object of a new fact.

    Args:
        prompt: The edit prompt, filled.
        field: The field of the record that would tell it.
        ask: What a bare model completes a prompt with.

    Raises:
        ValueError: If there is no model to ask, or it gives nothing.
    """
    if ask is None:
        raise MegaValueError(f"`{field}` must tell the object before, but is missing; name a model to `ask`.")
    answer = ask(prompt)
    if not answer:
        raise MegaValueError(f"`ask` must name a model that completes {prompt!r}, but it gives nothing.")
    return answer


def probe(prompt: str, answers: Iterable[str], condition: tuple[str, tuple[str, ...]] = ("", ())) -> Probe:
    """A probe with blank and repeated answers left out."""
    kept = dict.fromkeys(answer for answer in answers if answer)
    return Probe(prompt=prompt, answers=tuple(kept), condition_prompt=condition[0], condition_answers=condition[1])


def to_template(text: str, subject: str) -> str | None:
    """The text with ``{}`` for the subject, or None where the subject does not stand in it exactly once.

    The subject may be spelt in any way that `find_all` knows; where it also stands as it is written, only that counts.
    A text that is a template already stays as it is.

    >>> to_template("The capital of France is", "France")
    'The capital of {} is'
    """
    if text.count(SLOT) == 1:
        return text
    found, written = find_all(text, subject), find_all(text, subject, case=True)
    if written or canonical(subject) in FUNCTION_WORDS:  # "US" is not in "Tell us"
        found = written
    if len(found) != 1 or SLOT in text:
        return None
    ((start, end),) = found
    return text[:start] + SLOT + text[end:]


def to_templates(texts: Iterable[str], subject: str) -> tuple[str, ...]:
    """The different templates among the texts, in their order; texts that give none are left out."""
    return tuple(dict.fromkeys(t for text in texts if (t := to_template(text, subject)) is not None))
