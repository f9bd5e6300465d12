"""What results look like: tables in Markdown and LaTeX, and figures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mega_pl.compare.engine import Result
from mega_pl.protocols import Score, format_value

BARE = "bare model"
SECONDS = "s/edit"
"""Column of the seconds that an edit took to be put into force."""

ROUTES = {"right": "#2a6f97", "wrong edit": "#c44536", "no edit, though one was right": "#b8b8b8"}
"""Where prompts may go, and the colours that show it."""


@dataclass(frozen=True)
class Block:
    """One table: methods by measures.

    Args:
        title: Of the table.
        columns: The measures.
        rows: By method the value of each measure.
        tests: Number of tests, or edits, of each measure; 0 where it is of neither.
        lower_is_better: Names of columns that are better low, shown or not.
    """

    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
    tests: tuple[int, ...]
    lower_is_better: frozenset[str] = frozenset()


def overviews(results: Sequence[tuple[str, Result]]) -> list[Block]:
    """A table for each backbone, data set, mode and number of edits: the headlines of all protocols side by side.

    Columns of which the data hold no test are left out.
    """
    groups = _grouped(results, lambda name, r: f"{name}, {r.data}: {r.edits} edits, {r.mode}")
    return [_with_seconds(_block(title, group, headlines=True), group) for title, group in groups.items()]


def blocks(results: Sequence[tuple[str, Result]]) -> list[Block]:
    """A table for each of these and each protocol, with all of its columns."""
    groups = _grouped(results, _of_protocol)
    return [_block(title, group, headlines=False) for title, group in groups.items()]


def _block(title: str, results: Sequence[Result], *, headlines: bool) -> Block:
    """Results of one set of tests as a table, the bare model first."""
    columns: dict[str, int] = {}
    rows: dict[str, dict[str, float]] = {BARE: {}}
    lower: set[str] = set()
    for result in results:
        prefix = f"{result.protocol} " if headlines else ""
        names = (result.headline if headlines else ()) or tuple(result.scores)
        scores = {prefix + name: result.scores[name] for name in names if result.scores[name].n or not headlines}
        columns.update({name: score.n for name, score in scores.items()})
        lower.update(prefix + name for name in result.lower_is_better)
        rows[BARE] |= {name: score.bare for name, score in scores.items()}
        rows.setdefault(result.editor, {}).update({name: score.value for name, score in scores.items()})
    values = {editor: tuple(row.get(name, math.nan) for name in columns) for editor, row in rows.items()}
    return Block(title, tuple(columns), values, tuple(columns.values()), frozenset(lower))


def _with_seconds(block: Block, results: Sequence[Result]) -> Block:
    """The table with a column of what an edit takes."""
    seconds = {result.editor: result.seconds for result in results} | {BARE: math.nan}
    rows = {editor: (*values, seconds[editor]) for editor, values in block.rows.items()}
    return Block(block.title, (*block.columns, SECONDS), rows, (*block.tests, 0), block.lower_is_better)


def markdown(block: Block) -> str:
    """A table in Markdown."""
    lines = [f"| {block.title} | " + " | ".join(block.columns) + " |", "| --- |" + " --- |" * len(block.columns)]
    lines += [f"| {name} | " + " | ".join(map(format_value, values)) + " |" for name, values in block.rows.items()]
    lines.append("| tests | " + " | ".join(str(n or "") for n in block.tests) + " |")
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


def heat_maps(tables: Sequence[Block]) -> Figure:
    """A heat map for each table: methods by measures, each number in its cell, from red (0) to green (1).

    The colour of what is better low is turned round, and what is no share has none.
    """
    heights = [1.1 + 0.3 * len(block.rows) for block in tables]
    width = max(5.0, 2.2 + 0.75 * max(len(block.columns) for block in tables))
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    every = figure.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, block in zip(every, tables, strict=True):
        colours = [
            [_good(block, column, value) for column, value in zip(block.columns, row, strict=True)]
            for row in block.rows.values()
        ]
        axes.imshow(colours, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto", alpha=0.75)
        for y, row in enumerate(block.rows.values()):
            for x, value in enumerate(row):
                axes.text(x, y, format_value(value), ha="center", va="center", fontsize=7)
        axes.set_xticks(range(len(block.columns)), block.columns, fontsize=7, rotation=20, ha="right")
        axes.set_yticks(range(len(block.rows)), list(block.rows), fontsize=8)
        axes.set_title(block.title, fontsize=9)
    return figure


def _good(block: Block, column: str, value: float) -> float:
    """How good a value is, in [0, 1]; one half where that cannot be told."""
    if not 0 <= value <= 1 or column == SECONDS:
        return 0.5
    return 1 - value if column in block.lower_is_better else value


def bars(scores: Mapping[str, Score], names: Mapping[str, str]) -> Figure:
    """Scores with their 95 % intervals, beside the bare model's.

    Args:
        scores: By key.
        names: What a key is called in the figure.
    """
    kept = {name: score for name, score in scores.items() if score.n}
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    places = range(len(kept))
    values = [score.value for score in kept.values()]
    spread = _spread(list(kept.values()))
    axes.bar([p - 0.2 for p in places], [s.bare for s in kept.values()], 0.38, label=BARE, color="#b8b8b8")
    axes.bar([p + 0.2 for p in places], values, 0.38, yerr=spread, capsize=3, label="edited", color="#2a6f97")
    for place, value in zip(places, values, strict=True):
        axes.text(place + 0.2, 0.02, f"{value:.2f}", ha="center", color="white", fontsize=7)
    axes.set_xticks(list(places), [names.get(name, name) for name in kept])
    axes.set_ylim(min([0.0, *values]), max([1.05, *values]))
    axes.set_ylabel("score")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def averages(results: Sequence[tuple[str, Result]]) -> Figure | None:
    """The averages of every editor with their 95 % intervals: a panel for each backbone, data set, mode and number.

    The average is the column of that name, or a protocol's first; the bare model's is a line. Protocols of which the
    data hold no test have no panel; None where there is no other.
    """
    panels = _grouped([pair for pair in results if _average(pair[1])[1].n], _of_protocol)
    if not panels:
        return None
    figure, grid = _grid(len(panels), width=4.6, height=0.9 + 0.24 * max(len({r.editor for _, r in results}), 3))
    for axes, (title, group) in zip(grid, panels.items(), strict=True):
        scores = [_average(result)[1] for result in group]
        places = range(len(scores))
        axes.errorbar([s.value for s in scores], places, xerr=_spread(scores), fmt="o", color="#2a6f97", capsize=2)
        axes.axvline(scores[0].bare, color="#b8b8b8", label=BARE)
        axes.set_yticks(list(places), [result.editor for result in group], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(*_limits(scores))
        axes.set_xlabel(_average(group[0])[0], fontsize=8)
        axes.set_title(title, fontsize=8)
        axes.grid(axis="x", alpha=0.3)
    return figure


def growth(results: Sequence[tuple[str, Result]]) -> Figure | None:
    """The averages against the number of edits in force, a line an editor; None where no number grows."""
    grown = [pair for pair in results if pair[1].mode in ("growing", "sequential")]
    if not grown:
        return None
    panels = _grouped(grown, lambda name, r: f"{name}, {r.data}, {r.protocol}: {r.mode}")
    figure, grid = _grid(len(panels), width=4.6, height=3.0)
    for axes, (title, group) in zip(grid, panels.items(), strict=True):
        for editor in dict.fromkeys(result.editor for result in group):
            own = {result.edits: _average(result)[1] for result in group if result.editor == editor}
            scores = list(own.values())
            values = [score.value for score in scores]
            axes.errorbar(list(own), values, yerr=_spread(scores), marker="o", capsize=2, label=editor)
        axes.set_xscale("log")
        axes.set_ylim(*_limits([_average(result)[1] for result in group]))
        axes.set_xlabel("edits in force")
        axes.set_ylabel(_average(group[0])[0], fontsize=8)
        axes.set_title(title, fontsize=8)
        axes.legend(fontsize=6)
        axes.grid(alpha=0.3)
    return figure


def routing(results: Sequence[tuple[str, Result]]) -> Figure | None:
    """Where prompts went, by measure: to the right edit, to a wrong one, or to none; None where no editor routes.

    A prompt that no edit should answer goes right if none does.
    """
    routed = [pair for pair in results if any(way["n"] and way["silent"] < 1 for way in pair[1].routing.values())]
    if not routed:
        return None
    figure, grid = _grid(len(routed), width=4.6, height=2.6)
    for axes, (name, result) in zip(grid, routed, strict=True):
        ways = {measure: way for measure, way in result.routing.items() if way["n"]}
        left = [0.0] * len(ways)
        shares = [(way["right"], way["wrong_edit"], 1 - way["right"] - way["wrong_edit"]) for way in ways.values()]
        for (route, colour), widths in zip(ROUTES.items(), zip(*shares, strict=True), strict=True):
            axes.barh(range(len(left)), widths, left=left, color=colour, label=route)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(left)), list(ways), fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_title(f"{name}, {result.data}: {result.editor}, {result.edits} edits, {result.mode}", fontsize=8)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ROUTES), fontsize=7)
    return figure


def _average(result: Result) -> tuple[str, Score]:
    """What stands for a protocol, and its column: its average, or the first of its columns."""
    column = "average" if "average" in result.scores else next(iter(result.scores))
    return column, result.scores[column]


def _spread(scores: Sequence[Score]) -> list[list[float]]:
    """How far the ends of 95 % intervals lie below and above the values."""
    low = [max(0.0, score.value - score.ci95[0]) for score in scores]
    return [low, [max(0.0, score.ci95[1] - score.value) for score in scores]]


def _limits(scores: Sequence[Score]) -> tuple[float, float]:
    """Ends of an axis: those of shares, or farther out where scores are."""
    return min([0.0, *(s.ci95[0] for s in scores)]) - 0.02, max([1.0, *(s.ci95[1] for s in scores)]) + 0.02


def _of_protocol(backbone: str, result: Result) -> str:
    return f"{backbone}, {result.data}, {result.protocol}: {result.edits} edits, {result.mode}"


def _grouped(results: Sequence[tuple[str, Result]], title: Callable[[str, Result], str]) -> dict[str, list[Result]]:
    """Results by the title of the table or the panel that shows them."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for backbone, result in results:
        groups[title(backbone, result)].append(result)
    return groups


def _grid(count: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of some panels, two beside each other."""
    columns = min(count, 2)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid[:count]
