"""A bank of many edits: opening it, routing among its edits, writing beside them, adding one, and what a fit costs.

    OMP_NUM_THREADS=1 python benchmarks/scale.py --edits 10000
    OMP_NUM_THREADS=1 python benchmarks/scale.py --edits 10000 --cost 100 3000

Subjects are made up and the maps are random numbers of a given rank, because only their number counts here; the router
is fitted on all edits. What uses the bank runs in a process of its own that opens it from disk; its memory counts from
before the bank is opened. With ``--cost`` real fits of so many edits are timed, an edit.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from peak import anonymous, peak, restart_peak

from mega_pl import Backbone, EditBank, EditRequest, load
from mega_pl.callbacks import BankCheckpoint
from mega_pl.data.datamodule import DealtBatches
from mega_pl.data.relations import relations
from mega_pl.edits import ContentRouter, RouterConfig
from mega_pl.edits.routing import Prompts
from mega_pl.edits.storage import write_text
from mega_pl.fitting import EditFitter, FitConfig, PromptConfig, settings
from mega_pl.functional import Transports
from mega_pl.module import MegaModule

SYLLABLES = ("ba", "dor", "en", "fi", "gal", "hu", "jo", "kar", "lim", "mo", "nez", "or", "pa", "qui", "ras", "tol")
OBJECTS = ("Rome", "Oslo", "Lisbon", "Cairo", "Lima", "Delhi")
TEMPLATES = {"P19": "{} was born in", "P20": "{} died in", "P937": "{} worked in"}
MIB = 2**20


def main(args: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="lab-gpt2", help="a lab model, a folder or a name on the hub")
    parser.add_argument("--edits", type=int, default=10000)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rank", type=int, default=20)
    parser.add_argument("--cost", type=int, nargs=2, help="two numbers of edits to fit for real")
    parser.add_argument("--use", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(args)
    warnings.simplefilter("ignore")
    if options.use is not None:
        print(json.dumps(_use(load(options.model), options.use)))
        return
    backbone = load(options.model)
    rows: list[tuple[str, str]] = []
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        bank = _made(backbone, options)
        rows.append((f"router of {len(bank)} edits fitted, s", f"{time.perf_counter() - start:.1f}"))
        bank.save_pretrained(folder)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        rows.append(("disk an edit, kB", f"{size / len(bank) / 1000:.1f}"))
        command = [sys.executable, __file__, options.model, "--use", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows += [(name, value) for name, value in json.loads(done.stdout.splitlines()[-1])]
    if options.cost:
        seconds = [_cost(backbone, count, options) for count in options.cost]
        rows.append(
            (f"fit an edit, {options.cost[0]} / {options.cost[1]} edits, s", " / ".join(f"{s:.3f}" for s in seconds))
        )
        rows.append(("cost an edit, many over few", f"{seconds[1] / seconds[0]:.2f}"))
        many = options.cost[1]
        rows.append((f"checkpoint bytes over the bank's, {many} edits", f"{_checkpoints(options.model, many):.2f}"))
    lines = [
        f"| {options.model}, {options.edits} edits, {options.sites} sites, rank {options.rank} | |",
        "| --- | --- |",
    ]
    lines += [f"| {name} | {value} |" for name, value in rows]
    print("\n".join(lines))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.output, "\n".join(lines) + "\n")


def requests_of(count: int) -> list[EditRequest]:
    """Edits of made-up people."""
    names = (f"{a}{b} {c}{d}".title() for a, b, c, d in itertools.product(SYLLABLES, repeat=4))
    kinds = itertools.cycle(TEMPLATES.items())
    objects = itertools.cycle(itertools.permutations(OBJECTS, 2))
    return [
        EditRequest(edit_id=str(i), prompt=template, subject=name, target_new=new, target_true=true, relation=relation)
        for i, name, (relation, template), (new, true) in zip(range(count), names, kinds, objects, strict=False)
    ]


def _made(backbone: Backbone, options: argparse.Namespace) -> EditBank:
    """A bank with random maps, whose router is fitted."""
    requests, config = requests_of(options.edits), FitConfig()
    draw, width, count = torch.Generator().manual_seed(0), backbone.width, options.edits

    def maps() -> Transports:
        shift = 0.01 * torch.randn(count, width, generator=draw)
        basis = torch.randn(count * options.rank, width, generator=draw) / width**0.5
        matrix = 0.01 * torch.randn(count * options.rank**2, generator=draw)
        center = 0.01 * torch.randn(count * options.rank, generator=draw)
        return Transports(shift, basis, matrix, center, torch.full((count,), options.rank))

    return EditBank(
        requests=tuple(requests),
        maps={site: maps() for site in config.sites_of(backbone)[-options.sites :]},
        router=ContentRouter.fit(backbone, requests, list(relations().values()), RouterConfig(ask_aliases=False)),
        strength=1.0,
        backbone={"name": backbone.name, "revision": None, **backbone.fingerprint},
        settings=settings(backbone, replace(config, router=RouterConfig(ask_aliases=False))),
    )


def _use(backbone: Backbone, folder: Path) -> list[tuple[str, str]]:
    """Open a bank and use it."""
    torch.set_num_threads(1)
    backbone.generate("Rain fell", max_new_tokens=2)
    before, own = restart_peak(), anonymous()
    start = time.perf_counter()
    bank = EditBank.from_pretrained(folder)
    opened = time.perf_counter() - start
    prompts = [request.filled for request in bank.requests[:: len(bank) // 50]][:50]
    with bank.apply(backbone) as use:
        backbone.generate(prompts[0], max_new_tokens=1)  # what is made once
        edited = [_first_token(backbone, prompt) for prompt in prompts]
        fired = use.fired
    bare = [_first_token(backbone, prompt) for prompt in prompts]
    own, grown, beyond = anonymous() - own, peak() - before, statistics.median(edited) - statistics.median(bare)
    speeds = [_decoding(backbone)]
    with bank.apply(backbone):
        speeds.append(_decoding(backbone))
    more = requests_of(len(bank) + 1)[-1]
    start = time.perf_counter()
    larger = bank.add(backbone, [replace(more, phrasings=("{} comes from",))])
    added = time.perf_counter() - start
    return [
        ("open, s", f"{opened:.2f}"),
        ("route one prompt on one core, ms", f"{1000 * _routing(backbone, bank, prompts):.1f}"),
        ("a prompt that fires, ms beyond the bare prefill", f"{1000 * beyond:.1f}"),
        ("the last prompt's edit", str(fired)),
        ("memory beyond the model, MiB", f"{own / MIB:.0f}"),
        ("the same with pages of the file, which the system takes back, MiB", f"{grown / MIB:.0f}"),
        ("decoding beside the bank / bare", f"{speeds[0] / speeds[1]:.3f}"),
        (f"add one to {len(bank)}, s", f"{added:.1f}" if len(larger) > len(bank) else "-"),
    ]


def _routing(backbone: Backbone, bank: EditBank, prompts: list[str]) -> float:
    """Median seconds of the router's decision about a prompt whose next token the bare model has given."""
    seconds = []
    for prompt in prompts:
        encoded = backbone.encode([prompt])
        batch = Prompts(backbone, encoded.inputs, encoded.last, backbone.last_logits(encoded))
        start = time.perf_counter()
        bank.router.route(batch)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _first_token(backbone: Backbone, prompt: str) -> float:
    start = time.perf_counter()
    backbone.generate(prompt, max_new_tokens=1)
    return time.perf_counter() - start


def _decoding(backbone: Backbone) -> float:
    """Median seconds of 100 tokens that no edit answers; reading the prompt does not count."""
    text, seconds = "It was a quiet morning in the village.", []
    for _ in range(7):
        ends = [time.perf_counter()]
        for tokens in (1, 101):
            backbone.generate(text, max_new_tokens=tokens, min_new_tokens=tokens)
            ends.append(time.perf_counter())
        seconds.append(ends[2] - 2 * ends[1] + ends[0])
    return statistics.median(seconds)


def _cost(backbone: Backbone, count: int, options: argparse.Namespace) -> float:
    """Seconds an edit of a real fit, with few prompts an edit, bank and router included."""
    sites = tuple(map(str, FitConfig().sites_of(backbone)[-options.sites :]))
    fitter = EditFitter(backbone, FitConfig(sites=sites, prompts=PromptConfig(prefixes=3)))
    start = time.perf_counter()
    fitter.update(requests_of(count))
    fitter.bank()
    return (time.perf_counter() - start) / count


class Written(L.Callback):
    """Counts what a run writes besides its bank, before it is cleared away."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Count the checkpoint that the batch before has left."""
        self.count += (self.folder / "last.ckpt").stat().st_size if batch_idx else 0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the last one and the edits."""
        parts = [self.folder / "last.ckpt", *(self.folder / "fitted").glob("*.safetensors")]
        self.count += sum(path.stat().st_size for path in parts)


def _checkpoints(model: str, count: int) -> float:
    """Bytes that the checkpoints of a run take, over those of its bank."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        written = Written(folder)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            default_root_dir=folder,
            callbacks=[written, BankCheckpoint()],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader: Any = DealtBatches(requests_of(count), 8)
        trainer.fit(MegaModule(model), loader)
        last = (folder / "last.ckpt").stat().st_size
        return (written.count + last) / sum(path.stat().st_size for path in (folder / "edits").iterdir())


if __name__ == "__main__":
    main()
