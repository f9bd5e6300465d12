"""A comparison that is killed, or done by several processes at once, ends as one that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from mega_pl.cli import main

torch.set_num_threads(1)
config, folder = sys.argv[1], Path(sys.argv[2])
draw = random.Random(0)


def start(run):
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        main(["compare", "--config", config, "--folder", str(folder / run)])
        os._exit(0)
    return child


def ended(child, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, status
            return True
        time.sleep(0.002)
    return False


begin = time.monotonic()
assert ended(start("whole"), 60)
took = time.monotonic() - begin
child = start("killed")
while not any((folder / "killed" / "answers").glob("*.json")):
    time.sleep(0.002)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
kills = 1
while True:
    child = start("killed")
    if ended(child, draw.uniform(0, took / 2) * 1.05**kills):  # a machine that has got slower ends it too
        break
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    kills += 1
    assert kills < 100
pair = [start("shared"), start("shared")]
assert all(ended(child, 60) for child in pair)
print(kills)
"""


def results(folder: Path) -> tuple[object, list[str]]:
    """Scores and rows, without what the clock says."""
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))["results"]
    scores = [{key: value for key, value in entry.items() if key != "seconds_per_edit"} for entry in metrics]
    return scores, (folder / "cases.jsonl").read_text("utf-8").splitlines()


def test_kills_and_company_change_nothing(roomy_folder: Callable[[str], Path], edits_file: Path, tmp_path: Path):
    config = tmp_path / "compare.yaml"
    config.write_text(
        f"""
folder: run
backbones: [{{model_name_or_path: {roomy_folder("gpt2")}}}]
data: {{mine: {{class_path: mega_pl.data.datamodule.EditDataModule, init_args: {{files: {edits_file}}}}}}}
modes: [single, growing, sequential]
protocols: [sake, wild]
editors:
  FT: {{class_path: mega_pl.editors.FineTuning, init_args: {{config: {{layers: [1], num_steps: 2}}}}}}
  In context: {{class_path: mega_pl.editors.InContext, init_args: {{config: {{retriever: similarity}}}}}}
""",
        encoding="utf-8",
    )
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(config), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        check=False,
    )
    assert told.returncode == 0, told.stderr[-3000:]
    assert int(told.stdout.split()[-1]) >= 1
    wanted = results(tmp_path / "whole")
    assert len(wanted[1]) > 50
    for run in ("killed", "shared"):
        assert results(tmp_path / run) == wanted
        left = [path for path in (tmp_path / run).rglob(".*") if path.is_file()]
        assert run == "killed" or not left
