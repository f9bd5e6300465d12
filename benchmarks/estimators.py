"""Which estimator and which sites reach the goal: a sweep on the lab's dev split, every edit routed by an oracle.

    python benchmarks/estimators.py lab-gpt2 --edits 108 --output runs/estimators_gpt2.md

The dev split shares no edit with the split that tables report.
"""

import argparse
import time
from pathlib import Path

import torch
from tqdm import tqdm

from mega_pl import Backbone, EditBank, Site, load
from mega_pl.data.datamodule import EditDataModule
from mega_pl.editors.protocol import Routed
from mega_pl.edits.routing import CentreRouter
from mega_pl.edits.storage import write_text
from mega_pl.fitting import MapConfig, fit_maps
from mega_pl.fitting.prompts import PromptConfig, expand, phrasings
from mega_pl.fitting.refinement import RefineConfig, refine
from mega_pl.functional import stack
from mega_pl.lab.data import LabDataModule
from mega_pl.protocols.sake import PROTOCOL, Row, Test, ask_bare, ask_edited, sake_row, sake_tests

COLUMNS = ("acc", "gen", "di", "dii", "ci", "cii", "sa")


def sites(kind: str, *layers: int) -> list[Site]:
    """Sites of one kind."""
    return [Site.parse(f"{kind}.{layer}") for layer in layers]


LAST, MIDDLE = sites("resid_post", 7), sites("resid_mid", 4, 5, 6, 7)

SWEEP: dict[str, tuple[list[Site], MapConfig, RefineConfig]] = {
    "mean shift, resid_mid 4-7": (MIDDLE, MapConfig(estimator="mean_shift"), RefineConfig()),
    "mean shift, resid_post 7": (LAST, MapConfig(estimator="mean_shift"), RefineConfig()),
    "transport, attn_out 4-7": (sites("attn_out", 4, 5, 6, 7), MapConfig(), RefineConfig()),
    "transport, resid_mid 4-6": (MIDDLE[:3], MapConfig(), RefineConfig()),
    "transport, resid_mid 4-7": (MIDDLE, MapConfig(), RefineConfig()),
    "transport, resid_mid 6-7": (MIDDLE[2:], MapConfig(), RefineConfig()),
    "transport, resid_post 7 (SAKE's place)": (LAST, MapConfig(), RefineConfig()),
    "transport, resid_mid 4-7 and resid_post 7": (MIDDLE + LAST, MapConfig(), RefineConfig()),
    "transport, resid_mid 4-7, rank 8": (MIDDLE, MapConfig(rank=8), RefineConfig()),
    "transport, resid_mid 4-7, rank 99 %": (MIDDLE, MapConfig(rank=0.99, max_rank=64), RefineConfig()),
    "transport, resid_mid 4-7, ridge 0.1": (MIDDLE, MapConfig(regularization=0.1), RefineConfig()),
    "transport, resid_post 7, ridge 0.1": (LAST, MapConfig(regularization=0.1), RefineConfig()),
    "gradient alone, resid_mid 6": (sites("resid_mid", 6), MapConfig(estimator="none"), RefineConfig(steps=25)),
    "transport, resid_mid 4-7, then gradient": (MIDDLE, MapConfig(), RefineConfig(steps=10)),
}


def main(args: list[str] | None = None) -> None:
    """Run the sweep and write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="lab-gpt2, lab-llama, a folder or a name on the hub")
    parser.add_argument("--edits", type=int, default=108)
    parser.add_argument("--only", default="", help="run the rows whose name has this text")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(args)
    backbone = load(options.model)
    data = LabDataModule(split="dev", limit=options.edits)
    data.setup("fit")
    tests = [t for case in data.cases for t in sake_tests(case) if t.metric in COLUMNS]
    names = [name for name in SWEEP if options.only in name]
    lines = [
        f"| {options.model}, {len(data.cases)} edits | " + " | ".join(c.upper() for c in COLUMNS) + " | mean | s |"
    ]
    lines.append("| --- |" + " --- |" * (len(COLUMNS) + 2))
    for name in tqdm(names):
        start = time.perf_counter()
        scores = PROTOCOL.score(rows_of(backbone, data, tests, *SWEEP[name], PromptConfig()))
        values = [scores[column].value for column in COLUMNS]
        shown = " | ".join(f"{value:.3f}" for value in (*values, sum(values) / len(values)))
        lines.append(f"| {name} | {shown} | {time.perf_counter() - start:.0f} |")
        tqdm.write(lines[-1])
    print("\n".join(lines))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.output, "\n".join(lines) + "\n")


def rows_of(
    backbone: Backbone,
    data: EditDataModule,
    tests: list[Test],
    where: list[Site],
    config: MapConfig,
    refining: RefineConfig,
    prompts: PromptConfig,
) -> list[Row]:
    """Fit all edits and ask all tests, each of the edit that it belongs to."""
    requests = data.requests
    maps = [
        refine(
            backbone,
            request,
            phrasings(request, prompts),
            fit_maps(backbone, expand(request, prompts, backbone), where, config)[0],
            config.strength,
            refining,
        )
        for request in requests
    ]
    bank = EditBank(
        requests=tuple(requests),
        maps={site: stack([of_edit[site] for of_edit in maps]) for site in sorted(where)},
        router=CentreRouter(torch.empty(0, 1), torch.empty(0)),  # an oracle routes
        strength=config.strength,
        backbone={"name": backbone.name, **backbone.fingerprint},
        settings={},
    )
    bare = ask_bare(backbone, tests)
    with bank.apply(backbone) as use:
        answers = ask_edited(backbone, Routed(use), tests, mode="oracle")
    return [sake_row(*columns) for columns in zip(tests, bare, answers, strict=True)]


if __name__ == "__main__":
    main()
