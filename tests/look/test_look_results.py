"""The rows of a run, whatever left it, found by editor, measure, outcome and words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mega_pl.errors import MegaValueError
from mega_pl.look.results import OUTCOMES, SHOWN, cells, chosen, editor_of, open_run, runs, texts_of

FIT = {
    "mode": "own",
    "test": {"edit_id": "a", "prompt": "P is"},
    "bare_prediction": " x",
    "prediction": " y",
    "fired": "a",
}
WILD = {
    "backbone": "m", "data": "d", "mode": "single", "edits": 2, "method": "MEGA", "protocol": "wild",
    "test": {"edit_id": "b", "wording": "Q?"},
    "bare": {"text": "no", "fired": ""}, "edited": {"text": "no", "fired": "b"},
}  # fmt: skip
METRICS = {"metrics": {"acc": {"value": 0.5, "bare": 0.0, "n": 2}}, "modes": {"oracle": {"acc": {"value": None}}}}


def written(folder: Path, rows: list[dict[str, Any]], metrics: object = METRICS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def test_a_fit_has_its_table_made_and_a_comparison_its_own(tmp_path: Path) -> None:
    run = open_run(str(written(tmp_path / "fit", [FIT])))
    assert run.table.splitlines()[2:] == [
        "| bare model | 0.000 |",
        "| own | 0.500 |",
        "| oracle | - |",
        "| tests | 2 |",
    ]
    folder = written(tmp_path / "comparison", [WILD], {"results": []})
    (folder / "table.md").write_text("| own |", "utf-8")
    assert open_run(str(folder)).table == "| own |"


def test_rows_are_read_in_every_protocols_words() -> None:
    assert texts_of(FIT) == ("P is", " x", " y", "a")
    assert texts_of(WILD) == ("Q?", "no", "no", "b")
    assert texts_of({"bare": {"texts": ["a", "b"]}, "edited": {"score": 1}}) == ("", "a | b", '{"score": 1}', "")
    assert (editor_of(FIT), editor_of(WILD)) == ("own", "MEGA · d · single 2 · wild")


def test_rows_are_chosen(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {**FIT, "outcomes": {"acc": 1.0}},
        {**FIT, "outcomes": {"acc": 0.0}},
        {**WILD, "outcomes": {"exact": 1.0, "old": 0.0}},
        {**WILD, "outcomes": {}},
    ]
    run = open_run(str(written(tmp_path, rows)))
    assert run.editors == ["own", "MEGA · d · single 2 · wild"]
    assert run.measures == ["acc", "exact", "old"]
    assert chosen(run) == [0, 1, 2, 3]
    assert chosen(run, "own", "acc", "right") == [0]
    assert chosen(run, outcome="wrong") == [1, 2]
    assert chosen(run, measure="exact", outcome="right") == [2]
    assert chosen(run, outcome="changed by the edit") == [0, 1]
    assert chosen(run, words=" q? ") == [2, 3]
    assert set(OUTCOMES) == {"all", "right", "wrong", "changed by the edit"}
    assert cells(run, [1]) == [[2, "own", "a", "acc 0", "P is", " x", " y", "a"]]
    assert len(cells(run, [0] * (SHOWN + 1))) == SHOWN


def test_a_run_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    folder = written(tmp_path, [FIT])
    assert len(open_run(str(folder)).rows) == 1
    written(folder, [FIT, FIT])
    os.utime(folder / "cases.jsonl", ns=(1, 1))
    assert len(open_run(str(folder)).rows) == 2


def test_runs_are_found_the_latest_first(tmp_path: Path) -> None:
    for i, name in enumerate(("old", "new")):
        os.utime(written(tmp_path / name, [FIT]) / "cases.jsonl", (i, i))
    (tmp_path / "empty").mkdir()
    assert runs(tmp_path) == [str(tmp_path / "new"), str(tmp_path / "old")]
    assert runs(tmp_path / "nowhere") == []


BAD = ["{", '{"a": 1}\n[', "\xff", "5", "null", "[1]", '{"test": null}', '{"test": "x"}', '{"outcomes": null}',
       '{"outcomes": {"a": "x"}}', '{"method": "m"}', "[" * 100_000]  # fmt: skip


@pytest.mark.parametrize("damage", BAD, ids=[text[:24] for text in BAD])
def test_what_is_no_run_is_refused_in_a_line(tmp_path: Path, damage: str) -> None:
    for folder in ("", "  ", str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(MegaValueError, match=r"must hold metrics\.json and cases\.jsonl"):
            open_run(folder)
    written(tmp_path, [FIT])
    (tmp_path / "cases.jsonl").write_text(damage, "latin-1")
    with pytest.raises(MegaValueError, match="must be whole"):
        open_run(str(tmp_path))
    (tmp_path / "cases.jsonl").write_text("\n" + json.dumps(FIT) + "\n\n", "utf-8")
    assert len(open_run(str(tmp_path)).rows) == 1
    written(tmp_path, [FIT], {"metrics": []})
    with pytest.raises(MegaValueError, match="must be whole"):
        open_run(str(tmp_path))
