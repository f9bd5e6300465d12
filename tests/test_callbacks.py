"""The callbacks: what a run leaves behind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from mega_pl.callbacks import BankCheckpoint, ResultTable
from mega_pl.data.datamodule import EditDataModule
from mega_pl.fitting.prompts import PromptConfig
from mega_pl.module import MegaModule
from mega_pl.protocols.sake import sake_tests

Folder = Callable[[str], Path]
KEYS = ["acc", "gen", "spec", "di", "dii", "ci", "cii", "rs", "sa", "average"]


class Ran:
    """A finished fit, its data and the folder that it left."""

    def __init__(
        self, folder: Path, model: Path, edits: Path, *callbacks: L.Callback, protocols: Any = None, **options: Any
    ) -> None:
        self.folder = folder
        self.module = MegaModule(
            str(model),
            sites=["resid_mid.3"],
            prompts=PromptConfig(prefixes=1),
            modes=["own", "always"],
            seed=3,
            protocols=protocols,
        )
        self.data = EditDataModule(str(edits), edits_per_batch=2)
        self.trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=list(callbacks),
            **{"logger": False, "enable_checkpointing": False} | options,
        )
        self.trainer.fit(self.module, datamodule=self.data)


@pytest.fixture
def ran(roomy_folder: Folder, edits_file: Path, tmp_path: Path) -> Callable[..., Ran]:
    """`ran(*callbacks, **options)` fits the four edits in ``run/``."""

    def run(*callbacks: L.Callback, **options: Any) -> Ran:
        return Ran(tmp_path / "run", roomy_folder("gpt2"), edits_file, *callbacks, **options)

    return run


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_result_table_writes_its_files_and_no_others(
    ran: Callable[..., Ran], capsys: pytest.CaptureFixture[str]
) -> None:
    done = ran(ResultTable())
    assert files(done.folder) == {"metrics.json", "cases.jsonl", "figures/scores.png"}
    image = (done.folder / "figures" / "scores.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    assert len(image) > 5000
    printed = capsys.readouterr().out
    for row in (" | Acc | Gen | Spec |", "| own |", "| always |", "| bare model |", "| tests | 4 |"):
        assert row in printed


def test_other_protocols_have_tables_of_their_own(ran: Callable[..., Ran], capsys: pytest.CaptureFixture[str]) -> None:
    done = ran(ResultTable(), protocols=["rome", "sake"])
    metrics = json.loads((done.folder / "metrics.json").read_text())
    assert (metrics["protocol"], metrics["modes"]) == ("rome", {})
    assert metrics["metrics"]["efficacy_score"]["n"] == 4
    assert list(metrics["protocols"]) == ["own", "always"]
    assert "routing" not in metrics
    rows = [json.loads(line) for line in (done.folder / "cases.jsonl").read_text().splitlines()]
    assert {row.get("protocol") or row["mode"] for row in rows} == {"rome", "own", "always"}
    printed = capsys.readouterr().out
    for row in (", rome | efficacy_score | ", "| rome |", ", sake | Acc | Gen |", "| always |"):
        assert row in printed


def test_metrics_follow_the_promised_schema(ran: Callable[..., Ran]) -> None:
    done = ran(ResultTable())
    metrics = json.loads((done.folder / "metrics.json").read_text())
    fixed = {"format_version": 1, "protocol": "sake", "method": "mega", "edits": 4, "seed": 3}
    assert {name: metrics[name] for name in fixed} == fixed
    assert metrics["backbone"] == done.module.backbone.name
    assert metrics["backbone_fingerprint"] == done.module.backbone.fingerprint
    assert {"python", "mega_pl", "torch", "transformers", "lightning"} <= metrics["versions"].keys()
    assert metrics["sites"] == ["resid_mid.3"]
    assert list(metrics["modes"]) == ["always"]
    for scores in (metrics["metrics"], metrics["modes"]["always"]):
        assert list(scores) == KEYS
        for score in scores.values():
            assert score.keys() == {"value", "n", "ci95", "bare"}
            if score["n"]:
                assert 0 <= score["ci95"][0] <= score["value"] <= score["ci95"][1] <= 1
                assert 0 <= score["bare"] <= 1
            else:  # nan is no JSON
                assert (score["value"], score["bare"]) == (None, None)
    assert metrics["metrics"]["acc"]["n"] == 4
    silent = metrics["silent_prompts"]
    assert silent["n"] == silent["unchanged"] == sum(not row.fired for row in done.module.judging.rows["own"])


def test_cases_hold_a_row_for_every_test_and_mode(ran: Callable[..., Ran]) -> None:
    done = ran(ResultTable())
    lines = [json.loads(line) for line in (done.folder / "cases.jsonl").read_text().splitlines()]
    tests = [json.loads(json.dumps(asdict(test))) for case in done.data.cases for test in sake_tests(case)]
    assert len(lines) == 2 * len(tests)
    for mode in ("own", "always"):
        held = Counter(json.dumps(line["test"]) for line in lines if line["mode"] == mode)
        assert held == Counter(json.dumps(test) for test in tests)
    metrics = json.loads((done.folder / "metrics.json").read_text())["metrics"]
    for name in ("acc", "di", "dii"):  # measures that keep every test
        kept = [line for line in lines if line["mode"] == "own" and line["test"]["metric"] == name]
        hits = [any(_hit(line["prediction"], answer) for answer in line["test"]["answers"]) for line in kept]
        assert metrics[name]["n"] == len(kept)
        assert metrics[name]["value"] == pytest.approx(sum(hits) / len(hits))


def _hit(token: str, answer: str) -> bool:
    return bool(token.strip()) and answer.startswith(token.strip())


def test_folder_and_logger_are_used(ran: Callable[..., Ran], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    logger = TensorBoardLogger(tmp_path, name="events", version="")
    done = ran(
        ResultTable(folder=str(elsewhere / "table")), BankCheckpoint(folder=str(elsewhere)), logger=logger,
        enable_checkpointing=True, log_every_n_steps=1,
    )  # fmt: skip
    assert {"edits/edit_model.safetensors", "last.ckpt", "table/metrics.json"} <= files(elsewhere)
    assert not files(done.folder)
    (events,) = (tmp_path / "events").glob("events.out.tfevents.*")
    content = events.read_bytes()
    assert b"val/acc" in content
    assert b"scores" in content


def test_a_trial_run_writes_nothing(ran: Callable[..., Ran]) -> None:
    done = ran(BankCheckpoint(), ResultTable(), fast_dev_run=True, enable_checkpointing=True)
    assert not files(done.folder)


def test_bank_checkpoint_saves_every_few_batches(ran: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    save = L.Trainer.save_checkpoint

    def watch(self: L.Trainer, path: Path, *args: Any, **kwargs: Any) -> None:
        assert isinstance(self.lightning_module, MegaModule)
        saved.append(len(self.lightning_module.fitter.fitted))
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(L.Trainer, "save_checkpoint", watch)
    done = ran(BankCheckpoint(every_n_batches=2), enable_checkpointing=True)
    assert saved == [4, 4]  # after both batches, and at the end with the bank
    bank = {f"edits/{name}" for name in ("edit_model.safetensors", "edit_config.json", "README.md")}
    assert files(done.folder) == bank | {"last.ckpt"}


def test_bank_checkpoint_refuses_an_interval_below_one() -> None:
    with pytest.raises(ValueError, match="`every_n_batches` must be at least 1, but got 0"):
        BankCheckpoint(every_n_batches=0)
