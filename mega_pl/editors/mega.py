"""MEGA as an editor: maps of residual activations at several sites, routed by content."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, get_args

from filelock import FileLock

from mega_pl.asking import Edited
from mega_pl.backbone import Backbone
from mega_pl.editors.protocol import Editor, Routed
from mega_pl.editors.store import Content, Store
from mega_pl.edits import ContentRouter, EditBank, EditRequest, check_requests
from mega_pl.edits.storage import CONFIG
from mega_pl.errors import MegaValueError
from mega_pl.fitting import EditFitter, FitConfig, fit, settings
from mega_pl.fitting.checkpoint import identity
from mega_pl.fitting.shards import edits_from, edits_state

Routing = Literal["own", "oracle", "subject", "relation", "always"]


@dataclass(frozen=True, eq=False)
class Mega(Editor):
    """Fits a bank of the edits and applies it; `fit` and `EditBank` say how.

    Args:
        config: How edits are fitted.
        routing: Who routes: the bank's own router; an oracle that knows what each test is about, as far as the protocol
            tells (`sake` does); the router by the subject's name or by the relation alone; the router without the
            choice to stay silent.
        guard: Whether the old object is kept from coming back in what is written.
        folder: Where fitted edits and banks are kept, so that rows that differ in routing and guard alone share their
            fits, and sets of edits those of the edits that they share.
    """

    name: ClassVar[str] = "mega"
    config: FitConfig = field(default_factory=FitConfig)
    routing: Routing = "own"
    guard: bool = True
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.routing not in get_args(Routing):
            raise MegaValueError(f"`routing` must be one of {', '.join(get_args(Routing))}, but got {self.routing!r}.")

    def __repr__(self) -> str:
        return f"Mega({self.config!r}, routing={self.routing!r}, guard={self.guard})"

    @property
    def oracle(self) -> bool:
        """Whether an oracle routes."""
        return self.routing == "oracle"

    @contextmanager
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Iterator[Edited]:
        """Put edits into force; see `Editor`.

        Raises:
            ValueError: If the requests do not go together, or there is no such site.
        """
        check_requests(requests)
        bank = self._bank(backbone, requests)
        if self.routing in ("subject", "relation"):
            assert isinstance(bank.router, ContentRouter)  # a fit makes no other
            bank = replace(bank, router=bank.router.only(self.routing))
        with bank.apply(backbone, forced=self.routing == "always", guard=self.guard) as use:
            yield Routed(use, oracle=self.oracle)

    def _bank(self, backbone: Backbone, requests: Sequence[EditRequest]) -> EditBank:
        """Fit the edits, or read the bank that they were fitted into before."""
        if self.folder is None:
            return fit(backbone, requests, self.config)
        sites = [str(site) for site in self.config.sites_of(backbone)]
        key = [backbone.fingerprint, settings(backbone, self.config), sites, [asdict(request) for request in requests]]
        path = Path(self.folder) / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # another process may be fitting the same edits for another row
            if not (path / CONFIG).is_file():  # the last file that a save leaves
                self._fitted(backbone, requests).save_pretrained(path)
        return EditBank.from_pretrained(str(path))

    def _fitted(self, backbone: Backbone, requests: Sequence[EditRequest]) -> EditBank:
        """A bank of edits, of which only those are fitted that the folder does not hold."""
        fitter = EditFitter(backbone, self.config)
        of = ["mega", identity(fitter), str(backbone.dtype)]

        def make(i: int) -> Content:
            records, tensors = edits_state(fitter.update([requests[i]]))
            return tensors, records

        found = Store(self.folder).each([[*of, asdict(request)] for request in requests], make, "edits")
        fitter.keep(edit for tensors, records in found for edit in edits_from(records, tensors))
        return fitter.bank([request.edit_id for request in requests])
