"""``train.py compare``: the table of a knowledge-editing paper, for any editors, backbones, data and protocols."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mega_pl.backbone import Backbone, load
from mega_pl.backbone.backbone import Dtype
from mega_pl.backbone.loading import model_name
from mega_pl.commands.dry_run import rehearse_comparison
from mega_pl.compare import (
    Mode,
    Result,
    averages,
    blocks,
    compare_editors,
    growth,
    heat_maps,
    latex,
    markdown,
    overviews,
    routing,
)
from mega_pl.data.datamodule import EditDataModule
from mega_pl.editors import Editor
from mega_pl.edits.storage import replacing, write_text
from mega_pl.errors import MegaValueError
from mega_pl.fitting import versions
from mega_pl.protocols import PROTOCOLS, get_protocol


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A model to edit.

    Args:
        model_name_or_path: What `load` loads: a lab model, a name on the Hugging Face hub, a folder or a GGUF file.
        revision: Branch, tag or commit on the hub.
        dtype: Of the weights.
        device_map: Where Accelerate puts the weights.
    """

    model_name_or_path: str
    revision: str | None = None
    dtype: Dtype = "float32"
    device_map: str | None = None

    def load(self) -> Backbone:
        """The model."""
        return load(self.model_name_or_path, revision=self.revision, dtype=self.dtype, device_map=self.device_map)


def compare(
    backbones: list[BackboneConfig],
    data: dict[str, EditDataModule],
    editors: dict[str, Editor],
    folder: str,
    protocols: Sequence[str] = ("sake",),
    modes: Sequence[Mode] = ("single", "batch"),
    dry_run: bool = False,
) -> None:
    """Judge every editor on the same edits and prompts, beside the bare model.

    Writes ``metrics.json``, ``cases.jsonl`` (a row for every test), ``table.md``, ``table.tex`` and ``figures``.
    Answers are kept in ``answers/``: the same command goes on where it was stopped, and started several times, by hand,
    torchrun or SLURM, on machines that see the folder, it shares the work.

    Args:
        backbones: Models to edit.
        data: Edits and their tests, by the name of the data set in tables.
        editors: Editors by their names in tables; their settings must suit every backbone.
        folder: Where the results are written.
        protocols: Who judges.
        modes: How edits are put into force: one at a time (single), all at once (batch), the first 1, 10, 100, ... at
            once (growing), or one on top of the other (sequential).
        dry_run: Only check config, data and tokenizers and tell the memory, without weights; also ``--dry-run``.

    Raises:
        ValueError: If two backbones have one name, or there is no such protocol.
    """
    out = Path(folder)
    names = [model_name(config.model_name_or_path) for config in backbones]
    if len(set(names)) < len(names):
        raise MegaValueError(
            f"`backbones` must have names of their own, as tables do, but got {', '.join(names)}; compare them in two "
            "runs, or rename a folder."
        )
    judges = [get_protocol(name) for name in protocols]
    for module in data.values():
        module.setup("fit")
    if dry_run:
        models = [(b.model_name_or_path, b.revision, b.dtype, b.device_map is not None) for b in backbones]
        rehearse_comparison(models, data, judges)
        return
    found: list[tuple[Backbone, Result]] = []
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "cases.jsonl") as beside, beside.open("w", encoding="utf-8") as lines:
        for config in backbones:
            backbone = config.load()
            for name, module in data.items():
                for result in compare_editors(backbone, name, module.cases, editors, judges, modes, out / "answers"):
                    lines.writelines(_lines(backbone, result))
                    found.append((backbone, replace(result, rows=())))
    metrics = {"format_version": 1, "versions": versions(), "results": [_entry(*pair) for pair in found]}
    write_text(out / "metrics.json", json.dumps(metrics, ensure_ascii=False, indent=1) + "\n")
    results = [(backbone.name, result) for backbone, result in found]
    heads = overviews(results)
    tables = heads + blocks(results) if len(protocols) > 1 else heads
    write_text(out / "table.md", "\n".join(map(markdown, tables)))
    write_text(out / "table.tex", "\n".join(map(latex, tables)))
    figures = {
        "comparison": heat_maps(heads),
        "averages": averages(results),
        "growth": growth(results),
        "routing": routing(results),
    }
    (out / "figures").mkdir(exist_ok=True)
    for name, figure in figures.items():
        if figure is not None:
            with replacing(out / "figures" / f"{name}.png") as beside:
                figure.savefig(beside, dpi=150)
    shown = "\n".join(map(markdown, heads))
    print(f"\n{shown}\nWritten to {out}: metrics.json, cases.jsonl, table.md, table.tex, figures/")


compare.__doc__ = str(compare.__doc__).replace("Who judges.", f"Who judges: {', '.join(PROTOCOLS)}.")  # for --help


def _head(backbone: Backbone, result: Result) -> dict[str, Any]:
    """What a result is of."""
    return {
        "backbone": backbone.name,
        "data": result.data,
        "mode": result.mode,
        "edits": result.edits,
        "method": result.editor,
        "protocol": result.protocol,
    }


def _entry(backbone: Backbone, result: Result) -> dict[str, Any]:
    return _head(backbone, result) | {
        "backbone_fingerprint": backbone.fingerprint,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "seconds_per_edit": result.seconds,
        "routing": result.routing,
        "metrics": {name: score.to_json() for name, score in result.scores.items()},
    }


def _lines(backbone: Backbone, result: Result) -> Iterator[str]:
    head = _head(backbone, result)
    return (json.dumps(head | row, ensure_ascii=False) + "\n" for row in result.rows)
