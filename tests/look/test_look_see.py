"""What is seen of an edit is what the attribution of the package says."""

from __future__ import annotations

import pytest
import torch

from mega_pl import EditBank, fit, load
from mega_pl.attribution import SIGN_CLASSES, head_importance, top_neurons
from mega_pl.backbone import Backbone
from mega_pl.errors import MegaKeyError, MegaValueError
from mega_pl.look.see import NEURONS, Sight, see


def test_parts_come_one_after_the_other(lab: Backbone, bank: EditBank) -> None:
    steps: list[Sight] = []
    seen = see(lab, bank, "france", "", steps.append)
    assert [sum(bool(part) for part in (s.layers, s.heads, s.steering, s.neurons)) for s in steps] == [1, 2, 3, 4, 4]
    assert seen.layers is not None
    assert "Berlin" in seen.layers.axes[0].get_title()
    assert seen.notes == ("sign classes: the neurons of this model have no gate.",)
    assert seen.classes == ()


def test_neurons_are_those_of_the_bare_and_of_the_edited_model(lab: Backbone, bank: EditBank) -> None:
    prompt, target = (
        "The city that is the capital of France is",
        lab.answer_ids("The capital of France is", "Berlin")[:1],
    )
    seen = see(lab, bank, "france", prompt, lambda _: None)
    expected = []
    for when in ("before", "after"):
        with bank.apply(lab, edits=["france" if when == "after" else None]):
            found = top_neurons(lab, [prompt], [target], NEURONS)
        expected += [
            (when, *pair) for pair in zip(found.layer[0, 0].tolist(), found.neuron[0, 0].tolist(), strict=True)
        ]
    assert [row[:3] for row in seen.neurons] == expected


def test_heads_are_those_of_the_bare_and_of_the_edited_model_on_one_scale(lab: Backbone, bank: EditBank) -> None:
    prompt = bank["france"].filled
    before, after = see(lab, bank, "france", "", lambda _: None).heads
    limits = set()
    for figure, edit in ((before, None), (after, "france")):
        with bank.apply(lab, edits=[edit]):
            scores = head_importance(lab, [prompt], [lab.answer_ids(prompt, "Berlin")[:1]]).heads[0, 0]
        (image,) = figure.axes[0].images
        assert torch.allclose(torch.tensor(image.get_array()), scores.T, atol=1e-4)
        limits.add(image.get_clim())
    assert len(limits) == 1


def test_gated_neurons_have_classes_that_add_up() -> None:
    from tests.look.capitals import capital

    lab = load("lab-llama")
    seen = see(lab, fit(lab, [capital("France", "Paris", "Berlin")]), "france", "", lambda _: None)
    assert {row[-1] for row in seen.neurons} <= set(SIGN_CLASSES)
    assert {(int(layer), int(neuron)) for layer, neuron, *_ in seen.classes} == {row[1:3] for row in seen.neurons}
    for _, _, *shares in seen.classes:
        assert sum(int(share.partition("%")[0]) for share in shares) == pytest.approx(100, abs=2)
    assert seen.notes == ()


def test_a_prompt_that_the_edit_would_not_answer_is_named(lab: Backbone, bank: EditBank) -> None:
    for prompt, who in (("The capital of Norway is", "norway does"), ("The capital of Spain is", "none does")):
        seen = see(lab, bank, "france", prompt, lambda _: None)
        assert seen.notes[0] == f"In use france does not answer this prompt ({who}); it is shown as if it did."


def test_refusals(lab: Backbone, bank: EditBank) -> None:
    with pytest.raises(MegaKeyError, match="nowhere"):
        see(lab, bank, "nowhere", "", lambda _: None)
    with pytest.raises(MegaValueError):
        see(lab, bank, "france", "word " * 500, lambda _: None)
