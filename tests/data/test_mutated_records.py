"""A thousand damaged records for each reader: read, or refused in a line that names the file and the record."""

from __future__ import annotations

import json
import random
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from mega_pl.data import DataFile, read
from mega_pl.data.readers.jsonl import EXAMPLE
from mega_pl.errors import MegaError
from tests.data.test_counterfact import record as counterfact
from tests.data.test_easyedit import FLAT
from tests.data.test_mquake import RECORD as MQUAKE
from tests.data.test_popular import axis, query, ripple
from tests.data.test_wikibigedit import RECORD as WIKIBIGEDIT
from tests.data.test_zsre import RECORD as ZSRE

RECORDS = 1000
KNOWEDIT: dict[str, Any] = {
    "subject": "Ann Lee",
    "prompt": "The name of the spouse of Ann Lee is",
    "target_new": "Tom Roe",
    "ground_truth": ["Max Poe"],
    "portability": {"Subject_Aliasing": [{"prompt": "The spouse of A. Lee is", "ground_truth": [["Tom Roe"]]}]},
    "locality": {"Relation_Specificity": [{"prompt": "The child of Ann Lee is", "ground_truth": [["Bo Lee"]]}]},
}
RIPPLE = ripple(Relation_Specificity=axis([query("The child of Ann Lee is", ["Bo Lee"])]))
FORMATS: dict[str, dict[str, Any]] = {
    "counterfact": counterfact(),
    "easyedit": FLAT,
    "jsonl": dict(EXAMPLE[0]),
    "knowedit": KNOWEDIT,
    "mquake": MQUAKE,
    "rippleedits": RIPPLE,
    "wikibigedit": WIKIBIGEDIT,
    "zsre": ZSRE,
}
JUNK: list[Any] = [
    *(None, True, -1, 0, 10**400, 1e999, 0.5, [], {}, [[]], {"str": None}, [None], "", " ", "\x00", "{}", "{} {}"),
    *("\ud83d", "x" * 100_000, "\u202e", "../x", "a\nb", ["a", 1], {"a": {"b": {}}}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def mutated(draw: random.Random, record: dict[str, Any]) -> Any:
    """A record with another value somewhere, or without one, or with one more."""
    changed = json.loads(json.dumps(record))
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        path = draw.choice(places(changed))
        if not path:
            continue
        inside = changed
        for key in path[:-1]:
            inside = inside[key]
        way = draw.choice(["junk", "junk", "junk", "missing", "more", "wrapped"])
        if way == "junk":
            inside[path[-1]] = deepcopy(draw.choice(JUNK))
        elif way == "wrapped":
            inside[path[-1]] = [inside[path[-1]]]
        elif way == "missing":
            del inside[path[-1]]
        elif isinstance(inside, dict):
            inside[draw.choice(["", "edit_id", "case_id", "subject", "colour"])] = deepcopy(draw.choice(JUNK))
    return changed


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_records_are_read_or_named(name: str, tmp_path: Path) -> None:
    record, path = FORMATS[name], tmp_path / ("records.jsonl" if name == "jsonl" else "records.json")
    file = DataFile(path, name)
    taken = refused = 0
    for seed in range(RECORDS):
        value = mutated(random.Random(seed), record)
        text = json.dumps(value)
        path.write_text(text if name == "jsonl" else f"[{text}]", encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                read(file, ask=lambda prompts: ["nothing" for prompt in prompts])
            except MegaError as error:
                refused += 1
                line = str(error)
                assert str(path) in line, (seed, line[:300])
                assert "\n" not in line, (seed, line[:300])
                assert len(line) < 1000, (seed, len(line))
            else:
                taken += 1
            skipped = read(file, on_bad="skip", ask=lambda prompts: ["nothing" for prompt in prompts])
            assert len(skipped) or skipped.refusals, seed  # what is left out is counted
    assert taken > RECORDS / 20
    assert refused > RECORDS / 20
