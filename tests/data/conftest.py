"""Hand-made records and the folder of real ones."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from mega_pl.data import (
    Cases,
    add_aliases,
    add_portability,
    read_counterfact,
    read_easyedit,
    read_knowedit,
    read_rippleedits,
    read_zsre,
)
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
    return read_rippleedits(shared_data / "popular" / "popular_rippleedits.json")


@pytest.fixture(scope="session")
def knowedits(shared_data: Path) -> list[EditCase]:
    """Popular in KnowEdit's layout."""
    return read_knowedit(shared_data / "popular" / "popular_knowedit.jsonl")


@pytest.fixture(scope="session")
def counterfacts(shared_data: Path) -> Cases:
    """CounterFact with EasyEdit's portability questions and aliases."""
    folder = shared_data / "counterfact"
    cases = read_counterfact(folder / "counterfact.json")
    cases = add_portability(cases, folder / "counterfact_portability.json")
    return add_aliases(cases, folder / "counterfact_subject_alias.json")


@pytest.fixture(scope="session")
def easyedits(shared_data: Path) -> Cases:
    """CounterFact in EasyEdit's layout."""
    return read_easyedit(shared_data / "counterfact" / "counterfact_easyedit.json")


@pytest.fixture(scope="session")
def zsres(shared_data: Path) -> Cases:
    """Those zsRE records that change something."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a test of its own reads what is left out
        return read_zsre(shared_data / "zsre" / "zsre_eval.json", on_bad="skip")


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
