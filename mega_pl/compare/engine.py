"""Several editors on the same edits under several protocols, the bare model first and once.

What models answer is kept in small JSON files, each of a few edits, so that a comparison that was broken off goes on
where it stopped. Any number of processes may work on one folder: each takes the next piece that nobody holds, and a
piece that a dead process held is free again. Rows and scores are made of the files at the end.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from typing import Protocol as Interface

from filelock import FileLock, Timeout
from tqdm import tqdm

from mega_pl.asking import Edited
from mega_pl.backbone import Backbone
from mega_pl.editors import Editor
from mega_pl.edits import EditCase
from mega_pl.edits.storage import write_text
from mega_pl.errors import MegaValueError
from mega_pl.protocols import Protocol, Score

Mode = Literal["single", "batch", "growing", "sequential"]
"""How edits are put into force: one at a time, as papers do; all at once; the first 1, 10, 100, ... at once; or each on
top of those before it. `growing` and `sequential` judge all edits that are in force, at 1, 10, 100, ... and all."""

AnyProtocol = Protocol[Any, Any, Any]

CHUNK = 10
"""Single edits whose answers share a file."""

POLL = 1.0
"""Seconds between looks at pieces that other processes hold."""


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
        seconds: What an edit took to be put into force, on the machine that did it; asking it is not counted.
        headline: The columns that stand beside other protocols' in one table; all where none are named.
        lower_is_better: The columns that are better low.
        routing: Where prompts went, by measure, as `Protocol.routing` says; empty where the protocol does not.
    """

    data: str
    mode: Mode
    edits: int
    editor: str
    protocol: str
    scores: Mapping[str, Score]
    rows: Sequence[dict[str, Any]]
    seconds: float
    headline: tuple[str, ...] = ()
    lower_is_better: frozenset[str] = frozenset()
    routing: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def compare_editors(
    backbone: Backbone,
    name: str,
    cases: Sequence[EditCase],
    editors: Mapping[str, Editor],
    protocols: Sequence[AnyProtocol],
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
        A result for each mode, number of edits, editor and protocol; an oracle is judged only where it is told.

    Raises:
        ValueError: If there is no case, or no protocol can ask an editor.
    """
    if not cases:
        raise MegaValueError(f"`data` must hold at least one edit, but {name!r} has none.")
    for label, editor in editors.items():
        if not _askers(editor, protocols):
            raise MegaValueError(
                f"an oracle must have a protocol that says what its tests are about, but {label!r} has none; "
                "add `sake` to the protocols."
            )
    store = Answers(backbone, folder)
    protocols = [protocol.prepare(backbone, cases) for protocol in protocols]
    works: list[Work] = [BareWork(store, protocol, tuple(cases)) for protocol in protocols]
    for mode in modes:
        for label, editor in editors.items():
            works += _works(store, label, editor, mode, cases, _askers(editor, protocols))
    _complete(works, name)
    bare = {protocol.name: _by_edit(store.read("bare", protocol, cases)[0], protocol, cases) for protocol in protocols}
    for mode in modes:
        for files in _judged(mode, cases):
            for label, editor in editors.items():
                for protocol in _askers(editor, protocols):
                    read = [store.read(_who(label, editor, mode), protocol, file) for file in files]
                    judged = [case for file in files for case in file]
                    tests = protocol.all_tests(judged)
                    before = [answer for case in judged for answer in bare[protocol.name][case.request.edit_id]]
                    after = [answer for answers, _ in read for answer in answers]
                    rows = [protocol.row(*columns) for columns in zip(tests, before, after, strict=True)]
                    yield Result(
                        data=name,
                        mode=mode,
                        edits=len(judged),
                        editor=label,
                        protocol=protocol.name,
                        scores=protocol.score(rows),
                        rows=[asdict(row) | {"outcomes": protocol.outcomes(row)} for row in rows],
                        seconds=sum(seconds for _, seconds in read) / len(judged),
                        headline=protocol.headline,
                        lower_is_better=protocol.lower_is_better,
                        routing=protocol.routing(rows) if protocol.routing else {},
                    )


def counts(edits: int) -> list[int]:
    """The numbers of edits at which a growing set is judged: 1, 10, 100, ... and all."""
    powers = [10**digits for digits in range(len(str(edits)))]
    return sorted({*(power for power in powers if power < edits), edits})


@dataclass(frozen=True)
class Answers:
    """Answers in files, each of some cases under one protocol.

    Args:
        backbone: The bare model that is asked, or edited.
        folder: Where the files are.
    """

    backbone: Backbone
    folder: Path

    def path(self, who: str, protocol: AnyProtocol, cases: Sequence[EditCase]) -> Path:
        """A file whose name tells one set of answers from every other."""
        key = [self.backbone.fingerprint, str(self.backbone.dtype), who, protocol.name, [asdict(c) for c in cases]]
        key += [[asdict(test) for test in protocol.all_tests(cases)]] if protocol.adapted else []
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        return self.folder / f"{who.split()[0]}-{protocol.name}-{digest}.json"

    def write(
        self, who: str, protocol: AnyProtocol, cases: Sequence[EditCase], answers: Sequence[Any], seconds: float
    ) -> None:
        """Keep answers, and the seconds that all of the cases' edits took."""
        content = {"seconds": round(seconds, 3), "answers": [asdict(answer) for answer in answers]}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.path(who, protocol, cases), json.dumps(content, ensure_ascii=False) + "\n")

    def read(self, who: str, protocol: AnyProtocol, cases: Sequence[EditCase]) -> tuple[list[Any], float]:
        """Answers again, and the seconds."""
        content = json.loads(self.path(who, protocol, cases).read_text("utf-8"))
        return [protocol.answer(**_tuples(fields)) for fields in content["answers"]], content["seconds"]


class Work(Interface):
    """A piece of a comparison that one process does."""

    @property
    def paths(self) -> list[Path]:
        """The files that it leaves."""

    def do(self) -> None:
        """Leave them."""


@dataclass(frozen=True)
class BareWork:
    """What the bare model answers under a protocol."""

    store: Answers
    protocol: AnyProtocol
    cases: tuple[EditCase, ...]

    @property
    def paths(self) -> list[Path]:
        """The files that it leaves."""
        return [self.store.path("bare", self.protocol, self.cases)]

    def do(self) -> None:
        """Leave them."""
        self.store.write("bare", self.protocol, self.cases, self.protocol.bare(self.store.backbone, self.cases), 0.0)


@dataclass(frozen=True)
class EditedWork:
    """What edited models answer under some protocols.

    Args:
        store: Where answers are kept.
        who: The editor, its settings and how edits are put into force.
        editor: The editor.
        files: The cases whose answers share a file: one group, or for sequential editing ever more of the same.
        protocols: Who asks.
        mode: How edits are put into force.
    """

    store: Answers
    who: str
    editor: Editor
    files: tuple[tuple[EditCase, ...], ...]
    protocols: Sequence[AnyProtocol]
    mode: Mode

    @property
    def paths(self) -> list[Path]:
        """The files that it leaves."""
        return [self.store.path(self.who, protocol, file) for file in self.files for protocol in self.protocols]

    def do(self) -> None:
        """Leave them."""
        missing = [p for p in self.protocols if not all(self.store.path(self.who, p, f).is_file() for f in self.files)]
        answers: dict[str, list[Any]] = {protocol.name: [] for protocol in missing}
        start, seconds, finished = time.perf_counter(), 0.0, iter(self.files)
        file = next(finished)
        with closing(self._in_force()) as states:
            for cases, edited in states:
                seconds += time.perf_counter() - start
                for protocol in missing:
                    tests = protocol.all_tests(cases)
                    answers[protocol.name] += protocol.ask(self.store.backbone, edited, tests) if tests else []
                if cases[-1] is file[-1]:
                    for protocol in missing:
                        self.store.write(self.who, protocol, file, answers[protocol.name], seconds)
                        answers[protocol.name] = []
                    file = next(finished, file)
                start = time.perf_counter()

    def _in_force(self) -> Generator[tuple[tuple[EditCase, ...], Edited]]:
        """The cases that are in force together, and what they are asked of."""
        backbone = self.store.backbone
        if self.mode == "sequential":
            requests = [case.request for case in self.files[-1]]
            with closing(self.editor.sequence(backbone, requests, list(map(len, self.files)))) as states:
                yield from zip(self.files, states, strict=True)
            return
        for cases in [(case,) for case in self.files[0]] if self.mode == "single" else self.files:
            with self.editor.edit(backbone, [case.request for case in cases]) as edited:
                yield cases, edited


def _askers(editor: Editor, protocols: Sequence[AnyProtocol]) -> list[AnyProtocol]:
    """The protocols that can ask an editor: an oracle must be told what is asked."""
    return [protocol for protocol in protocols if protocol.oracle or not editor.oracle]


def _works(
    store: Answers,
    label: str,
    editor: Editor,
    mode: Mode,
    cases: Sequence[EditCase],
    protocols: Sequence[AnyProtocol],
) -> list[EditedWork]:
    """The pieces of a mode: some single edits, all together, or those that follow one another."""
    files = [file for group in _judged(mode, cases) for file in group]
    groups = [tuple(files)] if mode == "sequential" else [(file,) for file in files]
    return [EditedWork(store, _who(label, editor, mode), editor, group, protocols, mode) for group in groups]


def _judged(mode: Mode, cases: Sequence[EditCase]) -> list[list[tuple[EditCase, ...]]]:
    """What each result of a mode is of: the cases of one file or several."""
    if mode == "single":
        return [[tuple(cases[i : i + CHUNK]) for i in range(0, len(cases), CHUNK)]]
    numbers = [len(cases)] if mode == "batch" else counts(len(cases))
    return [[tuple(cases[:number])] for number in numbers]


def _who(label: str, editor: Editor, mode: Mode) -> str:
    """Names who answers; edits that grow are each time put into force as a batch is."""
    return f"{label} {editor!r} {'batch' if mode == 'growing' else mode}"


def _complete(works: Sequence[Work], name: str) -> None:
    """Do what is not done yet and nobody else does, until all is done."""
    with tqdm(total=len(works), desc=name, dynamic_ncols=True) as progress:
        rest = list(works)
        while rest:
            held = []
            for work in rest:
                if _done(work):
                    progress.update()
                else:
                    held.append(work)
            rest = held
            if rest:
                time.sleep(POLL)


def _done(work: Work) -> bool:
    """Whether a piece is done, now or before; not if another process is at it."""
    if all(path.is_file() for path in work.paths):
        return True
    lock = lock_of(work.paths[0])
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            if not all(path.is_file() for path in work.paths):  # another process may have ended by now
                work.do()
    except Timeout:
        return False
    return True


def lock_of(path: Path) -> Path:
    """What a process holds as long as it makes a file, and loses when it dies."""
    return path.parent / "locks" / f"{path.stem}.lock"


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of an answer, with the tuples that JSON makes lists of."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _by_edit(answers: Sequence[Any], protocol: AnyProtocol, cases: Sequence[EditCase]) -> dict[str, list[Any]]:
    """The answers to the tests of each case."""
    rest = iter(answers)
    return {case.request.edit_id: [next(rest) for _ in protocol.tests(case)] for case in cases}
