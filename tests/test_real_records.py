"""Fifty real records of each benchmark, from file to tables, on a random model: everything works, by chance only."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mega_pl.cli import main

FILES = {
    "counterfact": ("gpt2", "counterfact", "counterfact/counterfact.json"),
    "popular": ("llama", "rippleedits", "popular/popular_rippleedits.json"),
}
CHANCE: dict[str, dict[str, tuple[float, float]]] = {
    "sake": {"acc": (0, 0.12), "gen": (0, 0.12), "di": (0, 0.12), "dii": (0, 0.12)},
    "rome": {"efficacy_score": (0.25, 0.75), "paraphrase_score": (0.25, 0.75), "rewrite_exact": (0, 0)},
    "easyedit": {"rewrite_acc": (0, 0.12), "rephrase_acc": (0, 0.12)},
    "rippleedits": {"edit_success": (0, 0.05)},
    "generation": {"rewrite_exact_sentence": (0, 0.12)},
}
ABSENT = {"counterfact": {"edit_success"}, "popular": {"gen", "paraphrase_score", "rephrase_acc"}}
"""What the records do not ask."""


@pytest.mark.parametrize("name", FILES)
def test_fifty_real_records(name: str, roomy_folder: Callable[[str], Path], tmp_path: Path) -> None:
    shared = Path(os.environ.get("MEGA_PL_SHARED", Path(__file__).parents[2] / "shared"))
    model_type, format, file = FILES[name]
    if not (shared / "data" / file).is_file():
        pytest.skip(f"no real records in {shared}; set MEGA_PL_SHARED to the folder that holds them")
    data = {"files": [{"path": str(shared / "data" / file), "format": format}], "limit": 50, "relation_phrasings": True}
    mega = {"sites": ["resid_mid.2", "resid_mid.3"], "prompts": {"prefixes": 1}}
    config = {
        "folder": str(tmp_path / "run"),
        "backbones": [{"model_name_or_path": str(roomy_folder(model_type))}],
        "data": {name: {"class_path": "mega_pl.data.datamodule.EditDataModule", "init_args": data}},
        "protocols": list(CHANCE),
        "modes": ["batch"],
        "editors": {"MEGA": {"class_path": "mega_pl.editors.Mega", "init_args": {"config": mega}}},
    }
    path = tmp_path / "compare.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    main(["compare", "--config", str(path)])
    results = json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))["results"]
    assert {result["protocol"]: result["edits"] for result in results} == dict.fromkeys(CHANCE, 50)
    told = {result["protocol"]: result["metrics"] for result in results}
    for protocol, columns in CHANCE.items():
        for column, (least, most) in columns.items():
            score = told[protocol][column]
            assert (score["n"] == 0) == (column in ABSENT[name]), (protocol, column)
            for side in ("value", "bare"):
                assert not score["n"] or least <= score[side] <= most, (protocol, column, side, score)
