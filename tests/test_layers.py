"""Imports point down only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mega_pl"
ROOMS = [
    "errors",
    "functional",
    "backbone",
    "asking",
    "edits",
    "data",
    "fitting",
    "editors",
    "protocols",
    "attribution",
    "compare",
    "lab",
    "look",
    "judging",
    "module",
    "callbacks",
    "commands",
    "cli",
]
UP = [("edits/bank.py", "fitting")]
"""The one import that points up: a bank grows by fitting, and what fits makes banks."""
LEVEL = {room: level for level, room in enumerate(ROOMS)}


def imported(source: str) -> Iterator[str]:
    """The rooms that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            start = "mega_pl." * (node.level == 2) + (node.module or "") if node.level != 1 else ""
            names = [f"{start.rstrip('.')}.{name}" for name in names]
        yield from (name.split(".")[1] for name in names if name.startswith("mega_pl."))


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/**/*.py")) + sorted(PACKAGE.glob("[!_]*.py")), ids=str)
def test_imports_point_down(path: Path) -> None:
    place = path.relative_to(PACKAGE)
    room = place.parts[0].removesuffix(".py")
    up = [name for name in imported(path.read_text("utf-8")) if LEVEL[name] > LEVEL[room]]
    assert up == [name for origin, name in UP if origin == place.as_posix()]


def test_an_import_is_seen_in_every_form() -> None:
    forms = (
        "import mega_pl.lab.data\nfrom mega_pl import cli\ndef f():\n    from ..module import MegaModule\nimport torch"
    )
    assert sorted(imported(forms)) == ["cli", "lab", "module"]
    assert list(imported("from .bank import EditBank\nfrom .. import callbacks")) == ["callbacks"]
