"""SAKE's router: means, thresholds and what it refuses."""

from typing import Any

import pytest
import torch

from mega_pl.edits import EditRequest
from mega_pl.edits.routing import NO_EDIT, CentreRouter, Prompts, centres

TEXTS = [
    *("The capital of France is", "France has its capital in", "Now. The capital of France is"),
    *("Rome is a city in", "The city of Rome is in"),
]
EDITS = torch.tensor([0, 0, 0, 1, 1])


class Points:
    """Prompts that are points on a line, and the backbone's states at once."""

    def __init__(self, *values):
        self.points = torch.tensor([[float(value)] for value in values])

    def last_states(self, layer):
        return self.points


def fit(values, edits, **settings):
    parts: list[Any] = [Points(*values)]
    return CentreRouter.fit(parts, torch.tensor(edits), layer=0, encoder=None, **settings)


def routed(router, *values, forced=False):
    return [route.edit for route in router.route(Points(*values), forced=forced)]


def test_centres_and_thresholds():
    router = fit([0, 2, 4, 100, 104], [0, 0, 0, 1, 1], recall=1.0, margin=1.5)
    assert router.centres.flatten().tolist() == [2.0, 102.0]
    # Distances from the means of the others: 3, 0, 3 and 4, 4.
    torch.testing.assert_close(router.thresholds, torch.tensor([6.0, 6.0]))
    assert routed(router, 2, 8, 8.1, 60, 97, 1000) == [0, 0, NO_EDIT, NO_EDIT, 1, NO_EDIT]
    assert routed(router, -1000, 1000, forced=True) == [0, 1]


def test_confidence_is_one_where_an_edit_answers():
    router = fit([0, 2, 4, 100, 104], [0, 0, 0, 1, 1], recall=1.0, margin=1.5)
    assert [route.confidence for route in router.route(Points(2, 60))] == [1.0, 0.0]


def test_an_edit_answers_its_own_prompt_however_far_out():
    router = fit([50, 0, 0, 0, 0, 0, 0], [0] * 7, recall=0.5, margin=1.0)
    assert routed(router, 50, 51) == [0, NO_EDIT]


def test_batches_are_one_fit():
    cuts: list[list[Any]] = [[Points(0, 2, 4), Points(100, 104)], [Points(0, 2, 4, 100, 104)]]
    split, whole = (CentreRouter.fit(parts, EDITS, layer=0, encoder=None, recall=0.9, margin=1.1) for parts in cuts)
    assert torch.equal(split.centres, whole.centres)
    assert torch.equal(split.thresholds, whole.thresholds)


def prompts(backbone, texts, side="left"):
    encoded = backbone.encode(texts, side)
    return Prompts(backbone, encoded.inputs, encoded.last)


@pytest.mark.parametrize("layer", [0, 3, -1, -2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_compared_is_a_blocks_output_at_the_last_token(tiny_backbone, layer, side):
    backbone = tiny_backbone("llama")
    router = CentreRouter(torch.empty(0), torch.empty(0), layer)
    found = router.read(prompts(backbone, TEXTS, side))
    for text, vector in zip(TEXTS, found, strict=True):
        seen: list[torch.Tensor] = []
        block = backbone.model.model.layers[layer]
        handle = block.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output))
        with torch.no_grad():
            backbone.model(torch.tensor([backbone.tokenizer(text)["input_ids"]]))
        handle.remove()
        torch.testing.assert_close(vector, seen[0][0, -1], atol=1e-4, rtol=1e-4)


def test_an_encoder_reads_the_turns_as_one_text(tiny_backbone, monkeypatch):
    texts: list[str] = []
    loaded: list[tuple[str, bool]] = []

    def letters(batch):
        texts.extend(batch)
        return torch.tensor([[float(len(text))] for text in batch])

    def encoder_of(name, *, normalized):
        loaded.append((name, normalized))
        return letters

    monkeypatch.setattr(centres, "encoder_of", encoder_of)
    router = CentreRouter.fit(
        [prompts(tiny_backbone("gpt2"), TEXTS)], EDITS, layer=0, encoder="letters", recall=1.0, margin=1.0
    )
    assert loaded == [("letters", False)]  # distances are Euclidean
    assert texts == TEXTS
    torch.testing.assert_close(router.centres[1, 0], torch.tensor(sum(map(len, TEXTS[3:])) / 2))


def test_forgetting_an_edit_moves_later_ones_up():
    router = fit([0, 2, 50, 52, 100, 102], [0, 0, 1, 1, 2, 2], recall=1.0, margin=1.0)
    smaller = router.remove(1)
    assert routed(router, 1, 51, 101) == [0, 1, 2]
    assert routed(smaller, 1, 51, 101) == [0, NO_EDIT, 1]


def test_a_stored_router_routes_as_before():
    router = fit([0, 2, 50, 52], [0, 0, 1, 1], recall=0.9, margin=1.2)
    config, tensors = router.state()
    again = CentreRouter.from_state([], config, tensors)
    assert routed(again, *range(-5, 60)) == routed(router, *range(-5, 60))
    assert (again.layer, again.encoder) == (0, None)


def test_more_edits_are_refused(tiny_backbone):
    request = EditRequest(edit_id="a", prompt="{} is", subject="Rome", target_new="x", target_true="y")
    with pytest.raises(ValueError, match="SAKE's router must be fitted on all edits together, but got more; fit them"):
        CentreRouter(torch.zeros(1, 4), torch.zeros(1)).add(tiny_backbone("gpt2"), [request])
