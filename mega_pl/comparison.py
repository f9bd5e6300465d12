"""Several editors on the same edits under several protocols, the bare model first and once.

The answers of every editor are kept in small JSON files, one for each few edits or for all of them together, so that a
comparison that was broken off goes on where it stopped; rows and scores are made of them at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from mega_pl.backbone import Backbone
from mega_pl.editors import Editor
from mega_pl.edits import EditCase
from mega_pl.edits.storage import write_text
from mega_pl.errors import MegaValueError
from mega_pl.protocols import Protocol, Score

Mode = Literal["single", "together", "sequential"]
"""One edit at a time, as papers do; all in force at once; or the first 1, 10, 100 and all, each judged alone."""

CHUNK = 10
"""Single edits whose answers share a file."""


@dataclass(frozen=True)
class Result:
    """What a protocol says of an editor.

    Args:
        data: Name of the data set.
        mode: How edits were put into force.
        edits: How many were judged.
        editor: Name of the editor.
        protocol: Name of the protocol.
        scores: By column; each knows the bare model's value.
        rows: A row for each test, ready for JSON.
    """

    data: str
    mode: Mode
    edits: int
    editor: str
    protocol: str
    scores: Mapping[str, Score]
    rows: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """Edits that are put into force and judged together.

    Args:
        mode: How; a single edit is a part of its own.
        cases: The edits.
    """

    mode: Mode
    cases: tuple[EditCase, ...]


def compare_editors(
    backbone: Backbone,
    name: str,
    cases: Sequence[EditCase],
    editors: Mapping[str, Editor],
    protocols: Sequence[Protocol[Any, Any, Any]],
    modes: Sequence[Mode],
    folder: Path,
) -> Iterator[Result]:
    """Judge editors on a data set.

    Args:
        backbone: The bare model.
        name: Name of the data set.
        cases: Edits and their tests.
        editors: By name in tables.
        protocols: Who judges.
        modes: How edits are put into force.
        folder: Where answers are kept.

    Yields:
        A result for each mode, number of edits, editor and protocol.

    Raises:
        ValueError: If there is no case.
    """
    if not cases:
        raise MegaValueError(f"`data` must hold at least one edit, but {name!r} has none.")
    protocols = [protocol.prepare(backbone, cases) for protocol in protocols]
    bare: dict[str, list[Any]] = {}
    for protocol in tqdm(protocols, desc=f"{name}: bare model", dynamic_ncols=True):
        path = folder / _file(backbone, "bare", protocol, cases)
        if not path.is_file():
            _write(path, protocol.bare(backbone, cases))
        bare[protocol.name] = _read(path, protocol)
    for mode in modes:
        for group in _groups(mode, cases):
            for editor_name, editor in editors.items():
                answers = _answers(backbone, editor_name, editor, group, protocols, folder)
                judged = [case for part in group for case in part.cases]
                for protocol in protocols:
                    tests = protocol.all_tests(judged)
                    before = _of(bare[protocol.name], protocol, cases, judged)
                    rows = [
                        protocol.row(*columns) for columns in zip(tests, before, answers[protocol.name], strict=True)
                    ]
                    yield Result(
                        data=name,
                        mode=mode,
                        edits=len(judged),
                        editor=editor_name,
                        protocol=protocol.name,
                        scores=protocol.score(rows),
                        rows=[asdict(row) for row in rows],
                    )


def _groups(mode: Mode, cases: Sequence[EditCase]) -> Iterator[list[Part]]:
    """What is scored together: all single edits, all edits, or the first few."""
    if mode == "single":
        yield [Part(mode, (case,)) for case in cases]
    else:
        counts = {len(cases), *(n for n in (1, 10, 100) if mode == "sequential" and n < len(cases))}
        yield from ([Part(mode, tuple(cases[:count]))] for count in sorted(counts))


def _answers(
    backbone: Backbone,
    name: str,
    editor: Editor,
    parts: Sequence[Part],
    protocols: Sequence[Protocol[Any, Any, Any]],
    folder: Path,
) -> dict[str, list[Any]]:
    """What the edited model answers to the tests of some parts, by protocol; a few parts share a file."""
    found: dict[str, list[Any]] = {protocol.name: [] for protocol in protocols}
    chunks = [parts[i : i + CHUNK] for i in range(0, len(parts), CHUNK)]
    for chunk in tqdm(chunks, desc=f"{name}, {parts[0].mode}", dynamic_ncols=True):
        cases = [case for part in chunk for case in part.cases]
        files = {p.name: folder / _file(backbone, f"{name} {editor!r} {chunk[0].mode}", p, cases) for p in protocols}
        missing = [protocol for protocol in protocols if not files[protocol.name].is_file()]
        asked: dict[str, list[Any]] = {protocol.name: [] for protocol in missing}
        for part in chunk if missing else ():
            with editor.edit(backbone, [case.request for case in part.cases]) as edited:
                for protocol in missing:
                    tests = protocol.all_tests(part.cases)
                    asked[protocol.name] += protocol.ask(backbone, edited, tests) if tests else []
        for protocol in missing:
            _write(files[protocol.name], asked[protocol.name])
        for protocol in protocols:
            found[protocol.name] += _read(files[protocol.name], protocol)
    return found


def _write(path: Path, answers: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps([asdict(answer) for answer in answers], ensure_ascii=False) + "\n")


def _read(path: Path, protocol: Protocol[Any, Any, Any]) -> list[Any]:
    return [protocol.answer(**_tuples(fields)) for fields in json.loads(path.read_text("utf-8"))]


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of an answer, with the tuples that JSON makes lists of."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _of(
    answers: Sequence[Any], protocol: Protocol[Any, Any, Any], cases: Sequence[EditCase], some: Sequence[EditCase]
) -> list[Any]:
    """Of the answers to the tests of all cases, those to the tests of some."""
    rest = iter(answers)
    by_edit = {case.request.edit_id: [next(rest) for _ in protocol.tests(case)] for case in cases}
    return [answer for case in some for answer in by_edit[case.request.edit_id]]


def _file(backbone: Backbone, who: str, protocol: Protocol[Any, Any, Any], cases: Sequence[EditCase]) -> str:
    """A name that tells one set of answers from every other."""
    key = [backbone.fingerprint, str(backbone.dtype), who, protocol.name, [asdict(case) for case in cases]]
    key += [[asdict(test) for test in protocol.all_tests(cases)]] if protocol.adapted else []
    return f"{who.split()[0]}-{protocol.name}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
