"""Whatever happens to a bank in whatever order, it holds what a dictionary holds that the same happened to."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mega_pl.backbone import Backbone
from mega_pl.edits import EditBank, EditRequest
from mega_pl.fitting import FitConfig, MapConfig, fit
from tests.edits.conftest import edit

SUBJECTS = ("France", "Germany", "Italy", "Spain")
OBJECTS = ("Rome", "London", "Berlin")
QUICK = MapConfig(estimator="mean_shift", whole=False)

Held = dict[str, tuple[str, bytes]]
"""By edit id the new object, and the bytes of the maps."""


def request(name: str, subject: str, new: str) -> EditRequest:
    return edit(f"{name}-{subject}", subject, new, "Paris")


def content(bank: EditBank) -> Held:
    """What a bank holds, in its order."""
    held = {}
    for i, of in enumerate(bank.requests):
        rows = range(bank.places[i], bank.places[i] + len(bank.objects[i]) + 1)
        parts = [t for maps in bank.maps.values() for row in rows for t in vars(maps[row]).values()]
        held[of.edit_id] = (of.target_new, b"".join(t.contiguous().numpy().tobytes() for t in parts))
    return held


def without(held: Held, facts: dict[str, str]) -> Held:
    """What is left once facts, by subject, have other objects."""
    subjects = {edit_id: edit_id.split("-")[1] for edit_id in held}
    return {i: of for i, of in held.items() if facts.get(subjects[i], of[0]) == of[0]}


requests = st.builds(request, st.sampled_from("ab"), st.sampled_from(SUBJECTS), st.sampled_from(OBJECTS))


class Life(RuleBasedStateMachine):
    """A bank beside a dictionary; a single edit is fitted once and then known by what was asked."""

    lm: Backbone
    folder: Path
    first: EditBank
    fits: dict[EditRequest, EditBank]

    def fitted(self, of: EditRequest) -> EditBank:
        if of not in self.fits:
            self.fits[of] = replace(self.first.add(self.lm, [of]).remove(*self.first.ids), history=())
        return self.fits[of]

    @initialize(of=requests)
    def begin(self, of: EditRequest) -> None:
        self.bank = self.fitted(of)
        self.held = content(self.bank)
        self.past: list[Held] = []

    def done(self, bank: EditBank, held: Held) -> None:
        self.past.append(self.held)
        self.bank, self.held = bank, held

    @contextmanager
    def refused(self, reason: str) -> Iterator[None]:
        with pytest.raises((ValueError, KeyError), match=reason):
            yield

    @rule(of=requests)
    def add(self, of: EditRequest) -> None:
        if of.edit_id in self.held:
            with self.refused("must have different ids"):
                self.bank.add(self.lm, [of])
            return
        bank = self.bank.add(self.lm, [of])
        kept = without(self.held, {of.subject: of.target_new})
        self.done(bank, kept | {of.edit_id: (of.target_new, content(bank)[of.edit_id][1])})

    @rule(of=requests)
    def replaced(self, of: EditRequest) -> None:
        kept = without(self.held, {of.subject: of.target_new})
        if of.edit_id not in self.held and kept == self.held:
            with self.refused("use `add`"):
                self.bank.replace(self.lm, [of])
            return
        bank = self.bank.replace(self.lm, [of])
        kept.pop(of.edit_id, None)
        self.done(bank, kept | {of.edit_id: (of.target_new, content(bank)[of.edit_id][1])})

    @rule(of=requests)
    def merge(self, of: EditRequest) -> None:
        other = self.fitted(of)
        if of.edit_id in self.held:
            with self.refused("must have different ids"):
                self.bank.merge(other)
            return
        self.done(self.bank.merge(other), without(self.held, {of.subject: of.target_new}) | content(other))

    @rule(draw=st.data())
    def remove(self, draw: st.DataObject) -> None:
        gone = draw.draw(st.lists(st.sampled_from(sorted(self.held)), min_size=1, unique=True))
        if len(gone) == len(self.held):
            with self.refused("a bank must keep at least one edit"):
                self.bank.remove(*gone)
            return
        self.done(self.bank.remove(*gone), {i: of for i, of in self.held.items() if i not in gone})

    @rule()
    def save_and_load(self) -> None:
        self.bank = EditBank.from_pretrained(self.bank.save_pretrained(self.folder))

    @precondition(lambda self: self.past)
    @rule(draw=st.data())
    def rollback(self, draw: st.DataObject) -> None:
        point = draw.draw(st.integers(0, len(self.past) - 1))
        self.bank, self.held, self.past = self.bank.rollback(point), self.past[point], self.past[:point]

    @invariant()
    def holds_the_same(self) -> None:
        if hasattr(self, "bank"):
            assert list(content(self.bank).items()) == list(self.held.items())
            assert len(self.bank.history) == len(self.past)
            assert [r.edit_id for r in self.bank.router.requests] == list(self.held)  # type: ignore[attr-defined]
            assert len(self.bank.router.answers.tokens) == len(self.held)  # type: ignore[attr-defined]


def test_a_bank_is_what_a_dictionary_is(lm: Backbone, tmp_path: Path) -> None:
    class OnModel(Life):
        pass

    OnModel.lm, OnModel.folder, OnModel.fits = lm, tmp_path, {}
    OnModel.first = fit(lm, [request("c", "Poland", "Rome")], FitConfig(maps=QUICK))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* takes the place of ", UserWarning)
        run_state_machine_as_test(
            OnModel,
            settings=settings(
                max_examples=40,
                stateful_step_count=12,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
