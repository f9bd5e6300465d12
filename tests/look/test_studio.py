"""Tabs share a model and nothing else; work can be stopped, and is undone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mega_pl import EditBank, load
from mega_pl.backbone import Backbone
from mega_pl.errors import MegaValueError
from mega_pl.look.ask import Reply, ask
from mega_pl.look.studio import CHANGES, DESKS, Desk, Edits, Stopped, Studio, stoppable

QUESTION = "The capital of France is"


def said(studio: Studio, desk: Desk, question: str = QUESTION) -> str:
    """What the edited model says in a tab."""
    *_, last = studio.work(desk, asking(studio, desk, question))
    return last.edited.text.strip(". ")


def asking(studio: Studio, desk: Desk, question: str = QUESTION) -> Callable[[Callable[[Reply], None]], None]:
    edits = desk.edits

    def task(show: Callable[[Reply], None]) -> None:
        ask(studio.backbone, edits, question, show, new_tokens=2)

    return task


def test_tabs_do_not_mix_their_edits(studio: Studio, bank: EditBank) -> None:
    first, second = studio.desk("first"), studio.desk("second")
    first.change("it", bank.remove("france"))
    assert (said(studio, first), said(studio, second)) == ("Paris", "Berlin")
    assert studio.desk("first") is first


def test_many_tabs_at_once_get_what_each_gets_alone(studio: Studio, bank: EditBank) -> None:
    desks = [studio.desk(str(i)) for i in range(20)]
    for desk in desks[::2]:
        desk.change("off", bank, frozenset({"france"}))
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda desk: said(studio, desk), desks))
    assert answers == ["Paris", "Berlin"] * 10


def test_a_model_is_bare_after_each_question(studio: Studio) -> None:
    said(studio, studio.desk("a"))
    assert studio.backbone.generate(QUESTION, max_new_tokens=1) == " Paris"
    assert not studio.backbone.model._forward_pre_hooks


def test_changes_are_undone_one_by_one(bank: EditBank) -> None:
    desk = Desk(Edits(bank))
    desk.change("off", bank, frozenset({"france"}))
    desk.change("removed", bank.remove("france"))
    assert desk.edits.off == frozenset()  # what is gone is not switched off
    desk.change("all", None)
    banks = [desk.edits.bank]
    said = []
    while what := desk.undo():
        said.append(what)
        banks.append(desk.edits.bank)
    assert said == ["all", "removed", "off"]
    assert [b and b.ids for b in banks] == [None, ("norway",), ("france", "norway"), ("france", "norway")]
    assert desk.edits == Edits(bank)


def test_what_is_fitted_is_on_and_never_takes_the_place_of_other_changes(bank: EditBank) -> None:
    desk = Desk(Edits(bank))
    desk.change("off", bank, frozenset({"france", "norway"}))
    made = bank.remove("norway")
    desk.take("fit", made, ["france"], bank)
    assert desk.edits == Edits(made)
    with pytest.raises(MegaValueError, match="have changed; fit it again"):
        desk.take("fit", bank, ["france"], bank)
    assert desk.edits == Edits(made)


def test_only_so_many_changes_and_desks_are_kept(lab: Backbone, bank: EditBank) -> None:
    desk = Desk(Edits(bank))
    for _ in range(CHANGES + 5):
        desk.change("", bank)
    assert len(desk.past) == CHANGES
    studio = Studio(lab)
    oldest = studio.desk("oldest")
    for i in range(DESKS):
        studio.desk(str(i))
    assert studio.desk("oldest") is not oldest


def test_a_bank_of_another_model_is_refused(bank: EditBank) -> None:
    with pytest.raises(MegaValueError, match="on the backbone it was fitted on"):
        Studio(load("lab-llama"), bank)


def endless(studio: Studio) -> Callable[[Callable[[str], None]], None]:
    """A task that asks for ever."""

    def task(show: Callable[[str], None]) -> None:
        while True:
            studio.backbone.generate(QUESTION, max_new_tokens=1)
            show("asked")

    return task


def test_work_is_stopped_at_the_next_pass_and_the_model_is_free_again(studio: Studio) -> None:
    desk, other = studio.desk("a"), studio.desk("b")
    steps = studio.work(desk, endless(studio))
    next(steps)
    desk.stop()
    with pytest.raises(Stopped):
        for _ in steps:
            pass
    assert said(studio, other) == said(studio, desk) == "Berlin"


def test_what_is_begun_after_a_stop_is_not_stopped_and_does_not_revive_what_was(studio: Studio) -> None:
    desk = studio.desk("a")
    steps = studio.work(desk, endless(studio))
    next(steps)
    desk.stop()
    assert said(studio, desk) == "Berlin"  # begins before the other has noticed
    with pytest.raises(Stopped):
        list(steps)
    assert desk.stops == set()


def test_who_waits_for_the_model_can_stop_too(studio: Studio) -> None:
    busy, waiting = studio.desk("a"), studio.desk("b")
    steps = studio.work(busy, endless(studio))
    next(steps)
    threading.Timer(0.2, waiting.stop).start()
    start = time.perf_counter()
    with pytest.raises(Stopped):
        next(studio.work(waiting, endless(studio)))
    assert time.perf_counter() - start < 20
    busy.stop()
    with pytest.raises(Stopped):
        list(steps)


def test_a_tab_that_is_closed_holds_nobody_up(studio: Studio) -> None:
    gone = studio.desk("gone")
    steps = studio.work(gone, asking(studio, gone))
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert said(studio, studio.desk("here")) == "Berlin"


def test_errors_of_a_task_reach_who_asked(studio: Studio) -> None:
    with pytest.raises(MegaValueError, match="must not be empty"):
        said(studio, studio.desk("a"), " ")
    assert said(studio, studio.desk("a")) == "Berlin"


def test_passes_of_other_threads_are_not_stopped(lab: Backbone) -> None:
    stop = threading.Event()
    stop.set()
    with stoppable(lab.model, stop), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lab.generate, QUESTION, max_new_tokens=1).result() == " Paris"
        with pytest.raises(Stopped):
            lab.generate(QUESTION, max_new_tokens=1)
