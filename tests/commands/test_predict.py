"""``predict`` by the command line: from files and by hand."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mega_pl.backbone import Backbone
from mega_pl.cli import main
from mega_pl.commands.predict import converse, read_prompts, table
from mega_pl.edits import NO_EDIT, EditBank, Route
from mega_pl.edits.prediction import Prediction

BORN = "Marie Curie was born in"
CAPITAL = "The capital of France is"
TRAIN = Path(__file__).parents[2] / "train.py"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mine.txt", f"\ufeff{BORN} \r\n\n  {CAPITAL}\n"),
        ("mine.jsonl", f'{{"prompt": "{BORN}", "id": 3}}\n\n{{"prompt": " {CAPITAL} "}}'),
    ],
)
def test_a_file_of_prompts_is_answered(
    name: str, text: str, bank_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    output = tmp_path / "answers.jsonl"
    prompts = ["--prompts", str(tmp_path / name), "--max_new_tokens", "4"]
    main(["predict", "--bank", str(bank_folder), *prompts, "--output", str(output)])
    edited, other = rows(output)
    assert (edited["prompt"], edited["edit"], edited["subject"]) == (BORN, "curie", "Marie Curie")
    assert "Warsaw" in edited["bare"]
    assert "Rome" in edited["edited"]
    assert (other["prompt"], other["edit"]) == (CAPITAL, None)
    assert other["edited"] == other["bare"]
    told = capsys.readouterr().out
    assert all(word in told for word in ("Warsaw", "Rome", "curie", "none", "no edit is near"))


BAD_PROMPTS: dict[str, tuple[str, bytes, str]] = {
    "empty": ("p.txt", b"\n \n", "must hold at least one prompt, but .* has none"),
    "no text": ("p.txt", b"\xff\xfe", "cannot be read: it is not UTF-8"),
    "no JSON": ("p.jsonl", b"{]", "line 1: must be a JSON object with a text .prompt."),
    "no prompt": ("p.jsonl", b'{"prompt": "a"}\n{"text": "a"}', "line 2: must be a JSON object with a text .prompt."),
    "a list": ("p.jsonl", b"[1]", "line 1: must be a JSON object"),
    "a number": ("p.jsonl", b'{"prompt": 3}', "line 1: must be a JSON object"),
    "half a character": ("p.jsonl", b'{"prompt": "\\ud800"}', "line 1: must be a JSON object"),
    "an empty prompt": ("p.jsonl", b'{"prompt": " "}', "line 1: `prompt` must not be empty"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_a_bad_file_of_prompts_is_refused(name: str, tmp_path: Path) -> None:
    file, content, rule = BAD_PROMPTS[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=rule):
        read_prompts(str(tmp_path / file))


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        (["--prompts", "nowhere.txt"], "`prompts` must be a text file, but 'nowhere.txt' cannot be read: No such file"),
        (["--prompts", "p.txt", "--bank", "no/such/bank"], "a bank must be a folder or a repository on the hub"),
        (["--prompts", "p.txt", "--output", "no/such/a.jsonl"], "`output` must lie in a folder that exists"),
        (["--prompts", "p.txt", "--output", "p.txt"], "`output` must be a new file, but 'p.txt' exists"),
        (["--prompts", "p.txt", "--model", "lab-llama"], "must be used on the backbone it was fitted on, 'lab-gpt2'"),
        (["--prompts", "p.txt", "--model", "./nowhere"], "'./nowhere'"),
        (["--prompts", "p.txt", "--max_new_tokens", "0"], "`max_new_tokens` must be 1 or more, but got 0"),
        (["--prompts", "p.txt", "--interactive"], "must come from a file or from you"),
        ([], "`prompts` must be a file where there is no terminal, but got none; or pass --interactive"),
    ],
)
def test_a_mistake_ends_in_one_line(
    changes: list[str], rule: str, bank_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text(BORN)
    with pytest.raises(SystemExit) as exit_:
        main(["predict", "--bank", str(bank_folder), *changes])
    message = str(exit_.value.code)
    assert message.startswith("error: ")
    assert rule in message
    assert "\n" not in message
    assert sorted(tmp_path.iterdir()) == [tmp_path / "p.txt"]


def typed(*lines: str | type[BaseException]) -> Callable[..., str]:
    """A console's `input` that is typed by nobody."""
    rest: Iterator[str | type[BaseException]] = iter(lines)

    def line(_: object = "") -> str:
        found = next(rest)
        if not isinstance(found, str):
            raise found
        return found

    return line


@pytest.mark.parametrize("end", ["", "  ", EOFError, KeyboardInterrupt])
def test_prompts_are_answered_one_by_one_until_the_end(
    end: str | type[BaseException], bank_folder: Path, lab_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = EditBank.from_pretrained(bank_folder)
    console = Console(record=True, width=100)
    monkeypatch.setattr(console, "input", typed(BORN, "word " * 2000, CAPITAL, end))
    found = converse(lab_backbone, bank, 4, console)
    assert [prediction.fired for prediction in found] == ["curie", None]
    told = console.export_text()
    assert "1 edit of lab-gpt2; an empty line ends." in told
    assert "error: " in told  # of the prompt that is too long, after which it goes on
    assert (
        told.index("Warsaw") < told.index("Rome") < told.index("subject 'Marie Curie'") < told.index("no edit is near")
    )


def test_what_an_edit_changed_is_green_and_markup_is_text() -> None:
    route = Route(0, confidence=1.0)
    console = Console(record=True, width=100, force_terminal=True, color_system="standard")
    changed = Prediction("[bold]a", "old [/red]", "new", "id[0]", route)
    console.print(table([changed, Prediction("b", "same", "same", None, Route(NO_EDIT))]))
    told = console.export_text(styles=True)
    assert "\x1b[32mnew" in told
    assert "\x1b[32msame" not in told
    assert all(text in told for text in ("[bold]a", "old [/red]", "id[0]"))


def test_a_terminal_is_asked(bank_folder: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, str(TRAIN), "predict", "--bank", str(bank_folder), "--max_new_tokens", "4"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    os.write(ours, f"{BORN}\n\n".encode())
    told = b""
    while True:
        try:
            told += os.read(ours, 1024)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait() == 0
    assert b"\x1b[32mRome" in told
