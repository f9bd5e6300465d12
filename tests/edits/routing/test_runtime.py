"""Routing in force: who decides, and what is refused."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from mega_pl.backbone import each_pass
from mega_pl.edits.routing import NO_EDIT, Route, RoutedEdits

TEXTS = ["The capital of France is", "Rome is a city in", "He works as a"]


class Lengths:
    """A router that sends a prompt to edit 0 if it is of some length in tokens, and remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def route(self, prompts, *, forced=False):
        self.calls.append((prompts.turns, forced))
        lengths = prompts.inputs["attention_mask"].sum(1).tolist()
        return [Route(0 if forced or n == max(lengths) else NO_EDIT, 0.5) for n in lengths]


@pytest.fixture
def steered():
    """What is steered: rows, their edits and their tokens, and then that it is over."""
    return []


@pytest.fixture
def use(tiny_backbone, steered):
    """Two edits in force, of which nothing is seen but who gets them."""

    @contextmanager
    def steer(rows, columns, edits, steps):
        assert not steps.any()
        steered.append((rows.tolist(), edits.tolist(), columns.tolist()))
        yield
        steered.append("over")

    router: Any = Lengths()
    return RoutedEdits(tiny_backbone("gpt2"), ["a", "b"], router, steer)


def read(use, texts=TEXTS):
    encoded = use.backbone.encode(texts)
    with each_pass(use.backbone.model, use.read):
        use.backbone.last_logits(encoded)
    return encoded


def test_the_router_is_asked_once_a_prompt_and_its_rows_are_steered(use, steered):
    assert use.fired == []
    encoded = read(use)
    lengths = encoded.attention_mask.sum(1).tolist()
    fired = ["a" if n == max(lengths) else None for n in lengths]
    assert use.fired == fired
    assert use.router.calls == [([(text,) for text in TEXTS], False)]
    rows = [i for i, edit in enumerate(fired) if edit]
    assert steered == [(rows, [0] * len(rows), encoded.last[rows].tolist()), "over"]
    assert [route.confidence for route in use.routes] == [0.5] * 3


def test_fixed_rows_are_taken_instead(use, steered):
    use.fix(["b", None, "a"])
    read(use)
    assert use.fired == ["b", None, "a"]
    assert steered[0][:2] == ([0, 2], [1, 0])
    assert use.router.calls == []
    assert [route.confidence for route in use.routes] == [1.0, 0.0, 1.0]
    use.fix()
    read(use)
    assert len(use.router.calls) == 1


def test_all_rows_may_be_fixed_to_none(use, steered):
    use.fix([None, None, None])
    read(use)
    assert use.fired == [None, None, None]
    assert steered == []


def test_forcing_is_passed_on_until_it_is_taken_back(use):
    use.fix(forced=True)
    read(use)
    assert use.fired == ["a", "a", "a"]
    use.fix()
    read(use)
    assert [forced for _, forced in use.router.calls] == [True, False]
    assert None in use.fired


@pytest.mark.parametrize("edits", [["a"], ["a", None], [None] * 4])
def test_another_number_of_rows_is_refused(use, steered, edits):
    use.fix(edits)
    with pytest.raises(ValueError, match=rf"`edits` must name one edit a prompt, but got {len(edits)} for 3 prompts"):
        read(use)
    assert steered == []


def test_edits_that_are_not_in_force_are_refused_and_change_nothing(use):
    use.fix(["a", None, "b"])
    with pytest.raises(KeyError, match="`edits` must name edits in force, but got 'x', 'y'"):
        use.fix(["y", "a", "x", None, "x"])
    read(use)
    assert use.fired == ["a", None, "b"]


def test_generation_routes_the_prompt_and_not_each_token(use):
    encoded = use.backbone.encode(TEXTS)
    with each_pass(use.backbone.model, use.read):
        use.backbone.model.generate(
            input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, max_new_tokens=4, pad_token_id=0
        )
    assert len(use.router.calls) == 1
    assert torch.tensor([route.edit for route in use.routes]).shape == (3,)
