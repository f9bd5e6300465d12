"""Edits and their tests as Lightning data."""

import warnings
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Generic, TypeVar

import lightning as L
import torch.distributed as dist

from mega_pl.asking import answers
from mega_pl.backbone import load
from mega_pl.data.paraphrases import with_implications, with_phrasings
from mega_pl.data.reading import AskTogether, Files, data_files, read
from mega_pl.data.records import OnBad
from mega_pl.edits.checks import check_type
from mega_pl.edits.conflicts import check_requests, conflicts, shared_names
from mega_pl.edits.request import EditCase, EditRequest
from mega_pl.errors import MegaValueError
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
        files: One file or several, each the name of a published one, a path of one's own JSON lines, or a `DataFile`,
            which names the path and the format.
        limit: The most edits to take, from the front or after those skipped.
        skip: Edits to leave out at the front, for example those that another split takes.
        edits_per_batch: Edits that are fitted, or judged, together.
        on_bad: Whether a malformed record ends the run, or is left out and counted.
        ask: Name of a model, as in `load`, that is asked for the object before where a record of a new fact names none.
        relation_phrasings: Whether edits get the phrasings of their relation from `mega_pl.data.relations`; an
            evaluation asks none of them.
        relation_implications: Whether edits without implications get those of their relation; a fit takes the ones
            that the model follows.
        subject_aliases: Whether edits keep the other names of their subjects that files give, some of them the names
            that tests of aliases ask.
    """

    def __init__(
        self,
        files: Files = (),
        *,
        limit: int | None = None,
        skip: int = 0,
        edits_per_batch: int = 8,
        on_bad: OnBad = "raise",
        ask: str | None = None,
        relation_phrasings: bool = False,
        relation_implications: bool = False,
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
        self.files, self.ask = data_files(files), ask
        self.relation_phrasings, self.relation_implications = relation_phrasings, relation_implications
        self.subject_aliases = subject_aliases
        self.skip, self.limit, self.edits_per_batch = skip, limit, edits_per_batch
        self.on_bad: OnBad = on_bad
        self.refusals: list[str] = []
        self.cases: list[EditCase] = []

    def prepare_data(self) -> None:
        """Download published files once a machine."""
        for file in self.files:
            file.local()

    def read(self) -> list[EditCase]:
        """All cases of the files.

        Raises:
            ValueError: If no file is named, or one is missing or malformed.
        """
        found = read(self.files, on_bad=self.on_bad, ask=_asker(self.ask) if self.ask else None)
        self.refusals = list(found.refusals)
        return found

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


def _asker(name: str) -> AskTogether:
    """What a bare model completes prompts with: its likeliest answer that is not empty; empty if there is none."""
    backbone = load(name)
    ask = partial(answers, backbone, least=0.0, tokens=8)

    def first(prompts: Sequence[str]) -> list[str]:
        greedy = dict(zip(prompts, ask(prompts, most=1), strict=True))
        silent = [prompt for prompt, found in greedy.items() if not found]
        found = greedy | dict(zip(silent, ask(silent), strict=True))
        return ["".join(found[prompt][:1]) for prompt in prompts]

    return first
