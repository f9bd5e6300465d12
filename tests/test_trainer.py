"""Fits in the Trainers that people have: by default, with their own callbacks, several processes, and gone on with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from mega_pl.callbacks import BankCheckpoint, EditsInForce, ResultTable
from mega_pl.data.datamodule import EditDataModule
from mega_pl.edits import EditBank, EditRequest
from mega_pl.edits.storage import bank_tensors
from mega_pl.fitting import PromptConfig, fit_maps
from mega_pl.fitting.shards import read_shards
from mega_pl.module import MegaModule

Make = Callable[..., Any]
pytestmark = [
    pytest.mark.filterwarnings("ignore:`max_epochs` was not set"),  # which is Lightning's default
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks"),
]


@pytest.fixture
def module(roomy_folder: Callable[[str], Path]) -> Make:
    def make(**options: Any) -> MegaModule:
        defaults: dict[str, Any] = {"sites": ["resid_mid.2", "resid_mid.3"], "prompts": PromptConfig(prefixes=1)}
        return MegaModule(str(roomy_folder("gpt2")), **defaults | options)

    return make


@pytest.fixture
def data(edits_file: Path) -> Make:
    def make(**options: Any) -> EditDataModule:
        return EditDataModule(str(edits_file), **{"edits_per_batch": 1} | options)

    return make


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The edits whose maps were fitted, in their order."""
    fitted: list[str] = []

    def watch(backbone: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        fitted.append(prompts.edit_id)
        return fit_maps(backbone, prompts, *args, **kwargs)

    monkeypatch.setattr("mega_pl.fitting.fitter.fit_maps", watch)
    return fitted


def trainer(folder: Path, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), **quiet | options)


def assert_same(a: EditBank | None, b: EditBank | None) -> None:
    assert a is not None
    assert b is not None
    assert a.requests == b.requests
    tensors, others = bank_tensors(a), bank_tensors(b)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


IDS = ["france", "germany", "darrieux", "italy"]


def test_a_default_trainer_fits_every_edit_once(module: Make, data: Make, tmp_path: Path, fits: list[str]) -> None:
    """Sanity checks, no number of epochs, Lightning's own checkpoints and logger."""
    fitted = module()
    run = L.Trainer(accelerator="cpu", default_root_dir=tmp_path)
    run.fit(fitted, datamodule=data())
    assert fits == IDS
    assert run.current_epoch == 1
    assert list(fitted.bank.ids) == IDS
    assert "val/acc" in run.callback_metrics


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 3},
        {"max_steps": 100},
        {"val_check_interval": 1},
        {"limit_val_batches": 0},
        {"enable_checkpointing": False},
        {"barebones": True, "logger": None, "enable_progress_bar": None, "enable_model_summary": None},
    ],
    ids=str,
)
def test_the_flags_of_a_trainer(
    options: dict[str, Any], module: Make, data: Make, tmp_path: Path, fits: list[str]
) -> None:
    fitted, whole = module(), module()
    trainer(tmp_path / "whole", max_epochs=1).fit(whole, datamodule=data())
    fits.clear()
    trainer(tmp_path, **options).fit(fitted, datamodule=data())
    assert fits == IDS
    assert_same(fitted.bank, whole.bank)


def test_validation_inside_the_epoch_asks_of_what_is_fitted(module: Make, data: Make, tmp_path: Path) -> None:
    seen = []

    class Watch(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            assert isinstance(pl_module, MegaModule)
            seen.append({row.test.edit_id for row in pl_module.judging.rows.get("own", [])})

    trainer(tmp_path, Watch(), val_check_interval=2, num_sanity_val_steps=2).fit(
        module(modes=["own", "oracle"]), datamodule=data()
    )
    assert seen == [set(), set(IDS[:2]), set(IDS)]  # the first is the sanity check


def test_a_second_fit_adds_edits(module: Make, data: Make, tmp_path: Path, fits: list[str]) -> None:
    fitted, whole = module(), module()
    trainer(tmp_path / "whole").fit(whole, datamodule=data())
    fits.clear()
    trainer(tmp_path / "a").fit(fitted, datamodule=data(limit=2))
    assert list(fitted.bank.ids) == IDS[:2]
    trainer(tmp_path / "b").fit(fitted, datamodule=data())
    assert fits == IDS
    assert_same(fitted.bank, whole.bank)


def test_own_checkpoints_loggers_and_early_stopping(module: Make, data: Make, tmp_path: Path) -> None:
    fitted = module()
    best = ModelCheckpoint(dirpath=tmp_path / "best", monitor="val/acc", mode="max", filename="best")
    stopping = EarlyStopping(monitor="val/acc", mode="max")
    run = trainer(tmp_path, best, stopping, logger=CSVLogger(tmp_path), max_epochs=2)
    run.fit(fitted, datamodule=data())
    assert "val/acc" in (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    judged = module()
    trainer(tmp_path).test(judged, datamodule=data(), ckpt_path=best.best_model_path, verbose=False)
    assert_same(judged.bank, fitted.bank)
    assert judged.judging.rows == fitted.judging.rows


@pytest.mark.parametrize("precision", ["16-true", "bf16-mixed", "64-true"])
def test_another_precision_is_refused(precision: Any, module: Make, data: Make, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"`precision` of the Trainer must be 32-true, but got {precision}; .*`dtype`"
    ):
        trainer(tmp_path, precision=precision).fit(module(), datamodule=data())


def killed(module: Make, data: Make, folder: Path, after: int, **options: Any) -> None:
    """Leave a fit behind that was broken off after some edits."""
    with pytest.raises(RuntimeError, match="killed"):
        trainer(folder, BankCheckpoint(), KillAt(after)).fit(module(**options), datamodule=data())


@pytest.mark.parametrize("finished", [False, True])
def test_what_is_new_or_changed_is_fitted_and_what_is_not_stays(
    finished: bool, module: Make, data: Make, tmp_path: Path, fits: list[str]
) -> None:
    if finished:
        trainer(tmp_path, BankCheckpoint()).fit(module(), datamodule=data(limit=3))
    else:
        killed(module, data, tmp_path, 3)
    fits.clear()
    changed = data()
    changed.setup("fit")
    case = changed.cases[1]
    changed.cases[1] = replace(case, request=replace(case.request, target_new="Athens"))
    resumed, whole = module(), module()
    trainer(tmp_path, BankCheckpoint()).fit(resumed, datamodule=changed, ckpt_path=tmp_path / "last.ckpt")
    assert fits == ["germany", "italy"]
    trainer(tmp_path / "whole").fit(whole, datamodule=changed)
    assert_same(resumed.bank, whole.bank)
    assert_same(EditBank.from_pretrained(tmp_path / "edits"), whole.bank)


class KillAt(L.Callback):
    """Ends a fit in an error when a batch comes."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.batch:
            raise RuntimeError("killed")


def test_a_fit_killed_after_a_validation_goes_on(module: Make, data: Make, tmp_path: Path, fits: list[str]) -> None:
    """A bank of what had been fitted by then is not the bank of the run."""
    whole, resumed = module(), module()
    trainer(tmp_path / "whole").fit(whole, datamodule=data())
    fits.clear()
    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path, BankCheckpoint(), KillAt(3), val_check_interval=1).fit(module(), datamodule=data())
    trainer(tmp_path, BankCheckpoint()).fit(resumed, datamodule=data(), ckpt_path="last")
    assert fits == IDS
    assert_same(resumed.bank, whole.bank)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_finished_run_that_grows_may_be_killed_too(
    elsewhere: bool, module: Make, data: Make, tmp_path: Path, fits: list[str]
) -> None:
    whole, resumed, first = module(), module(), tmp_path / "first"
    trainer(tmp_path / "whole").fit(whole, datamodule=data())
    fits.clear()
    trainer(first, BankCheckpoint()).fit(module(), datamodule=data(limit=2))
    folder = tmp_path / "second" if elsewhere else first
    for batch in (1, 3):
        last = folder / "last.ckpt" if (folder / "last.ckpt").exists() else first / "last.ckpt"
        with pytest.raises(RuntimeError, match="killed"):
            trainer(folder, BankCheckpoint(), KillAt(batch)).fit(module(), datamodule=data(), ckpt_path=last)
    trainer(folder, BankCheckpoint()).fit(resumed, datamodule=data(), ckpt_path=folder / "last.ckpt")
    assert fits == IDS  # each once
    assert_same(resumed.bank, whole.bank)
    assert not (folder / "fitted").exists()


def test_what_another_process_has_fitted_anew_wins_over_what_was_fitted_before(
    module: Make, data: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted, edits = module(), data()
    trainer(tmp_path, max_epochs=1).fit(fitted, datamodule=edits)
    old = fitted.fitter.fitted["germany"]
    anew = replace(old, request=replace(old.request, target_new="Athens"))
    sent: list[list[str]] = []

    def gather(parts: list[Any], own: list[Any]) -> None:
        sent.append([edit.request.edit_id for edit in own])
        parts[:] = [own, [anew]]

    again = module()
    again.fitter.keep(fitted.fitter.fitted.values())  # as from a checkpoint
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    again._gather()
    assert sent == [[]]  # it has fitted nothing itself
    assert again.fitter.fitted["germany"] is anew
    assert again.fitter.fitted["france"] is fitted.fitter.fitted["france"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prompts": PromptConfig(prefixes=2)}, r"`prompts` must be what the checkpoint's edits were fitted with"),
        (
            {"sites": ["resid_mid.3"]},
            r"`sites` must be what .*, resid_mid.2, resid_mid.3",
        ),
        ({"model_name_or_path": "lab-gpt2"}, r"`layers` must be what the checkpoint's edits were fitted with, 4"),
    ],
    ids=str,
)
def test_other_settings_are_refused(
    options: dict[str, Any], reason: str, roomy_folder: Callable[[str], Path], module: Make, data: Make, tmp_path: Path
) -> None:
    killed(module, data, tmp_path, 2)
    defaults: dict[str, Any] = {
        "model_name_or_path": str(roomy_folder("gpt2")),
        "sites": ["resid_mid.2", "resid_mid.3"],
        "prompts": PromptConfig(prefixes=1),
    }
    with pytest.raises(ValueError, match=reason):
        trainer(tmp_path, BankCheckpoint()).fit(
            MegaModule(**defaults | options), datamodule=data(), ckpt_path=tmp_path / "last.ckpt"
        )


def test_a_run_without_a_checkpoint_begins_anew(module: Make, data: Make, tmp_path: Path, fits: list[str]) -> None:
    killed(module, data, tmp_path, 3)
    assert len(read_shards(tmp_path / "fitted")) == 3
    fits.clear()
    trainer(tmp_path, BankCheckpoint()).fit(module(), datamodule=data(limit=2))
    assert fits == IDS[:2]
    assert list(EditBank.from_pretrained(tmp_path / "edits").ids) == IDS[:2]


def test_what_an_abandoned_run_has_left_does_not_come_back(module: Make, data: Make, tmp_path: Path) -> None:
    killed(module, data, tmp_path, 3)
    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path, BankCheckpoint(), KillAt(1)).fit(module(), datamodule=data(limit=2))
    trainer(tmp_path, BankCheckpoint()).fit(module(), datamodule=data(limit=2), ckpt_path="last")
    assert list(EditBank.from_pretrained(tmp_path / "edits").ids) == IDS[:2]


def test_a_moved_run_goes_on(module: Make, data: Make, tmp_path: Path, fits: list[str]) -> None:
    killed(module, data, tmp_path / "here", 2)
    (tmp_path / "here").rename(tmp_path / "there")
    fits.clear()
    trainer(tmp_path / "there", BankCheckpoint()).fit(module(), datamodule=data(), ckpt_path="last")
    assert fits == IDS[2:]


def test_a_damaged_shard_is_named(module: Make, data: Make, tmp_path: Path) -> None:
    killed(module, data, tmp_path, 2)
    shard = sorted((tmp_path / "fitted").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{shard.name} must hold fitted edits, but .*; delete it"):
        trainer(tmp_path, BankCheckpoint()).fit(module(), datamodule=data(), ckpt_path="last")


def test_two_runs_in_one_folder_are_refused(module: Make, data: Make, tmp_path: Path) -> None:
    class Second(L.Callback):
        def on_train_batch_start(
            self, run: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 1:
                with pytest.raises(ValueError, match="`folder` must belong to one run at a time, but another one"):
                    trainer(tmp_path, BankCheckpoint()).fit(module(), datamodule=data())

    trainer(tmp_path, BankCheckpoint(), Second()).fit(module(), datamodule=data())
    assert list(EditBank.from_pretrained(tmp_path / "edits").ids) == IDS
    assert not (tmp_path / ".lock").exists()


def test_checkpoints_do_not_grow(module: Make, data: Make, tmp_path: Path) -> None:
    sizes = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, n: int) -> None:
            if n:
                sizes.append((tmp_path / "last.ckpt").stat().st_size)

    trainer(tmp_path, BankCheckpoint(), Watch()).fit(module(), datamodule=data())
    assert len(sizes) == 3
    assert max(sizes) - min(sizes) < 100


SCRIPT = """
import sys
import lightning as L
from mega_pl.callbacks import BankCheckpoint, ResultTable
from mega_pl.data.datamodule import EditDataModule
from mega_pl.fitting import PromptConfig, fit_maps
from mega_pl.module import MegaModule

if __name__ == "__main__":
    strategy, devices, folder, model, edits = sys.argv[1:]
    run = L.Trainer(
        accelerator="cpu", devices=int(devices), strategy=strategy, default_root_dir=folder, logger=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[BankCheckpoint(), ResultTable()],
    )
    module = MegaModule(model, sites=["resid_mid.2", "resid_mid.3"], prompts=PromptConfig(prefixes=1))
    run.fit(module, datamodule=EditDataModule(edits, edits_per_batch=1))
"""


@pytest.mark.parametrize("launcher", ["ddp", "ddp_spawn", "torchrun"])
def test_two_processes_make_the_bank_of_one(
    launcher: str, roomy_folder: Callable[[str], Path], edits_file: Path, tmp_path: Path
) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, start, strategy, devices in (
        ("one", [sys.executable], "auto", "1"),
        ("two", torchrun if launcher == "torchrun" else [sys.executable], launcher.replace("torchrun", "ddp"), "2"),
    ):
        command = [*start, str(script), strategy, devices, str(tmp_path / name)]
        command += [str(roomy_folder("gpt2")), str(edits_file)]
        done = subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ("edit_model.safetensors", "edit_config.json"):
        assert (tmp_path / "one" / "edits" / name).read_bytes() == (tmp_path / "two" / "edits" / name).read_bytes()
    rows = [
        [json.loads(line)["test"] for line in (tmp_path / run / "cases.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    assert sorted(map(str, rows[0])) == sorted(map(str, rows[1]))  # each test once, in an order of their own
    for run in ("one", "two"):  # each metric has seen the rows of all processes
        metrics = json.loads((tmp_path / run / "metrics.json").read_text())["metrics"]
        counts = {name: sum(test["metric"] == name for test in rows[0]) for name in ("acc", "gen", "di", "dii")}
        assert {name: metrics[name]["n"] for name in counts} == counts


class Project(L.LightningModule):
    """Somebody's module, which knows nothing of edits."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.inner = torch.nn.ModuleDict({"decoder": backbone.model})
        self.words = backbone.tokenizer

    @property
    def decoder(self) -> Any:
        return self.inner["decoder"]

    def predict_step(self, batch: list[str], batch_idx: int) -> Any:
        inputs = self.words(batch, return_tensors="pt", padding=True, padding_side="left")
        return self.decoder.generate(**inputs, max_new_tokens=2, do_sample=False)[:, -2:].tolist()


def test_another_project_gets_edits_by_a_callback(lab_backbone: Any, bank_folder: Path, tmp_path: Path) -> None:
    texts = ["Marie Curie was born in", "The capital of France is"]
    loader: Any = DataLoader(texts, batch_size=2)  # type: ignore[arg-type]
    edits = EditsInForce(bank_folder, model="decoder", tokenizer="words")
    bare = trainer(tmp_path).predict(Project(lab_backbone), loader)
    edited = trainer(tmp_path, edits).predict(Project(lab_backbone), loader)
    again = trainer(tmp_path).predict(Project(lab_backbone), loader)
    assert bare == again
    assert edited is not None
    assert bare is not None
    assert edited[0][0] != bare[0][0]
    assert edited[0][1] == bare[0][1]
    assert edits.use is not None
    assert edits.use.fired == ["curie", None]
    with pytest.raises(ValueError, match=r"`EditsInForce` must be told .* but Project has no 'model'; give `model`"):
        trainer(tmp_path, EditsInForce(bank_folder)).predict(Project(lab_backbone), loader)


def test_the_example_of_another_project() -> None:
    path = Path(__file__).parents[1] / "examples" / "lightning_project.py"
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=240, check=True)
    lines = [line for line in done.stdout.splitlines() if " | " in line]
    assert "bare   | Marie Curie was born in Warsaw." in lines
    assert "edited | The place of birth of Marie Curie is Rome" in lines
    assert lines[2].split("|")[1] == lines[5].split("|")[1]


def test_results_of_a_run_without_validation_are_not_needed(module: Make, data: Make, tmp_path: Path) -> None:
    trainer(tmp_path, BankCheckpoint(), ResultTable(), limit_val_batches=0).fit(module(), datamodule=data())
    assert not (tmp_path / "metrics.json").exists()
    request = EditBank.from_pretrained(tmp_path / "edits").requests[0]
    assert isinstance(request, EditRequest)
