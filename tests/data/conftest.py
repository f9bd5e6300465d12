"""Hand-made records and the folder of real ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mega_pl.data import read_knowedit, read_rippleedits
from mega_pl.edits.request import EditCase

Write = Callable[[object], Path]


@pytest.fixture
def write_json(tmp_path: Path) -> Write:
    """`write_json(value)` saves a value and returns the file."""

    def write(value: object) -> Path:
        path = tmp_path / "records.json"
        path.write_text(json.dumps(value), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real benchmark records, which is not part of the package."""
    shared = Path(os.environ.get("MEGA_PL_SHARED", Path(__file__).parents[3] / "shared"))
    folder = shared / "data"
    if not folder.is_dir():
        pytest.skip(f"no real records in {folder}; set MEGA_PL_SHARED to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def ripples(shared_data: Path) -> list[EditCase]:
    """Popular in RippleEdits' layout."""
    return read_rippleedits(shared_data / "popular" / "popular_rippleedits.json")


@pytest.fixture(scope="session")
def knowedits(shared_data: Path) -> list[EditCase]:
    """Popular in KnowEdit's layout."""
    return read_knowedit(shared_data / "popular" / "popular_knowedit.jsonl")
