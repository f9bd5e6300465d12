"""A model that several tabs work with, one at a time, and what each tab has made of its edits."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from transformers import PreTrainedModel

from mega_pl.backbone import Backbone
from mega_pl.edits import EditBank
from mega_pl.edits.routing.runtime import RoutedEdits
from mega_pl.errors import MegaValueError

T = TypeVar("T")

DESKS = 100
"""Tabs whose edits are kept; beyond that those go that were longest without a question."""

CHANGES = 20
"""Changes of a tab that can be undone."""

TURN = 0.05
"""Seconds between looks whether somebody who waits for the model has stopped."""


class Stopped(Exception):
    """A person has stopped the work."""


@dataclass(frozen=True)
class Edits:
    """The edits of a tab.

    Args:
        bank: All of them; None where there is none.
        off: Ids of those that are switched off.
    """

    bank: EditBank | None = None
    off: frozenset[str] = frozenset()

    @contextmanager
    def apply(self, backbone: Backbone) -> Iterator[RoutedEdits | None]:
        """Edit a backbone for the time of a ``with`` block; None where there is nothing to apply."""
        if self.bank is None:
            yield None
            return
        with self.bank.apply(backbone) as use, use.disabled(*self.off):
            yield use


@dataclass(frozen=True)
class Conversation:
    """What was said so far: questions, and what each model has answered; both see their own answers alone.

    Args:
        questions: Of the person.
        bare: The bare model's answers to them.
        edited: The edited model's.
    """

    questions: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()

    def grown(self, question: str, bare: str, edited: str) -> Conversation:
        """With a question more, and both answers to it."""
        return Conversation((*self.questions, question), (*self.bare, bare), (*self.edited, edited))


@dataclass(eq=False)
class Desk:
    """What one tab has.

    Args:
        edits: Its edits.
        said: What was asked, and answered.
        past: Each change in words, and what they were before it, the latest last.
        fired: How often each has answered.
        folders: Where it has saved its edits, or loaded them from.
        stops: What ends each piece of work that the tab has begun, once it is set.
    """

    edits: Edits
    said: Conversation = Conversation()
    past: list[tuple[str, Edits]] = field(default_factory=list)
    fired: Counter[str] = field(default_factory=Counter)
    folders: set[Path] = field(default_factory=set)
    stops: set[threading.Event] = field(default_factory=set)

    def stop(self) -> None:
        """End all work that the tab has begun, at the latest at the model's next pass."""
        for stop in tuple(self.stops):
            stop.set()

    def change(self, what: str, bank: EditBank | None, off: frozenset[str] | None = None) -> None:
        """Put other edits in the place of these.

        Args:
            what: The change in words, for who takes it back.
            bank: The edits; None for none.
            off: Those that are switched off; by default those that are.
        """
        self.past = [*self.past, (what, self.edits)][-CHANGES:]
        kept = self.edits.off if off is None else off
        self.edits = Edits(bank, kept.intersection(bank.ids if bank else ()))

    def take(self, what: str, made: EditBank, edit_ids: Collection[str], before: EditBank | None) -> None:
        """Put a bank in force with edits that were just fitted, and are on.

        Args:
            what: The change in words.
            made: The bank.
            edit_ids: The edits.
            before: The edits that they were fitted beside.

        Raises:
            ValueError: If the tab has other edits by now.
        """
        if before is not self.edits.bank:
            raise MegaValueError("the edits of a tab must stay while one is fitted, but have changed; fit it again.")
        self.change(what, made, self.edits.off.difference(edit_ids))

    def undo(self) -> str:
        """Take the last change back, and say which; "" where there is none."""
        if not self.past:
            return ""
        what, self.edits = self.past.pop()
        return what


class Studio:
    """A model and the edits that each tab begins with.

    Args:
        backbone: The bare model.
        bank: The edits; None for none.
    """

    def __init__(self, backbone: Backbone, bank: EditBank | None = None) -> None:
        if bank is not None:
            bank.check(backbone)
        self.backbone, self.start = backbone, Edits(bank)
        self._desks: OrderedDict[str, Desk] = OrderedDict()
        self._changing, self._turn = threading.Lock(), threading.Lock()

    def desk(self, key: str) -> Desk:
        """The desk of a tab, by a name that no other tab has; a new one begins with the studio's edits."""
        with self._changing:
            desk = self._desks.setdefault(key, Desk(self.start))
            self._desks.move_to_end(key)
            while len(self._desks) > DESKS:
                self._desks.popitem(last=False)
            return desk

    def work(self, desk: Desk, task: Callable[[Callable[[T], None]], object]) -> Iterator[T]:
        """Do what a tab wants as soon as nobody else works with the model, and give what comes of it as it comes.

        The model is edited by hooks that every thread sees: hence one tab at a time. The task has a thread of its own,
        so that a tab that is closed leaves nothing half done and holds nobody up.

        Args:
            desk: Whose work it is; its `stop` ends it.
            task: It is given what hands something out.

        Raises:
            Stopped: If it was stopped.
        """
        stop = threading.Event()
        desk.stops.add(stop)
        found: SimpleQueue[_Item[T] | _End] = SimpleQueue()

        def run() -> None:
            error: BaseException | None = None
            try:
                with self._my_turn(stop), stoppable(self.backbone.model, stop):
                    task(lambda value: found.put(_Item(value)))
            except BaseException as raised:
                error = raised
            desk.stops.discard(stop)
            found.put(_End(error))

        threading.Thread(target=run, daemon=True).start()
        while isinstance(item := found.get(), _Item):
            yield item.value
        if item.error is not None:
            raise item.error

    @contextmanager
    def _my_turn(self, stop: threading.Event) -> Iterator[None]:
        """Have the model alone."""
        while not self._turn.acquire(timeout=TURN):
            if stop.is_set():
                raise Stopped
        try:
            yield
        finally:
            self._turn.release()


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: BaseException | None


@contextmanager
def stoppable(
    model: PreTrainedModel, stop: threading.Event, each_pass: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Break off whatever a model does in this thread at its next pass once an event is set.

    Args:
        model: The model.
        stop: The event.
        each_pass: What is done before each pass of this thread.

    Raises:
        Stopped: In the pass that does not take place.
    """
    thread = threading.get_ident()

    def look(*_: Any) -> None:  # noqa: ANN401
        if threading.get_ident() == thread:
            if stop.is_set():
                raise Stopped
            each_pass()

    with ExitStack() as armed:
        # not every question goes through the model itself: what reads states alone calls the decoder below it
        for module in {id(m): m for m in (model, model.base_model)}.values():
            armed.callback(module.register_forward_pre_hook(look, prepend=True).remove)
        yield
