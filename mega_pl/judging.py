"""Judging a bank while Lightning validates or tests: batch by batch, in one process or several."""

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torchmetrics import MetricCollection

from mega_pl.backbone import Backbone
from mega_pl.editors.protocol import Routed
from mega_pl.edits import EditBank, EditCase
from mega_pl.errors import MegaValueError
from mega_pl.protocols import Protocol, Score, get_protocol
from mega_pl.protocols.sake import Mode, ask, routing


class Judging:
    """What protocols say of a bank.

    A judge is named after who routes under `sake` ("own", "oracle", ...), and under another protocol, where the bank's
    own router routes, after the protocol.

    Args:
        protocols: Names of the protocols.
        modes: Who routes under `sake`.

    Attributes:
        judges: By judge its protocol.
        rows: By judge its rows, of all processes once all are gathered.
        metrics: By judge what is updated with each batch.
        scores: By judge, of the last validation that went through.
    """

    def __init__(self, protocols: Sequence[str], modes: Sequence[Mode]) -> None:
        self.protocols, self.modes = [get_protocol(name) for name in protocols], list(modes)
        self.judges: dict[str, Protocol[Any, Any, Any]] = {}
        self.rows: dict[str, list[Any]] = {}
        self.metrics: dict[str, MetricCollection] = {}
        self.scores: dict[str, dict[str, Score]] = {}

    def begin(self, backbone: Backbone, cases: Sequence[EditCase], device: torch.device) -> None:
        """Forget the rows of an earlier validation, and tell the protocols what will be judged.

        Args:
            backbone: The bare model.
            cases: All that will be judged.
            device: Where metrics are kept.
        """
        self.judges = {}
        for protocol in self.protocols:
            prepared = protocol.prepare(backbone, cases)
            self.judges |= dict.fromkeys(self.modes if protocol.name == "sake" else (protocol.name,), prepared)
        self.rows = {judge: [] for judge in self.judges}
        self.metrics = {judge: protocol.metrics().to(device) for judge, protocol in self.judges.items()}

    def update(self, backbone: Backbone, bank: EditBank, cases: Sequence[EditCase]) -> None:
        """Judge some cases.

        Raises:
            ValueError: If an oracle is to route tests of edits that the bank lacks.
        """
        lacking = {case.request.edit_id for case in cases} - set(bank.ids) if "oracle" in self.judges else set()
        if lacking:
            raise MegaValueError(
                "tests must be of edits that the bank holds where `modes` have an oracle, but it lacks "
                f"{min(lacking)!r}; fit it, or leave the oracle out."
            )
        for judge, rows in self._judged(backbone, bank, cases) if cases else ():
            self.rows[judge] += rows
            self.metrics[judge].update(rows)

    def finish(self, seed: int) -> None:
        """Gather the rows of all processes, and score them; a process may have had no test."""
        found = {judge: gathered(rows) for judge, rows in self.rows.items()}
        self.rows = {judge: rows for judge, rows in found.items() if rows}
        self.scores = {judge: self.judges[judge].scores(self.metrics[judge], seed=seed) for judge in self.rows}

    def logged(self) -> dict[str, float]:
        """The scores and routes that a logger shows, by their names."""
        shown: dict[str, float] = {}
        for judge, scores in self.scores.items():
            prefix = "val" if judge == "own" else f"val_{judge}"
            shown |= {f"{prefix}/{name}": score.value for name, score in scores.items() if score.n}
        routes = routing(self.rows["own"]) if "own" in self.scores else {}
        return shown | {f"routing/{name}": shares["right"] for name, shares in routes.items()}

    def _judged(self, backbone: Backbone, bank: EditBank, cases: Sequence[EditCase]) -> Iterator[tuple[str, list[Any]]]:
        for protocol in dict.fromkeys(self.judges.values()):
            if protocol.name == "sake":
                yield from ask(backbone, bank, protocol.all_tests(cases), self.modes).items()
            else:
                bare = protocol.bare(backbone, cases)
                with bank.apply(backbone) as use:
                    rows = protocol.rows(backbone, Routed(use), cases, bare)
                yield protocol.name, rows


def gathered(items: Sequence[Any]) -> list[Any]:
    """The items of all processes, in the order in which they were dealt out."""
    if not dist.is_initialized():
        return list(items)
    parts: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, list(items))
    return [item for item in chain.from_iterable(zip_longest(*parts)) if item is not None]
