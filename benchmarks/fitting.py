"""What fitting edits costs, over the bare forward pass of the same prompts, and over the way of the papers.

    python benchmarks/fitting.py lab-gpt2
    python benchmarks/fitting.py FOLDER --counterfact FILE --edits 64 --sites resid_mid.18 resid_mid.22 ...
    python benchmarks/fitting.py --width 1600 --blocks 12 --edits 8

The bare pass reads every prompt of the fit once, those of like length together, each batch with what is best for the
device. The papers' way reads one prompt at a time and solves SAKE's map with POT, d x d; it is timed on one edit and
one site. With ``--width`` the model is GPT-2's shape of that width with random weights.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import ot
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from mega_pl import Backbone, EditRequest, load
from mega_pl.asking import encoded_batches, last_states
from mega_pl.backbone import tokens_that_fit
from mega_pl.data import DataFile
from mega_pl.data.datamodule import EditDataModule
from mega_pl.edits.storage import write_text
from mega_pl.fitting import EditFitter, FitConfig, PromptConfig
from mega_pl.fitting.implications import with_followed_implications
from mega_pl.fitting.prompts import expand
from mega_pl.functional import fit_transport
from mega_pl.lab.data import LabDataModule

SITES = 4

Found = TypeVar("Found")


def main(args: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="lab-gpt2", help="a lab model, a folder or a name on the hub")
    parser.add_argument("--counterfact", type=Path, help="a file of CounterFact; the lab's records without it")
    parser.add_argument("--edits", type=int, default=64)
    parser.add_argument("--sites", nargs="*", default=[], help="the last four of attention's by default")
    parser.add_argument("--prefixes", type=int, default=2)
    parser.add_argument("--width", type=int, help="of a model with random weights")
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(args)
    backbone = _random(options.width, options.blocks) if options.width else load(options.model)
    requests = _requests(options)
    kind, last = backbone.layout.default_kind, backbone.n_layers
    sites = options.sites or [f"{kind}.{layer}" for layer in range(max(0, last - SITES), last)]
    config = FitConfig(sites=tuple(sites), prompts=PromptConfig(prefixes=options.prefixes))

    one, _ = _timed(lambda: _fitter(backbone, config, requests[:1]).bank())
    bare_of_one, _ = _timed(lambda: _read(backbone, _prompts(backbone, requests[:1], config)))
    backbone = _random(options.width, options.blocks) if options.width else load(options.model)  # that knows nothing
    prompts = _prompts(backbone, requests, config)
    bare, tokens = _timed(lambda: _read(backbone, prompts))
    maps, fitter = _timed(lambda: _fitter(backbone, config, requests))
    router, _ = _timed(fitter.bank)
    papers, dense = _papers(backbone, _prompts(backbone, requests[:1], config), options)
    rows = [
        ("edits, prompts, tokens", f"{len(requests)}, {len(prompts)}, {tokens}"),
        ("bare forward, s", f"{bare:.1f}"),
        ("fit, s (maps + router and what belongs to a bank)", f"{maps:.1f} + {router:.1f}"),
        ("fit / bare forward", f"{(maps + router) / bare:.2f}"),
        ("maps / bare forward", f"{maps / bare:.2f}"),
        ("one edit from nothing, s", f"{one:.1f}"),
        ("one edit / bare forward of its prompts", f"{one / bare_of_one:.2f}"),
        ("papers' way / fit, an edit", f"{papers * len(sites) / ((maps + router) / len(requests)):.0f}"),
        ("a dense map / ours, of one site", f"{dense:.0f}"),
    ]
    lines = [
        f"| {backbone.name or f'GPT-2 of width {options.width}, {options.blocks} blocks'}, {len(sites)} sites | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows),
    ]
    print("\n".join(lines))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.output, "\n".join(lines) + "\n")


def _timed(work: Callable[[], Found]) -> tuple[float, Found]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def _requests(options: argparse.Namespace) -> list[EditRequest]:
    if options.counterfact is None:
        data: EditDataModule = LabDataModule(limit=options.edits)
    else:
        data = EditDataModule(
            DataFile(options.counterfact, "counterfact"),
            limit=options.edits,
            on_bad="skip",
            relation_phrasings=True,
        )
    data.setup("fit")
    return data.requests


def _random(width: int, blocks: int) -> Backbone:
    tokenizer = load("lab-gpt2").tokenizer
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=width, n_layer=blocks, n_head=width // 64, bos_token_id=0, eos_token_id=0
    )
    return load(GPT2LMHeadModel(config).eval(), tokenizer)


def _prompts(backbone: Backbone, requests: list[EditRequest], config: FitConfig) -> list[str]:
    sets = [expand(request, config.prompts, backbone) for request in with_followed_implications(backbone, requests)]
    return [prompt for of_edit in sets for prompt in (*of_edit.source, *of_edit.target)]


def _read(backbone: Backbone, prompts: list[str]) -> int:
    """Read prompts and give the number of their tokens."""
    tokens = 0
    for _, encoded in encoded_batches(backbone, prompts, tokens_that_fit(backbone)):
        backbone.last_logits(encoded)
        tokens += int(encoded.attention_mask.sum())
    return tokens


def _fitter(backbone: Backbone, config: FitConfig, requests: list[EditRequest]) -> EditFitter:
    fitter = EditFitter(backbone, config)
    fitter.update(requests)
    return fitter


def _papers(backbone: Backbone, prompts: list[str], options: argparse.Namespace) -> tuple[float, float]:
    """Seconds for an edit and a site one prompt at a time with a dense map, and how much longer that map takes."""
    site = FitConfig().sites_of(backbone)[-1]

    def states() -> list[np.ndarray]:
        return [last_states(backbone, [prompt], [site])[site].double().numpy() for prompt in prompts]

    reading, found = _timed(states)
    source, target = np.concatenate(found[::2]), np.concatenate(found[1::2])
    dense, _ = _timed(lambda: ot.da.LinearTransport(reg=1e-2).fit(Xs=source, Xt=target))
    ours, _ = _timed(lambda: fit_transport(torch.tensor(source), torch.tensor(target)))
    return reading + dense, dense / ours


if __name__ == "__main__":
    main()
