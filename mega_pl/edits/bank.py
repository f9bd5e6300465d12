"""The bank: many edits of one backbone, each applied to the prompts that its scope covers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mega_pl.backbone import Backbone, Site, each_pass, steer_tokens
from mega_pl.edits.change import Change, Operation, changed, check_alike, undone
from mega_pl.edits.checks import check_type
from mega_pl.edits.conflicts import latest, shared_names, superseded, warn_of
from mega_pl.edits.hub import Token, upload
from mega_pl.edits.integrity import check_intact, digests_of
from mega_pl.edits.request import EditCase, EditRequest
from mega_pl.edits.routing import RoutedEdits, Router
from mega_pl.edits.routing.guard import Guard
from mega_pl.edits.routing.runtime import Steer
from mega_pl.edits.status import status
from mega_pl.edits.storage import load_bank, save_bank
from mega_pl.errors import MegaIndexError, MegaKeyError, MegaValueError
from mega_pl.functional import Transports
from mega_pl.functional.text import counted

LOOSE = frozenset({"vocab", "tokenizer", "weights"})
"""Entries of a fingerprint in which a copy of a model may differ that is not its own."""


@dataclass(frozen=True, eq=False)
class EditBank:
    """Fitted edits, which leave the backbone's weights alone and are gone when they are taken off.

    Args:
        requests: The edits; their order is that of the maps.
        maps: For each steered site the maps of all edits, sites in the order of a forward pass; of each edit one for
            the prompt's last token, then one for each token of its object.
        router: Tells which edit, if any, a prompt is about.
        strength: Multiple of the full move.
        backbone: What the edits were fitted on: `name`, `revision` and the entries of its fingerprint.
        settings: How they were fitted: seed, versions, hyper-parameters; written beside the edits.
        objects: For each edit the token ids of its new object that have maps; none where only the prompt's last token
            is steered.
        missed: The edits whose object the model did not write whole after the fit, with what it wrote instead.
        history: What has happened to the bank since its fit.
        digests: SHA-256 of each edit's maps; computed where there are none.
    """

    requests: tuple[EditRequest, ...]
    maps: Mapping[Site, Transports]
    router: Router
    strength: float
    backbone: Mapping[str, str | int | None]
    settings: Mapping[str, Any]
    objects: tuple[tuple[int, ...], ...] = ()
    missed: Mapping[str, str] = field(default_factory=dict)
    history: tuple[Change, ...] = ()
    digests: tuple[str, ...] = ()
    _intact: set[int] = field(default_factory=set, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.objects:
            object.__setattr__(self, "objects", ((),) * len(self.requests))
        if not self.digests:
            object.__setattr__(self, "digests", digests_of(self, range(len(self))))
            self._intact.update(range(len(self)))

    def __len__(self) -> int:
        return len(self.requests)

    def __repr__(self) -> str:
        model, sites = self.backbone["name"] or "a model", ", ".join(map(str, self.maps))
        return f"EditBank({counted(len(self), 'edit')} of {model} at {sites})"

    def __getitem__(self, edit_id: str) -> EditRequest:
        return self.requests[self.index(edit_id)]

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the edits."""
        return tuple(request.edit_id for request in self.requests)

    @cached_property
    def places(self) -> list[int]:
        """Where the maps of each edit begin."""
        return [0, *accumulate(len(ids) + 1 for ids in self.objects)][:-1]

    def rows(self, edit: int) -> range:
        """The places of the maps of an edit, by index."""
        return range(self.places[edit], self.places[edit] + len(self.objects[edit]) + 1)

    def check_intact(self, *edit_ids: str) -> None:
        """Refuse edits, all by default, whose maps are not what they were when they were written.

        The maps of a bank that was read from files are looked at when their edit is first used; this is the way to do
        it at once.

        Raises:
            KeyError: If the bank has no such edit.
            ValueError: Naming the first edit whose maps are damaged or not finite.
        """
        self._check_intact([self.index(edit_id) for edit_id in edit_ids] if edit_ids else range(len(self)))

    def _check_intact(self, edits: Iterable[int]) -> None:
        new = sorted(set(edits) - self._intact)
        check_intact(self, new)
        self._intact.update(new)

    def index(self, edit_id: str) -> int:
        """Place of an edit.

        Raises:
            KeyError: If the bank has no such edit.
        """
        try:
            return self.ids.index(edit_id)
        except ValueError:
            raise MegaKeyError(f"the bank must hold the edit that is named, but it has no {edit_id!r}.") from None

    def add(self, backbone: Backbone, edits: Sequence[EditRequest | EditCase]) -> EditBank:
        """The bank with more edits, fitted with its own settings; the old ones are what they were, to the bit.

        An old edit of a fact that gets another object is left out, and a warning names both: the later edit wins. The
        router's thresholds stay those of the first fit.

        Args:
            backbone: The bare model that the bank was fitted on.
            edits: Requests, or cases of which only the requests are read.

        Raises:
            ValueError: If the bank has an edit of that id, belongs to another backbone or does not say how it was
                fitted, or its router can only be fitted on all edits together.
        """
        requests = latest(edits)
        self._check_new(requests)
        return self._merged(self._fit_more(backbone, requests), "add")

    def replace(self, backbone: Backbone, edits: Sequence[EditRequest | EditCase]) -> EditBank:
        """The bank with edits in the place of those that have their id, or give their fact another object.

        Args:
            backbone: The bare model that the bank was fitted on.
            edits: Requests, or cases of which only the requests are read.

        Raises:
            KeyError: If the bank has nothing that an edit could replace.
            ValueError: As in `add`.
        """
        requests = latest(edits)
        for request in requests:
            if request.edit_id not in self.ids and not superseded([*self.requests, request]):
                raise MegaKeyError(
                    f"`edits` must have the id of an edit of the bank or give its fact another object, but "
                    f"{request.edit_id!r} does neither; use `add`."
                )
        more = self._fit_more(backbone, requests)
        same = {self.index(edit_id) for edit_id in more.ids if edit_id in self.ids}
        return changed(self, "replace", same.union(self._superseded(more)), more)

    def merge(self, other: EditBank) -> EditBank:
        """The bank with the edits of another one besides; they are what they were, to the bit.

        An own edit of a fact to which the other bank gives another object is left out, and a warning names both.
        Strength, settings and the router's thresholds are this bank's.

        Args:
            other: A bank of the same backbone, sites and strength.

        Raises:
            ValueError: If both have an edit of one id, or do not go together.
        """
        check_alike(self, other)
        self._check_new(other.requests)
        return self._merged(other, "merge")

    def remove(self, *edit_ids: str) -> EditBank:
        """The bank without some edits; the others are what they were, and prompts about these are bare.

        Raises:
            KeyError: If the bank has no such edit, or no other.
        """
        gone = {self.index(edit_id) for edit_id in edit_ids}
        if len(gone) == len(self):
            raise MegaKeyError("a bank must keep at least one edit, but all would go; take the bank off.")
        return changed(self, "remove", gone) if gone else self

    def rollback(self, point: int = -1) -> EditBank:
        """The bank as it was, to the bit.

        Args:
            point: How many changes of the `history` stay; 0 gives the bank as it was fitted, and a negative number says
                how many are undone.

        Raises:
            IndexError: If there have not been as many changes.
        """
        count = len(self.history)
        if not count and point == -1:
            raise MegaIndexError("a bank must have changed to be rolled back, but its history is empty.")
        if not -count <= point <= count:
            raise MegaIndexError(f"`point` must lie in [{-count}, {count}] for this bank, but got {point}.")
        bank = self
        for _ in range(-point if point < 0 else count - point):
            bank = undone(bank)
        return bank

    def status(self) -> str:
        """A table of the edits: what they change, what they take, and which of their objects do not come out whole."""
        return status(self)

    def _fit_more(self, backbone: Backbone, requests: Sequence[EditRequest]) -> EditBank:
        from mega_pl.fitting import fit_more  # the one import that points up: a bank grows by fitting

        self.check(backbone)
        return fit_more(self, backbone, requests)

    def _merged(self, other: EditBank, operation: Operation) -> EditBank:
        gone = self._superseded(other)
        for earlier, later in gone.items():
            warn_of(self.requests[earlier], other.requests[later])
        return changed(self, operation, gone, other)

    def _check_new(self, requests: Sequence[EditRequest]) -> None:
        """Refuse edits whose ids the bank has, and names that are the subject of one edit and the alias of another."""
        own = set(self.ids)
        for request in requests:
            if request.edit_id in own:
                raise MegaValueError(
                    f"the edits of a bank must have different ids, but it already has {request.edit_id!r}; use "
                    "`replace` or another id."
                )
        for reasons in shared_names([*self.requests, *requests]).values():
            raise MegaValueError(next(iter(reasons.values())))

    def _superseded(self, other: EditBank) -> dict[int, int]:
        """By index of an own edit the index of the edit of another bank that gives its fact another object."""
        found = superseded([*self.requests, *other.requests])
        return {own: later - len(self) for own, later in found.items() if own < len(self) <= later}

    @contextmanager
    def apply(
        self,
        backbone: Backbone,
        *,
        edits: Sequence[str | None] | None = None,
        forced: bool = False,
        guard: bool = True,
        strict: bool = True,
    ) -> Iterator[RoutedEdits]:
        """Edit a backbone for the time of a ``with`` block.

        Every prompt is routed once, when the model reads it. Its edit moves the activations of the prompt's last token,
        and of those after it as long as they are the object's, in whatever way the text is made; where that cannot be
        told, the pass is refused. Rows that no edit answers are bit-identical to the bare model's. Threads may share
        the model: their passes come one after the other, each with the edits of its own prompts.

        Args:
            backbone: The model that the bank was fitted on.
            edits: For each row of the batch the edit to apply, or None for none, instead of asking the router.
            forced: Whether the router must choose an edit for every prompt.
            guard: Whether the old object is kept from coming back in what is written after an edit's prompt.
            strict: Whether a model of the same shape with other weights or tokens is refused, such as one that was
                quantised or trained on after the fit.

        Yields:
            Where prompts went, updated by each prompt.

        Raises:
            ValueError: If the bank belongs to another backbone, or ``edits`` does not fit the batch.
        """
        self.check(backbone, strict=strict)
        use = RoutedEdits(
            backbone,
            self.ids,
            self.router,
            self._steer_on(backbone),
            self.objects,
            Guard(backbone, self.requests) if guard else None,
        )
        use.fix(edits, forced=forced)
        with each_pass(backbone.model, use.read):
            yield use

    def _steer_on(self, backbone: Backbone) -> Steer:
        """What moves activations by the maps of the edits that tokens get; only these maps go to the model's device."""
        first = torch.tensor(self.places)

        def steering(rows: Tensor, columns: Tensor, edits: Tensor, steps: Tensor) -> AbstractContextManager[None]:
            self._check_intact(edits.tolist())
            index, place = torch.unique(first[edits.cpu()] + steps.cpu(), return_inverse=True)
            moves = {}
            for site, of_site in self.maps.items():
                acting = of_site.select(index)

                def move(x: Tensor, acting: Transports = acting) -> Tensor:
                    return acting.cast(device=x.device).apply(x, place.to(x.device), self.strength)

                moves[site] = move
            return steer_tokens(backbone.model, moves, rows, columns)

        return steering

    def attach(self, backbone: Backbone) -> BankHandle:
        """Edit a backbone until the handle's ``remove`` is called."""
        stack = ExitStack()
        use = stack.enter_context(self.apply(backbone))
        return BankHandle(stack, use)

    def check(self, backbone: Backbone, *, strict: bool = True) -> None:
        """Refuse a backbone that the edits were not fitted on.

        Args:
            backbone: The model.
            strict: Whether its weights and its tokenizer count, and not only its shape.

        Raises:
            ValueError: Naming the first entry of the fingerprint that differs.
        """
        check_type("`backbone`", backbone, Backbone)
        for name, value in backbone.fingerprint.items():
            if self.backbone[name] != value and (strict or name not in LOOSE):
                way = "; with `strict=False` it is taken nevertheless" if name in LOOSE else ""
                raise MegaValueError(
                    f"a bank must be used on the backbone it was fitted on, {self.backbone['name']!r}, "
                    f"but `{name}` is {_short(value)} instead of {_short(self.backbone[name])}; fit it again{way}."
                )

    def save_pretrained(self, folder: str | Path, *, history: bool = True) -> Path:
        """Write ``edit_model.safetensors``, ``edit_config.json`` and a card; files appear complete or not at all.

        Args:
            folder: Where to; a ``README.md`` that is there stays, unless it is a card as it was written here.
            history: Whether what it takes to undo changes is written too, and with it the edits that were removed.
        """
        if not str(folder).strip():
            raise MegaValueError(f"`folder` must name a place, but got {str(folder)!r}.")
        return save_bank(self if history else replace(self, history=()), Path(folder))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        revision: str | None = None,
        token: Token = None,
        cache_dir: str | Path | None = None,
    ) -> EditBank:
        """Read a bank from a folder, or from a repository of the Hugging Face hub.

        Args:
            folder: The folder, or the repository as ``me/name``.
            revision: Branch, tag or commit on the hub.
            token: Access token for the hub; None takes the stored one, and False none.
            cache_dir: Where downloads are kept; by default the hub's own cache.

        Raises:
            ValueError: If a file is missing, damaged, or of a format that this version does not know.
        """
        return cls(**load_bank(str(folder), revision, token, cache_dir))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: Token = None,
        commit_message: str = "Upload edits",
        create_pr: bool = False,
    ) -> str:
        """Save the bank in a repository of the Hugging Face hub, which is made if there is none.

        Args:
            repo_id: The repository as ``me/name``.
            private: Whether a new repository is private; None leaves it to the hub.
            revision: Branch to write to, made if there is none; by default the main one.
            token: Access token; None takes the stored one.
            commit_message: Of the commit.
            create_pr: Whether to open a pull request instead of writing to the branch.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            ValueError: If the repository cannot be written to.
        """
        return upload(
            self,
            repo_id,
            private=private,
            revision=revision,
            token=token,
            commit_message=commit_message,
            create_pr=create_pr,
        )


@dataclass
class BankHandle:
    """Takes an attached bank off again."""

    _stack: ExitStack
    use: RoutedEdits

    def only(self, *edits: str) -> AbstractContextManager[None]:
        """Leave the prompts of all other edits bare for the time of a ``with`` block."""
        return self.use.only(*edits)

    def disabled(self, *edits: str) -> AbstractContextManager[None]:
        """Leave the prompts of some edits bare for the time of a ``with`` block."""
        return self.use.disabled(*edits)

    def remove(self) -> None:
        """Give the bare backbone back; calling it again does nothing."""
        self._stack.close()


def _short(value: object) -> str:
    return repr(value)[:20]
