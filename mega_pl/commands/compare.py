"""``train.py compare``: the table of a knowledge-editing paper, for any editors, backbones, data and protocols."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mega_pl.backbone import Backbone, load
from mega_pl.backbone.backbone import Dtype
from mega_pl.backbone.loading import model_name
from mega_pl.commands.dry_run import rehearse_comparison
from mega_pl.comparison import Mode, Result, compare_editors
from mega_pl.data.datamodule import EditDataModule
from mega_pl.editors import Editor
from mega_pl.edits.storage import write_text
from mega_pl.errors import MegaValueError
from mega_pl.fitting import versions
from mega_pl.protocols import PROTOCOLS, format_value, get_protocol


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
    modes: Sequence[Mode] = ("single", "together"),
    dry_run: bool = False,
) -> None:
    """Judge every editor on the same edits and prompts, beside the bare model.

    Writes ``metrics.json``, ``cases.jsonl`` (a row for every test), ``table.md``, ``table.tex`` and
    ``figures/comparison.png``. Answers are kept in ``answers/``: the same command goes on where it was stopped.

    Args:
        backbones: Models to edit.
        data: Edits and their tests, by the name of the data set in tables.
        editors: Editors by their names in tables; their settings must suit every backbone.
        folder: Where the results are written.
        protocols: Who judges.
        modes: One edit at a time, all together, or the first 1, 10, 100 and all.
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
    for config in backbones:
        backbone = config.load()
        for name, module in data.items():
            results = compare_editors(backbone, name, module.cases, editors, judges, modes, out / "answers")
            found += [(backbone, result) for result in results]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    metrics = {"format_version": 1, "versions": versions(), "results": [_entry(*pair) for pair in found]}
    write_text(out / "metrics.json", json.dumps(metrics, ensure_ascii=False, indent=1) + "\n")
    write_text(out / "cases.jsonl", "".join(_lines(*pair) for pair in found))
    heads = overviews(found)
    tables = heads + blocks(found) if len(protocols) > 1 else heads
    write_text(out / "table.md", "\n".join(map(markdown, tables)))
    write_text(out / "table.tex", "\n".join(map(latex, tables)))
    draw(heads).savefig(out / "figures" / "comparison.png", dpi=150)
    shown_heads = "\n".join(map(markdown, heads))
    print(f"\n{shown_heads}\nWritten to {out}: metrics.json, cases.jsonl, table.md, table.tex, figures/comparison.png")


compare.__doc__ = str(compare.__doc__).replace("Who judges.", f"Who judges: {', '.join(PROTOCOLS)}.")  # for --help


@dataclass(frozen=True)
class Block:
    """One table: the editors under one protocol or several.

    Args:
        title: Of the table.
        columns: The measures.
        rows: By method the value of each measure.
        tests: Number of tests, or edits, of each measure.
        lower_is_better: Names of columns that are better low, shown or not.
    """

    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
    tests: tuple[int, ...]
    lower_is_better: frozenset[str] = frozenset()


def overviews(found: Sequence[tuple[Backbone, Result]]) -> list[Block]:
    """A table for each backbone, data set, mode and number of edits: the headlines of all protocols side by side."""
    return _tables(found, "{backbone}, {data}: {edits} edits, {mode}", headlines=True)


def blocks(found: Sequence[tuple[Backbone, Result]]) -> list[Block]:
    """A table for each of these and each protocol, with all of its columns."""
    return _tables(found, "{backbone}, {data}, {protocol}: {edits} edits, {mode}", headlines=False)


def _tables(found: Sequence[tuple[Backbone, Result]], title: str, *, headlines: bool) -> list[Block]:
    """The results as tables, one for each title, the bare model first."""
    columns: dict[str, dict[str, int]] = {}
    rows: dict[str, dict[str, dict[str, float]]] = {}
    lower: dict[str, set[str]] = {}
    for backbone, r in found:
        key = title.format(backbone=backbone.name, data=r.data, protocol=r.protocol, edits=r.edits, mode=r.mode)
        protocol, prefix = PROTOCOLS.get(r.protocol), f"{r.protocol} " if headlines else ""
        names = (protocol.headline if protocol and headlines else ()) or tuple(r.scores)
        told = {prefix + name: r.scores[name] for name in names}
        columns.setdefault(key, {}).update({name: score.n for name, score in told.items()})
        lower.setdefault(key, set()).update(prefix + name for name in (protocol.lower_is_better if protocol else ()))
        of_title = rows.setdefault(key, {"bare model": {}})
        of_title["bare model"] |= {name: score.bare for name, score in told.items()}
        of_title.setdefault(r.editor, {}).update({name: score.value for name, score in told.items()})
    return [
        Block(
            key,
            tuple(tests),
            {editor: tuple(values[name] for name in tests) for editor, values in rows[key].items()},
            tuple(tests.values()),
            frozenset(lower[key]),
        )
        for key, tests in columns.items()
    ]


def markdown(block: Block) -> str:
    """A table in Markdown."""
    lines = [f"| {block.title} | " + " | ".join(block.columns) + " |", "| --- |" + " --- |" * len(block.columns)]
    lines += [f"| {name} | " + " | ".join(map(format_value, values)) + " |" for name, values in block.rows.items()]
    lines.append("| tests | " + " | ".join(map(str, block.tests)) + " |")
    return "\n".join(lines) + "\n"


def latex(block: Block) -> str:
    """A table in LaTeX, for booktabs."""
    escape = str.maketrans({"_": r"\_", "&": r"\&", "%": r"\%", "#": r"\#"})
    rows = [(name, *map(format_value, values)) for name, values in block.rows.items()]
    body = "\n".join(" & ".join(cell.translate(escape) for cell in row) + r" \\" for row in rows)
    head = " & ".join(("", *(column.translate(escape) for column in block.columns)))
    return (
        f"% {block.title}\n\\begin{{tabular}}{{l{'r' * len(block.columns)}}}\n\\toprule\n"
        f"{head} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )


def draw(tables: Sequence[Block]) -> Figure:
    """A heat map for each table: methods by measures, each number in its cell, from red (0) to green (1).

    The colour of what is better low is turned round, and what is no share has none.
    """
    heights = [1.1 + 0.3 * len(block.rows) for block in tables]
    width = max(5.0, 2.2 + 0.75 * max(len(block.columns) for block in tables))
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    for axes, block in zip(
        figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0], tables, strict=True
    ):
        low = [column in block.lower_is_better for column in block.columns]
        colours = [[_good(*cell) for cell in zip(row, low, strict=True)] for row in block.rows.values()]
        axes.imshow(colours, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto", alpha=0.75)
        for y, row in enumerate(block.rows.values()):
            for x, value in enumerate(row):
                axes.text(x, y, format_value(value), ha="center", va="center", fontsize=7)
        axes.set_xticks(range(len(block.columns)), block.columns, fontsize=7, rotation=20, ha="right")
        axes.set_yticks(range(len(block.rows)), list(block.rows), fontsize=8)
        axes.set_title(block.title, fontsize=9)
    return figure


def _good(value: float, lower_is_better: bool) -> float:
    """How good a value is, in [0, 1]; one half where that cannot be told."""
    if not 0 <= value <= 1:
        return 0.5
    return 1 - value if lower_is_better else value


def _entry(backbone: Backbone, result: Result) -> dict[str, Any]:
    return {
        "backbone": backbone.name,
        "backbone_fingerprint": backbone.fingerprint,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "data": result.data,
        "mode": result.mode,
        "edits": result.edits,
        "method": result.editor,
        "protocol": result.protocol,
        "metrics": {name: score.to_json() for name, score in result.scores.items()},
    }


def _lines(backbone: Backbone, result: Result) -> str:
    head = {
        "backbone": backbone.name,
        "data": result.data,
        "mode": result.mode,
        "edits": result.edits,
        "method": result.editor,
        "protocol": result.protocol,
    }
    return "".join(json.dumps(head | row, ensure_ascii=False) + "\n" for row in result.rows)
