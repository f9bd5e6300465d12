"""What a run has left: its table, and the rows behind each number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mega_pl.compare import Block, markdown
from mega_pl.errors import MegaValueError

SHOWN = 500
"""Rows that are listed at a time."""

OUTCOMES = ("all", "right", "wrong", "changed by the edit")
"""What rows can be told by."""


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Args:
        folder: Where it is.
        table: Its scores in Markdown.
        rows: A row for each test, as `cases.jsonl` has them.
    """

    folder: Path
    table: str
    rows: tuple[dict[str, Any], ...]

    @property
    def editors(self) -> list[str]:
        """Who was judged: editors, or for a fit who routed or what protocol asked."""
        return list(dict.fromkeys(map(editor_of, self.rows)))

    @property
    def measures(self) -> list[str]:
        """The measures that rows count in."""
        return list(dict.fromkeys(name for row in self.rows for name in row.get("outcomes", {})))


def runs(root: Path) -> list[str]:
    """The runs below a folder that left results, the latest first."""
    found = [path.parent for path in root.glob("*/cases.jsonl") if (path.parent / "metrics.json").is_file()]
    return [str(path) for path in sorted(found, key=lambda f: (f / "cases.jsonl").stat().st_mtime, reverse=True)]


def open_run(folder: str) -> Run:
    """Read what a run has left.

    Args:
        folder: Its folder.

    Raises:
        ValueError: If it holds no results, or they are damaged.
    """
    path = Path(folder.strip() or ".")
    cases, metrics = path / "cases.jsonl", path / "metrics.json"
    if not folder.strip() or not cases.is_file() or not metrics.is_file():
        raise MegaValueError(f"a run must hold metrics.json and cases.jsonl, but {folder!r} does not; name its folder.")
    return _read(path, (cases.stat().st_mtime_ns, metrics.stat().st_mtime_ns))


@lru_cache(maxsize=4)
def _read(path: Path, _: tuple[int, int]) -> Run:
    """A run as it was at some time."""
    try:
        metrics = json.loads((path / "metrics.json").read_text("utf-8"))
        with (path / "cases.jsonl").open(encoding="utf-8") as lines:
            rows = tuple(_row(json.loads(line)) for line in lines if line.strip())
        overview = path / "table.md"
        table = overview.read_text("utf-8") if overview.is_file() else _table(path.name, metrics)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MegaValueError(
            f"the results of a run must be whole, but those in {str(path)!r} are not: {error!r}"
        ) from error
    return Run(path, table, rows)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it is, if it can be one."""
    outcomes = row.get("outcomes", {}).values()
    if not all(isinstance(value, int | float) for value in outcomes):
        raise MegaValueError(f"`outcomes` of a row must be numbers, but got {row['outcomes']}.")
    row.get("test", {}).items(), editor_of(row), texts_of(row)  # these refuse what is no row
    return row


def _table(name: str, metrics: dict[str, Any]) -> str:
    """The scores of a fit as a table: who routed by measure."""
    own: dict[str, Any] = dict(metrics["metrics"].items())
    entries, columns = {"own": own, **metrics.get("modes", {})}, tuple(own)

    def values(scores: dict[str, Any], field: str) -> tuple[float, ...]:
        found = (scores.get(column, {}).get(field) for column in columns)
        return tuple(float("nan") if value is None else value for value in found)

    rows = {"bare model": values(own, "bare")}
    rows |= {mode: values(scores, "value") for mode, scores in entries.items()}
    return markdown(Block(name, columns, rows, tuple(own[c]["n"] for c in columns)))


def editor_of(row: dict[str, Any]) -> str:
    """Who gave a row: with the data and the mode where a run has several."""
    if "method" in row:
        return f"{row['method']} · {row['data']} · {row['mode']} {row['edits']} · {row['protocol']}"
    return str(row.get("mode") or row.get("protocol") or "edited")


def texts_of(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Prompt, bare answer, edited answer and edit that fired, whatever the protocol calls them."""
    test = row.get("test", {})
    prompt = next((str(test[name]) for name in ("prompt", "wording", "question") if test.get(name)), "")
    bare, edited = row.get("bare", row.get("bare_prediction", "")), row.get("edited", row.get("prediction", ""))
    fired = row.get("fired") or (edited.get("fired", "") if isinstance(edited, dict) else "")
    return prompt, _text(bare), _text(edited), str(fired or "")


def _text(answer: object) -> str:
    """The words of an answer."""
    if isinstance(answer, dict):
        named = next((answer[name] for name in ("text", "texts", "prediction", "answer") if name in answer), None)
        return _text(named) if named is not None else json.dumps(answer, ensure_ascii=False)
    if isinstance(answer, list | tuple):
        return " | ".join(map(_text, answer))
    return str(answer)


def chosen(run: Run, editor: str = "", measure: str = "", outcome: str = "all", words: str = "") -> list[int]:
    """The rows of a run that somebody wants to see, by their places.

    Args:
        run: The run.
        editor: As `editor_of` names it; blank for all.
        measure: One that rows count in; blank for all.
        outcome: One of `OUTCOMES`; a row is right where all its outcomes are 1, or that of the measure.
        words: A text that prompt or answers hold; blank for all.
    """
    return [
        place
        for place, row in enumerate(run.rows)
        if (not editor or editor_of(row) == editor)
        and (not measure or measure in row.get("outcomes", {}))
        and _has_outcome(row, measure, outcome)
        and (not words.strip() or any(words.strip().lower() in text.lower() for text in texts_of(row)))
    ]


def _has_outcome(row: dict[str, Any], measure: str, outcome: str) -> bool:
    if outcome == "all":
        return True
    if outcome == "changed by the edit":
        _, bare, edited, _ = texts_of(row)
        return bare != edited
    worth = row.get("outcomes", {})
    values = [worth[measure]] if measure else list(worth.values())
    return bool(values) and all(value >= 1 for value in values) == (outcome == "right")


def cells(run: Run, places: Sequence[int]) -> list[list[Any]]:
    """Rows of a run as those of a table.

    Their numbers come first, then editor, edit, outcomes by measure, prompt, both answers, and the edit that fired.
    """
    table: list[list[Any]] = []
    for place in places[:SHOWN]:
        row = run.rows[place]
        worth = ", ".join(f"{name} {value:g}" for name, value in row.get("outcomes", {}).items())
        edit = str(row.get("test", {}).get("edit_id", ""))
        table.append([place + 1, editor_of(row), edit, worth, *texts_of(row)])
    return table
