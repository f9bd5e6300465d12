"""What README and docs say holds: their Python runs and prints what its comments say, their commands are understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from mega_pl.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted(DOCS.glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path, start: str) -> list[list[str]]:
    """The commands of a page that begin so, in blocks and in running text, word by word."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines += re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    lines += [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", text)]
    lines = [re.sub(r"^(\w+=\w+ )*", "", line) for line in lines]
    return [shlex.split(line, comments=True)[1:] for line in dict.fromkeys(lines) if line.startswith(start)]


def said(block: str) -> list[str]:
    """What a block says that it prints: comments behind `print`, and those on lines of their own below a loop."""
    found = re.findall(r"^ *(?:print\(.*\)  |(?<=\n) +)# (.*)$", block, re.MULTILINE)
    return [line.rstrip() for line in found]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_the_python_of_a_page_runs_and_prints_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for lines in blocks(page, "json"):
        (tmp_path / "edits.jsonl").write_text(lines, encoding="utf-8")
    names: dict[str, Any] = {"__name__": page.stem}
    capsys.readouterr()
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)
        printed = iter(capsys.readouterr().out.splitlines())
        for line in said(block):
            assert line in printed, f"{page.name} says {line!r}, which its code does not print"


def test_what_is_said_is_found() -> None:
    block = 'print(1)  # 1\nfor x in y:\n    print(x)\n    # [2] a\nz = 1  # no output\nprint("a")  #  a\n'
    assert said(block) == ["1", "[2] a", " a"]
    assert commands(ROOT / "README.md", "python train.py")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_understood(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    for _, verb, *words in commands(page, "python train.py "):
        with pytest.raises(SystemExit) as exit_:
            main([verb, *words] if words == ["--help"] else [verb, *words, "--print_config"])
        assert not exit_.value.code, f"{verb} {' '.join(words)}: {capsys.readouterr().err}"
    for script, *words in commands(page, "python benchmarks/"):
        source = (ROOT / script).read_text("utf-8")
        assert [word for word in words if word.startswith("--") and f'"{word}"' not in source] == [], script
        assert [word for word in words if word.startswith("configs/") and not (ROOT / word).is_file()] == [], script


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
    assert [link for link in links if ":" not in link and not (page.parent / link).exists()] == []


def test_the_index_has_every_page_and_the_readme_is_short() -> None:
    index = (DOCS / "README.md").read_text("utf-8")
    assert [
        page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"]({page.name})" not in index
    ] == []
    assert len((ROOT / "README.md").read_bytes()) < 12_000
