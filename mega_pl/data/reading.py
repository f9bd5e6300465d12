"""Files of edits, each by the reader of its format, and what they say of the same edits joined."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from mega_pl.data.files import check_file
from mega_pl.data.join import join
from mega_pl.data.questions import QuestionForm
from mega_pl.data.readers import READERS, SOURCES
from mega_pl.data.records import AskModel, Cases, OnBad, add_to_cases, read_cases
from mega_pl.data.sources import fetch
from mega_pl.edits.checks import check_type
from mega_pl.edits.request import EditCase
from mega_pl.errors import MegaValueError
from mega_pl.functional.language import Language, check_language


@dataclass(frozen=True)
class DataFile:
    """A file of edits, or of more about the edits of other files.

    Args:
        path: The file, or the name of a published one, which is downloaded once.
        format: The name of its reader, a module of `mega_pl.data.readers`; None where it is published under a name, or
            one's own file of JSON lines, which is called .jsonl.
        skip: Records to pass over at the front.
        limit: The most records to read after those; None for all.
        language: The language to read, where a file has several.
        question_form: How questions are put, where the edits of a file are questions.
    """

    path: str | Path
    format: str | None = None
    _: KW_ONLY
    skip: int = 0
    limit: int | None = None
    language: Language | None = None
    question_form: QuestionForm | None = None

    @property
    def reader(self) -> ModuleType:
        """The module that reads the file.

        Raises:
            ValueError: If the format is unknown, or cannot be told from the path.
        """
        name = self.format or self._format_of_path()
        if name not in READERS:
            way_out = "" if self.format else f"; a published file is one of {', '.join(SOURCES)}"
            got = f"got {self.format!r}" if self.format else "is missing"
            raise MegaValueError(
                f"`format` of {str(self.path)!r} must be one of {', '.join(READERS)}, but {got}{way_out}."
            )
        return READERS[name]

    def settings(self, **given: object) -> dict[str, Any]:
        """What the reader's function takes, besides records: of the settings of this file, and of others.

        Raises:
            ValueError: If it does not take a setting of this file, or needs one that the file lacks.
        """
        reader = self.reader
        name = _name(reader)
        taken = signature(reader.add if hasattr(reader, "add") else reader.parse).parameters
        own = {key: getattr(self, key) for key in ("language", "question_form")}
        for key, value in own.items():
            if value is not None and key not in taken:
                raise MegaValueError(f"`{key}` must be left out in format {name}, but got {value!r}.")
            if value is None and key in taken and taken[key].default is taken[key].empty:
                raise MegaValueError(f"`{key}` must be given in format {name}, but is missing.")
        return {key: value for key, value in (own | given).items() if value is not None and key in taken}

    def check(self) -> None:
        """Refuse what can be refused without the file.

        Raises:
            TypeError: If a number is none.
            ValueError: If a value is none of those that there are, or none for the format.
        """
        for key, value, least in (("skip", self.skip, 0), ("limit", 1 if self.limit is None else self.limit, 1)):
            check_type(f"`{key}` of {str(self.path)!r}", value, int)
            if value < least:
                raise MegaValueError(f"`{key}` of {str(self.path)!r} must be at least {least}, but got {value}.")
        if self.language is not None:
            check_language(self.language)
        if self.question_form not in (None, *get_args(QuestionForm)):
            forms = ", ".join(get_args(QuestionForm))
            raise MegaValueError(f"`question_form` must be one of {forms}, but got {self.question_form!r}.")
        self.settings()

    def local(self) -> Path:
        """The file on this machine, downloaded if it is a published one."""
        return fetch(SOURCES[str(self.path)][1]) if self.path in SOURCES else Path(self.path)

    def _format_of_path(self) -> str:
        if self.path in SOURCES:
            return SOURCES[str(self.path)][0]
        if Path(self.path).is_dir():
            check_file(self.path)
        return "jsonl" if str(self.path).endswith((".jsonl", ".jsonl.gz")) else ""


def _name(reader: ModuleType) -> str:
    return reader.__name__.rpartition(".")[2]


# The command line tries these in their order, and reads settings out of a file that is named where none is a path.
Files = DataFile | str | Sequence[DataFile | str] | Path
"""One file or several; a text is a published one's name, or the path of one's own JSON lines."""

AskTogether = Callable[[Sequence[str]], Sequence[str]]
"""Gives what a bare model completes prompts with, for records of new facts, which name no object to be replaced."""


def data_files(files: Files) -> list[DataFile]:
    """The files one by one, each checked as far as it can be before it is read.

    Raises:
        TypeError: If one is of another type.
        ValueError: If a value is none of those that there are.
    """
    several = [files] if isinstance(files, str | Path | DataFile) else list(files)
    found = [DataFile(file) if isinstance(file, str | Path) else file for file in several]
    for file in found:
        check_type("a file of `files`", file, DataFile)
        file.check()
    return found


def read(files: Files, *, on_bad: OnBad = "raise", ask: AskTogether | None = None) -> Cases:
    """Read files, and join what they say of the same edits.

    Args:
        files: One file or several.
        on_bad: Whether a malformed record raises, or is left out with a warning.
        ask: What a bare model completes prompts with, each asked once and all of a file together.

    Returns:
        The cases in the order of the files, those of one id joined, see `join`; then what files add to them. An edit's
        id is that of its record, or the 0-based place of that in its file.

    Raises:
        ValueError: If there is no file, or one is missing or malformed, naming file, record and field.
    """
    every = data_files(files)
    if not every:
        raise MegaValueError("data must come from a file, but none is named; set `files`.")
    cases: list[EditCase] = []
    refusals: list[str] = []
    additions = [file for file in every if hasattr(file.reader, "add")]
    for file in every:
        if file not in additions:
            found = _read_file(file, on_bad, ask and _answers(file, ask))
            cases = join(cases, found)
            refusals += found.refusals
    for file in additions:
        found = _add_file(cases, file, on_bad)
        cases = found
        refusals += found.refusals
    return Cases(cases, refusals)


def _read_file(file: DataFile, on_bad: OnBad, ask: AskModel | None) -> Cases:
    parse = partial(file.reader.parse, **file.settings(ask=ask))
    return read_cases(file.local(), parse, on_bad, skip=file.skip, limit=file.limit)


def _answers(file: DataFile, ask: AskTogether) -> AskModel:
    """What the model says to each prompt that a file has for it, found by reading the file once before."""
    prompts: list[str] = []

    def note(prompt: str) -> str:
        prompts.append(prompt)
        return prompt

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _read_file(file, "skip", note)
    return dict(zip(prompts, ask(prompts) if prompts else (), strict=True)).__getitem__


def add(cases: Iterable[EditCase], file: DataFile, *, on_bad: OnBad = "raise") -> Cases:
    """Add to cases what a file says about them, by their ids.

    Args:
        cases: The cases, which keep their order.
        file: The file; its records of other cases are passed over.
        on_bad: Whether a malformed record raises, or is left out with a warning.

    Returns:
        The cases, with the refusals of the file.

    Raises:
        ValueError: Naming file, record and field, if one is malformed, or if the file speaks of none of the cases.
    """
    file.check()
    if not hasattr(file.reader, "add"):
        raise MegaValueError(
            f"`format` of {str(file.path)!r} must be one that adds to edits, but got {_name(file.reader)}; `read` it."
        )
    return _add_file(cases, file, on_bad)


def _add_file(cases: Iterable[EditCase], file: DataFile, on_bad: OnBad) -> Cases:
    function = partial(file.reader.add, **file.settings())
    return add_to_cases(cases, file.local(), function, on_bad, skip=file.skip, limit=file.limit)
