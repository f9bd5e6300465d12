"""The life of a bank of lab edits: what it costs to add a few, and that what goes leaves nothing behind.

    OMP_NUM_THREADS=1 python benchmarks/bank.py lab-gpt2 --edits 100 --more 10

The fit of all edits together is timed in the same run. Half of the edits are removed at once; their prompts must then
have the bare model's logits, and the others' maps must be what they were, to the bit. Where the lab has fewer edits,
people and their places are made up.
"""

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from scale import requests_of

import mega_pl
from mega_pl import Backbone, EditBank
from mega_pl.edits.storage import bank_tensors, write_text
from mega_pl.lab.data import LabDataModule

BATCH = 32


def main(args: list[str] | None = None) -> None:
    """Measure and print the table."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("model", help="lab-gpt2, lab-llama, a folder or a name on the hub")
    command.add_argument("--edits", type=int, default=100)
    command.add_argument("--more", type=int, default=10)
    command.add_argument("--output", type=Path)
    options = command.parse_args(args)
    backbone = mega_pl.load(options.model)
    data = LabDataModule(limit=options.edits + options.more)
    data.setup("fit")
    count = options.edits + options.more
    requests = data.requests if len(data.requests) >= count else requests_of(count)
    first, last = requests[: options.edits], requests[options.edits :]
    rows: list[tuple[str, str]] = [("edits", f"{len(first)} + {len(last)}")]

    start = time.perf_counter()
    mega_pl.fit(backbone, requests)
    whole = time.perf_counter() - start
    bank = mega_pl.fit(backbone, first)
    start = time.perf_counter()
    grown = bank.add(backbone, last)
    added = time.perf_counter() - start
    rows += [
        ("fit of all, s", f"{whole:.1f}"),
        ("add, s", f"{added:.1f}"),
        ("add / fit of all", f"{added / whole:.3f}"),
        ("share of the edits", f"{len(last) / len(requests):.3f}"),
        ("old maps equal after add", verdict(kept_maps(bank, grown))),
    ]

    gone = grown.ids[::2]
    start = time.perf_counter()
    half = grown.remove(*gone)
    rows += [
        (f"remove {len(gone)}, s", f"{time.perf_counter() - start:.3f}"),
        ("others' maps equal after remove", verdict(kept_maps(half, grown))),
        ("removed prompts with the bare logits", f"{bare_prompts(backbone, half, grown)} of {len(gone)}"),
        ("the same before remove", f"{bare_prompts(backbone, grown, grown, gone)} of {len(gone)}"),
    ]
    start = time.perf_counter()
    back = half.rollback()
    rows += [
        ("rollback, s", f"{time.perf_counter() - start:.3f}"),
        ("rollback equal", verdict(equal(back, grown) and equal(half.rollback(0), bank))),
        *((f"file {name}, MB", f"{size / 1e6:.2f}") for name, size in file_sizes(half).items()),
    ]
    lines = [f"| {options.model} | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    print("\n".join(lines))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.output, "\n".join(lines) + "\n")


def kept_maps(smaller: EditBank, larger: EditBank) -> bool:
    """Whether the maps of all edits of a bank are those of another bank, to the bit."""
    for i, edit_id in enumerate(smaller.ids):
        j = larger.index(edit_id)
        for step in range(len(smaller.objects[i]) + 1):
            for site, maps in smaller.maps.items():
                one, other = maps[smaller.places[i] + step], larger.maps[site][larger.places[j] + step]
                if not all(torch.equal(vars(one)[name], vars(other)[name]) for name in vars(one)):
                    return False
    return True


def bare_prompts(backbone: Backbone, bank: EditBank, whole: EditBank, edits: tuple[str, ...] | None = None) -> int:
    """How many prompts, by default those of the edits that a bank has lost, have the bare model's logits."""
    chosen = edits if edits is not None else [edit_id for edit_id in whole.ids if edit_id not in set(bank.ids)]
    prompts = [whole[edit_id].filled for edit_id in chosen]
    count = 0
    for start in range(0, len(prompts), BATCH):
        encoded = backbone.encode(prompts[start : start + BATCH])
        bare = backbone.last_logits(encoded)
        with bank.apply(backbone):
            count += int((backbone.last_logits(encoded) == bare).all(1).sum())
    return count


def equal(one: EditBank, other: EditBank) -> bool:
    """Whether two banks without their histories are the same, to the bit."""
    own, others = (
        {name: tensor for name, tensor in bank_tensors(bank).items() if not name.startswith("history.")}
        for bank in (one, other)
    )
    return one.requests == other.requests and all(torch.equal(own[name], others[name]) for name in own.keys() | others)


def file_sizes(bank: EditBank) -> dict[str, int]:
    """Bytes of a bank's folder, with and without its history."""
    with TemporaryDirectory() as folder:
        return {
            name: sum(path.stat().st_size for path in bank.save_pretrained(f"{folder}/{name}", history=keep).iterdir())
            for name, keep in (("with history", True), ("without history", False))
        }


def verdict(held: bool) -> str:
    """The word for a check."""
    return "yes" if held else "NO"


if __name__ == "__main__":
    main()
