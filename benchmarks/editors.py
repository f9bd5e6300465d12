"""Does each editor do what such editors do? Single edits: efficacy, seconds an edit, and weights that come back.

    python benchmarks/editors.py --config configs/compare_lab_gpt2.yaml --edits 60

Efficacy is the share of edits whose new object's first token is the likeliest after the edit prompt.
"""

import argparse
import time
from pathlib import Path

from jsonargparse import auto_parser
from tqdm import tqdm

from mega_pl.asking import likeliest
from mega_pl.commands import compare
from mega_pl.edits.storage import write_text


def main(args: list[str] | None = None) -> None:
    """Make the edits and print the table."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--config", required=True, help="a config of `train.py compare`")
    command.add_argument("--edits", type=int, default=60, help="the most edits to make")
    command.add_argument("--output", type=Path)
    options = command.parse_args(args)
    parser = auto_parser(compare, as_positional=False)
    asked = parser.instantiate_classes(parser.parse_args(["--config", options.config]))
    lines = ["| model | editor | efficacy | edits | s / edit | weights |", "| --- |" + " --- |" * 5]
    for config in asked.backbones:
        backbone = config.load()
        digest = backbone.digest()
        for module in asked.data.values():
            module.setup("fit")
            requests = module.requests[: options.edits]
            for name, editor in asked.editors.items():
                took, seconds = 0, 0.0
                for request in tqdm(requests, desc=name):
                    start = time.process_time()
                    with editor.edit(backbone, [request]) as edited:
                        seconds += time.process_time() - start
                        prompt = edited.prompt(request.filled)
                        (token,) = likeliest(backbone, [prompt])
                        took += token == backbone.answer_ids(prompt, request.target_new)[0]
                same = "back to the bit" if backbone.digest() == digest else "CHANGED"
                shown = f"{took / len(requests):.3f} | {len(requests)} | {seconds / len(requests):.2f}"
                lines.append(f"| {backbone.name} | {name} | {shown} | {same} |")
    print("\n".join(lines))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
