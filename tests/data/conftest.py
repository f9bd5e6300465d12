"""Hand-made records and the folder of real ones."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from mega_pl.data import Cases, DataFile, add, read
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
def ripples(shared_data: Path) -> list[EditCase]:
    """Popular in RippleEdits' layout."""
    return read(DataFile(shared_data / "popular" / "popular_rippleedits.json", "rippleedits"))


@pytest.fixture(scope="session")
def knowedits(shared_data: Path) -> list[EditCase]:
    """Popular in KnowEdit's layout."""
    return read(DataFile(shared_data / "popular" / "popular_knowedit.jsonl", "knowedit"))


@pytest.fixture(scope="session")
def counterfacts(shared_data: Path) -> Cases:
    """CounterFact with EasyEdit's portability questions and aliases."""
    folder = shared_data / "counterfact"
    cases = read(DataFile(folder / "counterfact.json", "counterfact"))
    cases = add(cases, DataFile(folder / "counterfact_portability.json", "portability"))
    return add(cases, DataFile(folder / "counterfact_subject_alias.json", "aliases"))


@pytest.fixture(scope="session")
def easyedits(shared_data: Path) -> Cases:
    """CounterFact in EasyEdit's layout."""
    return read(DataFile(shared_data / "counterfact" / "counterfact_easyedit.json", "easyedit"))


@pytest.fixture(scope="session")
def zsres(shared_data: Path) -> Cases:
    """Those zsRE records that change something."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a test of its own reads what is left out
        return read(DataFile(shared_data / "zsre" / "zsre_eval.json", "zsre"), on_bad="skip")


@pytest.fixture(scope="session")
def real_cases(
    counterfacts: Cases,
    easyedits: Cases,
    ripples: list[EditCase],
    knowedits: list[EditCase],
    zsres: Cases,
) -> dict[str, list[EditCase]]:
    """All real cases by the file that they come from."""
    return {
        "counterfact": counterfacts,
        "easyedit": easyedits,
        "rippleedits": ripples,
        "knowedit": knowedits,
        "zsre": zsres,
    }
