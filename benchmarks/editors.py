"""Does each editor do what such editors do? Single edits: efficacy, seconds an edit, and weights that come back.

    python benchmarks/editors.py --config configs/compare_lab_gpt2.yaml --edits 60

Efficacy is the share of edits whose new object's first token is the likeliest after the edit prompt. The config is one
of `train.py compare`; what does not matter here is not read.
"""

import time
from pathlib import Path

from jsonargparse import auto_cli
from tqdm import tqdm

from mega_pl.commands.compare import BackboneConfig
from mega_pl.data.datamodule import EditDataModule
from mega_pl.editors import Editor
from mega_pl.edits.storage import write_text


def efficacy(
    backbones: list[BackboneConfig],
    data: dict[str, EditDataModule],
    editors: dict[str, Editor],
    edits: int = 60,
    output: Path | None = None,
    folder: str = "",
    protocols: list[str] | None = None,
    modes: list[str] | None = None,
) -> None:
    """Print the table.

    Args:
        backbones: Models to edit.
        data: Edits, by the name of the data set.
        editors: Editors by their names in the table.
        edits: The most edits to make.
        output: Where to write the table.
        folder: Not read.
        protocols: Not read.
        modes: Not read.
    """
    lines = ["| model | editor | efficacy | edits | s / edit | weights |", "| --- |" + " --- |" * 5]
    for config in backbones:
        backbone = config.load()
        digest = backbone.digest()
        for module in data.values():
            module.setup("fit")
            requests = module.requests[:edits]
            for name, editor in editors.items():
                took, seconds = 0, 0.0
                for request in tqdm(requests, desc=name):
                    start = time.process_time()
                    with editor.edit(backbone, [request]) as edited:
                        seconds += time.process_time() - start
                        prompt = edited.prompt(request.filled)
                        likeliest = int(backbone.last_logits(backbone.encode([prompt])).argmax())
                        took += likeliest == backbone.answer_ids(prompt, request.target_new)[0]
                same = "back to the bit" if backbone.digest() == digest else "CHANGED"
                shown = f"{took / len(requests):.3f} | {len(requests)} | {seconds / len(requests):.2f}"
                lines.append(f"| {backbone.name} | {name} | {shown} | {same} |")
    print("\n".join(lines))
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    auto_cli(efficacy, as_positional=False)
