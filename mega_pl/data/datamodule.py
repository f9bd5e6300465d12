"""Edits and their tests as Lightning data."""

import warnings
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Generic, TypeVar

import lightning as L
import torch.distributed as dist

from mega_pl.data.counterfact import read_counterfact
from mega_pl.data.easyedit import add_aliases, add_portability, read_easyedit
from mega_pl.data.join import join
from mega_pl.data.jsonl import read_jsonl
from mega_pl.data.knowedit import read_knowedit
from mega_pl.data.mquake import read_mquake
from mega_pl.data.multilingual import add_translations
from mega_pl.data.paraphrases import with_implications, with_phrasings
from mega_pl.data.records import Cases, OnBad, Reader
from mega_pl.data.rippleedits import read_rippleedits
from mega_pl.data.sources import SOURCES, fetch
from mega_pl.data.zsre import read_zsre
from mega_pl.edits.checks import check_type
from mega_pl.edits.conflicts import check_requests, conflicts, shared_names
from mega_pl.edits.request import EditCase, EditRequest
from mega_pl.errors import MegaValueError
from mega_pl.functional.language import Language
from mega_pl.functional.text import counted

Item = TypeVar("Item")


class DealtBatches(Generic[Item]):
    """Batches of items in order, dealt out to processes.

    Process r of W gets items r, r + W, r + 2W and so on, none twice, and all get as many batches, the last ones perhaps
    empty, so that none waits for another in vain.

    Args:
        dataset: All items.
        size: Items a batch.
    """

    def __init__(self, dataset: Sequence[Item], size: int) -> None:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.dataset, own = dataset, dataset[rank::world]
        most = -(-len(dataset) // world)
        self.batches = [list(own[i : i + size]) for i in range(0, most, size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Item]]:
        return iter(self.batches)


class EditDataModule(L.LightningDataModule):
    """Edits from files, with what protocols ask about them.

    Several files may speak of the same edits, such as CounterFact's prompts and RippleEdits' probes: cases are
    joined by edit id.

    Attributes:
        refusals: For each record left out, and each phrasing of one, its file, place, field and reason.

    Args:
        counterfact: A file in CounterFact's schema.
        rippleedits: A file in RippleEdits' schema.
        knowedit: A file in KnowEdit's schema.
        edits: A file of your own edits, one JSON object a line with the fields of `EditRequest`.
        limit: The most edits to take, from the front or after those skipped.
        edits_per_batch: Edits that are fitted, or judged, together.
        on_bad: Whether a malformed record ends the run, or is left out and counted.
        easyedit: A file of CounterFact in EasyEdit's schema.
        zsre: A file of zsRE in MEND's schema.
        mquake: A file in MQuAKE's schema.
        source: A published source by its name in `mega_pl.data.sources`, downloaded once.
        portability: EasyEdit's file of portability questions about the edits.
        aliases: EasyEdit's file of other names of the edits' subjects.
        relation_phrasings: Whether edits get the phrasings of their relation from `mega_pl.data.relations`; an
            evaluation asks none of them.
        relation_implications: Whether edits without implications get those of their relation; a fit takes the ones
            that the model follows.
        skip: Edits to leave out at the front, for example those that another split takes.
        translations: By language code files of CounterFact edits as questions, which the probe of other languages asks.
        subject_aliases: Whether edits keep the other names of their subjects that files give, some of them the names
            that tests of aliases ask.
    """

    def __init__(
        self,
        counterfact: str | None = None,
        rippleedits: str | None = None,
        knowedit: str | None = None,
        edits: str | None = None,
        limit: int | None = None,
        edits_per_batch: int = 8,
        on_bad: OnBad = "raise",
        easyedit: str | None = None,
        zsre: str | None = None,
        mquake: str | None = None,
        source: str | None = None,
        portability: str | None = None,
        aliases: str | None = None,
        relation_phrasings: bool = False,
        relation_implications: bool = False,
        skip: int = 0,
        translations: dict[Language, str] | None = None,
        subject_aliases: bool = True,
    ) -> None:
        super().__init__()
        check_type("`skip`", skip, int)
        if skip < 0:
            raise MegaValueError(f"`skip` must be at least 0, but got {skip}.")
        for name, value in {"edits_per_batch": edits_per_batch, "limit": 1 if limit is None else limit}.items():
            check_type(f"`{name}`", value, int)
            if value < 1:
                raise MegaValueError(f"`{name}` must be at least 1, but got {value}.")
        if source is not None and source not in SOURCES:
            raise MegaValueError(f"`source` must be one of {', '.join(SOURCES)}, but got {source!r}.")
        files: list[tuple[Reader, str | None]] = [
            (read_counterfact, counterfact),
            (read_easyedit, easyedit),
            (read_rippleedits, rippleedits),
            (read_knowedit, knowedit),
            (read_zsre, zsre),
            (read_mquake, mquake),
            (read_jsonl, edits),
        ]
        self.files = [(read, path) for read, path in files if path is not None]
        additions = ((add_portability, portability), (add_aliases, aliases))
        self.additions: list[tuple[Callable[..., Cases], str]] = [
            (a, path) for a, path in additions if path is not None
        ]
        self.additions += [(partial(add_translations, language=lang), p) for lang, p in (translations or {}).items()]
        self.source, self.subject_aliases = source, subject_aliases
        self.relation_phrasings, self.relation_implications = relation_phrasings, relation_implications
        self.refusals: list[str] = []
        self.skip = skip
        self.limit, self.edits_per_batch = limit, edits_per_batch
        self.on_bad: OnBad = on_bad
        self.cases: list[EditCase] = []

    def prepare_data(self) -> None:
        """Download the source once a machine."""
        if self.source is not None:
            fetch(self.source)

    def read(self) -> list[EditCase]:
        """All cases of the files.

        Raises:
            ValueError: If no file is named, or one is missing or malformed.
        """
        files = list(self.files)
        if self.source is not None:
            files.insert(0, (SOURCES[self.source].read, str(fetch(self.source))))
        if not files:
            raise MegaValueError("data must come from a file, but none is named; set one of the data options.")
        cases: list[EditCase] = []
        self.refusals = []
        for read, path in files:
            found = read(path, on_bad=self.on_bad)
            cases = join(cases, found)
            self.refusals += found.refusals
        for add, path in self.additions:
            found = add(cases, path, on_bad=self.on_bad)
            cases = found
            self.refusals += found.refusals
        return cases

    def setup(self, stage: str) -> None:
        """Read the files once."""
        if not self.cases:
            found = self.read()
            if len(found) <= self.skip:
                raise MegaValueError(
                    f"`skip` must be less than the {counted(len(found), 'edit')} read, but got {self.skip}."
                )
            cases = found[self.skip :][: self.limit]
            if not self.subject_aliases:
                cases = [replace(case, request=replace(case.request, aliases=())) for case in cases]
            cases = self._compatible(cases)
            cases = with_phrasings(cases) if self.relation_phrasings else cases
            self.cases = with_implications(cases) if self.relation_implications else cases

    def _compatible(self, cases: list[EditCase]) -> list[EditCase]:
        """The cases that can be in force together, without aliases that name another edit's subject."""
        requests = [case.request for case in cases]
        if self.on_bad == "raise":
            check_requests(requests)
            return cases
        wrong, shared = conflicts(requests), shared_names(requests)
        reasons = [*wrong.values(), *(reason for of_request in shared.values() for reason in of_request.values())]
        if reasons:
            self.refusals += reasons
            warnings.warn(f"Left out {len(reasons)} edits or aliases; the first was {reasons[0]}", stacklevel=3)
        return [
            replace(case, request=replace(case.request, aliases=_without(case.request.aliases, shared.get(i, {}))))
            for i, case in enumerate(cases)
            if i not in wrong
        ]

    @property
    def requests(self) -> list[EditRequest]:
        """The edits."""
        return [case.request for case in self.cases]

    def train_dataloader(self) -> DealtBatches[EditRequest]:
        """Edits to fit."""
        return DealtBatches(self.requests, self.edits_per_batch)

    def val_dataloader(self) -> DealtBatches[EditCase]:
        """Edits with what is asked about them."""
        return DealtBatches(self.cases, self.edits_per_batch)

    def test_dataloader(self) -> DealtBatches[EditCase]:
        """The same edits."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DealtBatches[str]:
        """The prompts of the edits."""
        return DealtBatches([request.filled for request in self.requests], self.edits_per_batch)


def _without(names: tuple[str, ...], left_out: Container[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in left_out)
