"""Imports point down only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mega_pl"
ROOMS = [
    "functional",
    "backbone",
    "asking",
    "edits",
    "data",
    "aliasing",
    "supposing",
    "outcomes",
    "metrics",
    "fitting",
    "refining",
    "editors",
    "evaluation",
    "attribution",
    "comparison",
    "lab",
    "module",
    "callbacks",
    "commands",
    "cli",
]
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
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert [name for name in imported(path.read_text("utf-8")) if LEVEL[name] > LEVEL[room]] == []


def test_an_import_is_seen_in_every_form() -> None:
    forms = (
        "import mega_pl.lab.data\nfrom mega_pl import cli\ndef f():\n    from ..module import MegaModule\nimport torch"
    )
    assert sorted(imported(forms)) == ["cli", "lab", "module"]
    assert list(imported("from .bank import EditBank\nfrom .. import callbacks")) == ["callbacks"]
