"""Does attribution help? Layers that it picks against others of the same number, every edit routed by an oracle.

    python benchmarks/layers.py --config configs/attribute_lab_gpt2.yaml --edits 120 --output runs/layers_gpt2.md

The contrast is made on the edits of the config; the table on the lab's test split, which shares no edit with them.
"""

import random
from pathlib import Path

from estimators import COLUMNS, rows_of
from jsonargparse import auto_cli
from torch import Tensor
from tqdm import tqdm

from mega_pl import Backbone, Site
from mega_pl.attribution.ranking import pick_layers
from mega_pl.attribution.selection import SelectionConfig, select
from mega_pl.data.datamodule import EditDataModule
from mega_pl.data.sake import sake_tests
from mega_pl.editors.protocol import Editor
from mega_pl.edits.storage import write_text
from mega_pl.fitting import MapConfig
from mega_pl.lab import model_path
from mega_pl.lab.data import LabDataModule
from mega_pl.metrics import score_sake
from mega_pl.refining import RefineConfig


def compare(
    model_name_or_path: str,
    data: EditDataModule,
    editors: list[Editor],
    selection: SelectionConfig | None = None,
    edits: int = 120,
    random_draws: int = 3,
    folder: str = "",
    output: Path | None = None,
) -> None:
    """Print the table.

    Args:
        model_name_or_path: lab-gpt2 or lab-llama.
        data: The edits of the contrast.
        editors: Whose edits are contrasted.
        selection: How layers are chosen.
        edits: Edits to judge the layers on.
        random_draws: Draws of random layers.
        folder: Not used: configs of `train.py attribute` name one.
        output: Where to write the table.
    """
    config = selection or SelectionConfig()
    backbone = Backbone.from_pretrained(model_path(model_name_or_path))
    data.setup("fit")
    judged = LabDataModule(split="test", limit=edits)
    judged.setup("fit")
    tests = [test for case in judged.cases for test in sake_tests(case) if test.metric in COLUMNS]
    rows = choices(select(backbone, editors, data.cases, config).scores, config, backbone.n_layers, random_draws)
    lines = [f"| {model_name_or_path}, {len(judged.cases)} edits | layers | " + " | ".join(c.upper() for c in COLUMNS)]
    lines[0] += " | mean | 95 % |"
    lines.append("| --- |" + " --- |" * (len(COLUMNS) + 3))
    for name, layers in tqdm(rows.items()):
        kind = "resid_post" if name == "last site only" else config.kind
        where = [Site(layer, kind) for layer in layers]
        scores = score_sake(rows_of(backbone, judged, tests, where, MapConfig(), RefineConfig()))
        shown = " | ".join(f"{scores[column].value:.3f}" for column in (*COLUMNS, "average"))
        low, high = scores["average"].ci95
        lines.append(f"| {name} | {', '.join(map(str, layers))} | {shown} | {low:.3f}–{high:.3f} |")
        tqdm.write(lines[-1])
    print("\n".join(lines))
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, "\n".join(lines) + "\n")


def choices(scores: Tensor, config: SelectionConfig, layers: int, draws: int) -> dict[str, list[int]]:
    """Layers by the name of their row; all choices but the last two are of the same number."""
    number, everything = config.number, list(range(layers))
    found = {"picked by attribution": pick_layers(scores, number, window=config.window, spacing=config.spacing)}
    found["best-ranked of all depths"] = pick_layers(scores, number, window=(0.0, 1.0))
    found["worst-ranked of all depths"] = pick_layers(-scores, number, window=(0.0, 1.0))
    for draw in range(draws):
        found[f"random {draw + 1}"] = sorted(random.Random(draw).sample(everything, number))
    return {**found, "all layers": everything, "last site only": everything[-1:]}


if __name__ == "__main__":
    auto_cli(compare, as_positional=False)
