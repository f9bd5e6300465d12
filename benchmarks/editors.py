"""Does each editor do what such editors do, and what does it cost? Single edits, each from nothing.

    python benchmarks/editors.py --config configs/compare_lab_gpt2.yaml --edits 60

Efficacy is the share of edits whose new object's first token is the likeliest after the edit prompt. Seconds are of
computing, on all cores, until an edit is in force; what an editor computes once (second moments, a router's references)
is not part of them, for one edit is made before they are counted. Memory is the most that an edit takes beyond what the
process has before it. Nothing is read from an editor's `folder`. Further arguments change the config, such as
``--backbones "[{model_name_or_path: FOLDER}]"``.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jsonargparse import auto_parser
from peak import peak, restart_peak
from tqdm import tqdm

from mega_pl import Backbone, EditRequest
from mega_pl.asking import argmax_tokens
from mega_pl.commands import compare
from mega_pl.editors import Editor
from mega_pl.edits.storage import write_text


@dataclass(frozen=True)
class Cost:
    """Of some edits.

    Args:
        efficacy: Share that takes.
        seconds: Of computing, an edit.
        memory: Largest of all edits, in bytes.
    """

    efficacy: float
    seconds: float
    memory: int


def main(args: Sequence[str] | None = None) -> None:
    """Make the edits and print the table."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--config", required=True, help="a config of `train.py compare`")
    command.add_argument(
        "--edits", type=int, default=60, help="the most edits that count; one more is made before them"
    )
    command.add_argument("--output", type=Path)
    options, rest = command.parse_known_args(args)
    parser = auto_parser(compare, as_positional=False)
    arguments = parser.instantiate_classes(parser.parse_args(["--config", options.config, *rest]))
    lines = ["| model | editor | efficacy | edits | s / edit | MiB | weights |", "| --- |" + " --- |" * 6]
    for config in arguments.backbones:
        backbone = config.load()
        digest = backbone.digest()
        for module in arguments.data.values():
            module.setup("fit")
            first, *requests = module.requests[: options.edits + 1]
            if not requests:
                command.error(
                    "the data must have 2 edits or more, one of which does not count, but has 1; raise `limit`"
                )
            for name, editor in arguments.editors.items():
                cost = measure(backbone, name, without_folder(editor), first, requests)
                same = "back to the bit" if backbone.digest() == digest else "CHANGED"
                shown = f"{cost.efficacy:.3f} | {len(requests)} | {cost.seconds:.2f} | {cost.memory / 2**20:.0f}"
                lines.append(f"| {backbone.name} | {name} | {shown} | {same} |")
                print(lines[-1], flush=True)
    print("\n".join(lines))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.output, "\n".join(lines) + "\n")


def without_folder(editor: Any) -> Any:  # noqa: ANN401
    """The editor, which finds everything anew."""
    return replace(editor, folder=None) if hasattr(editor, "folder") else editor


def measure(backbone: Backbone, name: str, editor: Editor, first: EditRequest, requests: Sequence[EditRequest]) -> Cost:
    """Make edits one at a time, a first one uncounted."""
    took, seconds, memory = 0, 0.0, 0
    for request in tqdm([first, *requests], desc=name):
        before, start = restart_peak(), time.process_time()
        with editor.edit(backbone, [request]) as edited:
            spent, most = time.process_time() - start, peak()
            prompt = edited.prompt(request.filled)
            (token,) = argmax_tokens(backbone, [prompt])
        if request is not first:
            took += token == backbone.answer_ids(prompt, request.target_new)[0]
            seconds, memory = seconds + spent, max(memory, most - before)
    return Cost(took / len(requests), seconds / len(requests), memory)


if __name__ == "__main__":
    main()
