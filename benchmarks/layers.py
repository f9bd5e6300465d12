"""Does attribution help? Layers that it picks against others of the same number, every edit routed by an oracle.

    python benchmarks/layers.py --config configs/attribute_lab_gpt2.yaml --edits 120 --output runs/layers_gpt2.md
    python benchmarks/layers.py --config configs/attribute_smollm2.yaml --skip 600 --edits 24 --prefixes 2

The contrast is made on the edits of the config; the table on the lab's test split, or with `--skip` on later edits of
the config's own data. Further arguments change the config, such as ``--model_name_or_path FOLDER``.
"""

import argparse
import random
from copy import copy
from pathlib import Path

from estimators import COLUMNS, rows_of
from jsonargparse import auto_parser
from torch import Tensor
from tqdm import tqdm

from mega_pl import Site, load
from mega_pl.attribution.ranking import pick_layers
from mega_pl.attribution.selection import SelectionConfig, select
from mega_pl.commands import attribute
from mega_pl.data.datamodule import EditDataModule
from mega_pl.edits.storage import write_text
from mega_pl.fitting import MapConfig, PromptConfig
from mega_pl.fitting.refinement import RefineConfig
from mega_pl.lab.data import LabDataModule
from mega_pl.protocols import format_value
from mega_pl.protocols.sake import PROTOCOL, sake_tests


def main(args: list[str] | None = None) -> None:
    """Judge the choices and print the table."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--config", required=True, help="a config of `train.py attribute`")
    command.add_argument("--skip", type=int, help="edits of the config's data before those that are judged")
    command.add_argument("--prefixes", type=int, default=PromptConfig().prefixes, help="of each prompt, in a fit")
    command.add_argument("--also", type=int, nargs="*", default=[], help="layers of one more row, of any number")
    command.add_argument("--edits", type=int, default=120, help="edits to judge the layers on")
    command.add_argument("--draws", type=int, default=3, help="draws of random layers")
    command.add_argument("--output", type=Path)
    options, rest = command.parse_known_args(args)
    parser = auto_parser(attribute, as_positional=False)
    arguments = parser.instantiate_classes(parser.parse_args(["--config", options.config, *rest]))
    config = arguments.selection or SelectionConfig()
    backbone = load(arguments.model_name_or_path)
    arguments.data.setup("fit")
    judged = judged_data(arguments.data, options.skip, options.edits)
    if ids := {case.request.edit_id for case in judged.cases} & {case.request.edit_id for case in arguments.data.cases}:
        command.error(f"edits that are judged must not be among those of the contrast, but {min(ids)!r} is; skip more")
    tests = [test for case in judged.cases for test in sake_tests(case) if test.metric in COLUMNS]
    scores = select(backbone, arguments.editors, arguments.data.cases, config).scores
    rows = choices(scores, config, backbone.n_layers, options.draws)
    rows |= {"as said": options.also} if options.also else {}
    prompts = PromptConfig(prefixes=options.prefixes)
    lines = [
        f"| {arguments.model_name_or_path}, {len(judged.cases)} edits | layers | "
        + " | ".join(c.upper() for c in COLUMNS)
    ]
    lines[0] += " | mean | 95 % |"
    lines.append("| --- |" + " --- |" * (len(COLUMNS) + 3))
    for name, layers in tqdm(rows.items()):
        kind = "resid_post" if name == "last site only" else config.kind or backbone.layout.default_kind
        where = [Site(layer, kind) for layer in layers]
        found = PROTOCOL.score(rows_of(backbone, judged, tests, where, MapConfig(), RefineConfig(), prompts))
        values = " | ".join(format_value(found[column].value) for column in (*COLUMNS, "average"))
        low, high = found["average"].ci95
        lines.append(f"| {name} | {', '.join(map(str, layers))} | {values} | {low:.3f}–{high:.3f} |")
        tqdm.write(lines[-1])
    print("\n".join(lines))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.output, "\n".join(lines) + "\n")


def judged_data(data: EditDataModule, skip: int | None, edits: int) -> EditDataModule:
    """The edits that layers are judged on: the lab's, or later ones of some data with their relations' phrasings."""
    judged = LabDataModule(split="test", limit=edits)
    if skip is not None:
        judged = copy(data)
        judged.skip, judged.limit, judged.relation_phrasings, judged.cases = skip, edits, True, []
    judged.setup("fit")
    return judged


def choices(scores: Tensor, config: SelectionConfig, layers: int, draws: int) -> dict[str, list[int]]:
    """Layers by the name of their row; all choices but the last two are of the same number."""
    number, everything = config.number, list(range(layers))
    found = {
        "picked by attribution": pick_layers(scores, number, window=config.window, spacing=config.spacing),
        "worst-ranked": pick_layers(-scores, number, window=(0.0, 1.0)),
    }
    for draw in range(draws):
        found[f"random {draw + 1}"] = sorted(random.Random(draw).sample(everything, number))
    return {**found, "all layers": everything, "last site only": everything[-1:]}


if __name__ == "__main__":
    main()
