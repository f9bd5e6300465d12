"""Files by the names of their formats, parts of files, and the settings of readers."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from mega_pl.data import DataFile, add, read
from mega_pl.data import readers as package
from mega_pl.data.datamodule import EditDataModule
from mega_pl.data.readers import READERS, SOURCES
from mega_pl.data.reading import data_files

Write = Callable[[object], Path]


def line(name: str, **changes: object) -> dict[str, object]:
    fact = {"prompt": "{} is in", "subject": f"Town {name}", "target_new": "Peru", "target_true": "Italy"}
    return {"edit_id": name, **fact, **changes}


def ids(files: Any, **options: Any) -> list[str]:
    return [case.request.edit_id for case in read(files, **options)]


def test_every_file_of_the_folder_is_a_reader_of_its_name() -> None:
    folder = Path(inspect.getfile(package)).parent
    assert list(READERS) == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    for name, reader in READERS.items():
        assert hasattr(reader, "parse") != hasattr(reader, "add"), name
        function = reader.parse if hasattr(reader, "parse") else reader.add
        assert function.__module__ == f"{package.__name__}.{name}"
        settings = {key for key, of in inspect.signature(function).parameters.items() if of.kind is of.KEYWORD_ONLY}
        assert settings <= {"ask", "language", "question_form"}, name


def test_a_new_reader_is_a_new_module_and_nothing_else(monkeypatch: pytest.MonkeyPatch, write_json: Write) -> None:
    mine = ModuleType("mega_pl.data.readers.mine")
    mine.parse = lambda record, index: READERS["jsonl"].parse(record, index)  # type: ignore[attr-defined]
    monkeypatch.setitem(READERS, "mine", mine)
    assert ids(DataFile(write_json([line("a")]), "mine")) == ["a"]


def test_a_format_is_told_by_the_entry_the_published_name_or_the_end_of_the_path(tmp_path: Path) -> None:
    assert DataFile("x.json", "mquake").reader is READERS["mquake"]
    assert DataFile("popular").reader is READERS["rippleedits"]
    assert DataFile("popular", "knowedit").reader is READERS["knowedit"]
    assert DataFile("x.jsonl").reader is DataFile("x.jsonl.gz").reader is READERS["jsonl"]
    formats = re.escape(", ".join(READERS))
    with pytest.raises(ValueError, match=rf"^`format` of 'x.json' must be one of {formats}, but got 'zsrre'\.$"):
        read(DataFile("x.json", "zsrre"))
    sources = re.escape(", ".join(SOURCES))
    missing = (
        rf"^`format` of 'x.json' must be one of {formats}, but is missing; a published file is one of {sources}\.$"
    )
    with pytest.raises(ValueError, match=missing):
        read("x.json")
    with pytest.raises(ValueError, match=r"but '.*' is a folder; name a file in it"):
        read(tmp_path)
    with pytest.raises(ValueError, match="data must come from a file, but none is named"):
        read([])
    with pytest.raises(TypeError, match=r"^a file of `files` must be a DataFile, but got int: 3"):
        read([3])  # type: ignore[list-item]


def test_parts_of_one_file_are_joined(write_json: Write) -> None:
    path = write_json([line(str(i)) for i in range(9)])
    first, last = DataFile(path, "jsonl", limit=3), DataFile(path, "jsonl", skip=7, limit=100)
    assert ids([first, last]) == ["0", "1", "2", "7", "8"]
    assert ids([last, first]) == ["7", "8", "0", "1", "2"]
    assert ids([first, DataFile(path, "jsonl", skip=2, limit=2)]) == ["0", "1", "2", "3"]
    assert ids(DataFile(path, "jsonl", skip=8)) == ["8"]
    with pytest.raises(ValueError, match=f"^{path}: `skip` must be less than the number of records, but got 9"):
        read(DataFile(path, "jsonl", skip=9))


def test_only_the_records_of_the_part_are_read(tmp_path: Path, write_json: Write) -> None:
    path = write_json([line("0"), line("1", subject=7), line("2"), 3])
    assert ids([DataFile(path, "jsonl", limit=1), DataFile(path, "jsonl", skip=2, limit=1)]) == ["0", "2"]
    with pytest.raises(ValueError, match="record 1: `subject` must be a string, but got 7"):
        read(DataFile(path, "jsonl", limit=2))
    with pytest.warns(UserWarning, match="Left out 2 of the records; the first was .*record 1: "):
        assert ids(DataFile(path, "jsonl", skip=1), on_bad="skip") == ["2"]
    question = {"subject": "Rome", "src": "Where is Rome?", "alt": "Peru", "answers": ["Italy"]}
    assert ids(DataFile(write_json([question] * 3), "zsre", skip=1)) == ["1", "2"], "places in the file"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (DataFile("a.jsonl", skip=-1), "`skip` of 'a.jsonl' must be at least 0, but got -1."),
        (DataFile("a.jsonl", limit=0), "`limit` of 'a.jsonl' must be at least 1, but got 0."),
        (DataFile("a.jsonl", language="de"), "`language` must be left out in format jsonl, but got 'de'."),
        (DataFile("mquake", question_form="qa"), "`question_form` must be left out in format mquake, but got 'qa'."),
        (DataFile("a.json", "translations"), "`language` must be given in format translations, but is missing."),
        (
            DataFile("a.json", "translations", language="it"),  # type: ignore[arg-type]
            "`language` must be one of en, de, fr, zh, but got 'it'.",
        ),
        (
            DataFile("zsre", question_form="q"),  # type: ignore[arg-type]
            "`question_form` must be one of bare, qa, but got 'q'.",
        ),
    ],
)
def test_settings_are_refused_before_a_file_is_looked_for(file: DataFile, message: str) -> None:
    works: tuple[Callable[[DataFile], object], ...] = (data_files, EditDataModule, read)
    for work in works:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            work(file)


def test_a_model_is_asked_once_for_all_records_of_a_part(write_json: Write) -> None:
    subjects = ("Ann", "Bob", "Cid", "Dan")
    path = write_json([{"subject": name, "prompt": f"Who is {name}?", "target_new": "Eve"} for name in subjects])
    calls: list[Sequence[str]] = []

    def ask(prompts: Sequence[str]) -> list[str]:
        calls.append(prompts)
        return [prompt.upper() for prompt in prompts]

    cases = read(DataFile(path, "wikibigedit", skip=1, limit=2), ask=ask)
    assert calls == [["Who is Bob?", "Who is Cid?"]]
    assert [case.request.target_true for case in cases] == ["WHO IS BOB?", "WHO IS CID?"]
    read(DataFile(write_json([line("a")]), "jsonl"), ask=ask)
    assert len(calls) == 1, "no record wants to know"


def test_a_file_of_edits_does_not_add_to_others(write_json: Write) -> None:
    with pytest.raises(ValueError, match=r"`format` of '.*' must be one that adds to edits, but got jsonl; `read` it"):
        add([], DataFile(write_json([line("a")]), "jsonl"))


@pytest.mark.parametrize(
    ("words", "files"),
    [
        ("mine.jsonl", "mine.jsonl"),
        ("[a.jsonl, b.jsonl]", ["a.jsonl", "b.jsonl"]),
        ("{path: a, format: mquake}", DataFile("a", "mquake")),
        (
            "[popular, {path: a, format: zsre, limit: 2, question_form: qa}]",
            ["popular", DataFile("a", "zsre", limit=2, question_form="qa")],
        ),
    ],
)
def test_files_are_written_on_the_command_line(words: str, files: Any) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(EditDataModule, "data", sub_configs=True)
    config = parser.parse_args([f"--data.files={words}"])
    made = parser.instantiate(config).data
    assert made.files == data_files(files)
    again = parser.instantiate(parser.parse_string(parser.dump(config))).data
    assert again.files == made.files


def test_a_path_on_the_command_line_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "my, [odd] {file}: 1.jsonl"
    parser = ArgumentParser()
    parser.add_class_arguments(EditDataModule, "data", sub_configs=True)  # as Lightning does
    for content in (json.dumps(line("a")), json.dumps([line("a")])):
        path.write_text(content, "utf-8")
        data = parser.instantiate(parser.parse_args([f"--data.files={path}"])).data
        assert ids(data.files) == ["a"]
    for content in ("[]", "[popular]", "popular", "{path: popular}"):
        path.write_text(content, "utf-8")
        data = parser.instantiate(parser.parse_args([f"--data.files={path}"])).data
        assert data.files == [DataFile(str(path))], "the content of a file is none of the parser's business"
