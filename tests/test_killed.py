"""Whatever a run is killed in, what it has left is whole, and the next one ends in the same bank."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

KILLS = 50
SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path
import lightning as L
import torch
from mega_pl import EditBank, load
from mega_pl.callbacks import BankCheckpoint
from mega_pl.data.datamodule import EditDataModule
from mega_pl.fitting import PromptConfig
from mega_pl.fitting.shards import read_shards
from mega_pl.module import MegaModule

torch.set_num_threads(1)
folder, model, edits, kills = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
draw = random.Random(0)


def fit(run):
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=run, callbacks=[BankCheckpoint()], limit_val_batches=0,
    )
    module = MegaModule(model, sites=["resid_mid.2", "resid_mid.3"], prompts=PromptConfig(prefixes=1))
    last = run / "last.ckpt"
    trainer.fit(module, EditDataModule(edits, edits_per_batch=1), ckpt_path=last if last.exists() else None)


def killed(work, seconds):
    # Run something in a process of its own and kill it after some time; tell whether it had ended before.
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        try:
            work()
            os._exit(0)
        except BaseException as error:
            Path(folder / "error").write_text(repr(error))
            os._exit(1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, Path(folder / "error").read_text()
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


start = time.monotonic()
assert not killed(lambda: fit(folder / "whole"), 60)
took = time.monotonic() - start
whole = {p.name: p.read_bytes() for p in (folder / "whole" / "edits").iterdir()}

count, runs = 0, 0
while count < kills:
    run = folder / f"run{runs}"
    runs += 1
    while killed(lambda: fit(run), draw.uniform(0, took)):
        count += 1
        read_shards(run / "fitted")
        if (run / "edits" / "edit_config.json").exists():
            EditBank.from_pretrained(run / "edits").check_intact()
    assert {p.name: p.read_bytes() for p in (run / "edits").iterdir() if p.name[0] != "."} == whole
    assert not (run / "fitted").exists()

one = EditBank.from_pretrained(folder / "whole" / "edits")
two, place, seen = one.remove("germany"), folder / "saved", set()
one.save_pretrained(place)


def save():
    while True:
        two.save_pretrained(place)
        one.save_pretrained(place)


for _ in range(kills):
    assert killed(save, draw.uniform(0.005, 0.05))
    bank = EditBank.from_pretrained(place)
    bank.check_intact()
    seen.add(len(bank))
assert seen == {3, 4}, seen
print("kills", count, "runs", runs)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_fits_and_saves_that_are_killed(roomy_folder: Callable[[str], Path], edits_file: Path, tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path), str(roomy_folder("gpt2")), str(edits_file), str(KILLS)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split("kills ")[1].split()[0]) >= KILLS
