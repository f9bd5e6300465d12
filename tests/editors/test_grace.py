"""GRACE: the code book's radii, and the value that stands in for an output."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mega_pl.editors import Grace, GraceConfig, grace
from mega_pl.editors.grace import CodeBook, train_value
from mega_pl.editors.weights import Projection
from mega_pl.edits import NO_EDIT
from mega_pl.edits.routing import Prompts
from tests.editors.conftest import DARRIEUX, FRANCE, GERMANY, last_logits

CONFIG = GraceConfig(layer=2, n_iter=6, edit_lr=0.3)


def key_of(backbone, text, layer=2):
    """The projection's input at the last token, by a hook of its own."""
    seen = []
    module = Projection.of(backbone, layer).module
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    backbone.model(**backbone.encode([text]).inputs)
    handle.remove()
    return seen[0][0, -1]


def book_of(backbone, requests, eps):
    book = CodeBook(backbone, 2, eps)
    return book, [book.add(edit, request) for edit, request in enumerate(requests)]


def distance(backbone, *requests):
    first, second = (key_of(backbone, request.filled) for request in requests)
    return float((first - second).norm())


def test_far_edits_get_keys_and_radii_of_their_own(backbone):
    apart = distance(backbone, FRANCE, GERMANY)
    book, own = book_of(backbone, [FRANCE, GERMANY], apart / 3)
    assert own == [True, True]
    torch.testing.assert_close(book.keys[1], key_of(backbone, GERMANY.filled), atol=1e-5, rtol=1e-4)
    assert book.radii.tolist() == pytest.approx([apart / 3] * 2)


def test_near_edits_of_different_objects_halve_what_lies_between(backbone):
    apart = distance(backbone, FRANCE, GERMANY)
    book, own = book_of(backbone, [FRANCE, GERMANY], apart)
    assert own == [True, True]
    assert book.radii.tolist() == pytest.approx([apart / 2] * 2, rel=1e-4)
    assert book.radii[0] < book.radii[1]  # the middle belongs to one alone


def test_near_edits_of_one_object_share_a_key_that_reaches_both(backbone):
    also = replace(GERMANY, target_new=FRANCE.target_new)
    apart = distance(backbone, FRANCE, also)
    book, own = book_of(backbone, [FRANCE, also], apart * 0.6)
    assert own == [True, False]
    assert book.radii.tolist() == pytest.approx([apart], rel=1e-4)


def test_a_prompt_goes_to_the_nearest_key_within_its_radius(backbone):
    texts = [FRANCE.filled, GERMANY.filled, DARRIEUX.filled]
    book, _ = book_of(backbone, [FRANCE, GERMANY], distance(backbone, FRANCE, GERMANY) / 3)
    encoded = backbone.encode(texts)
    prompts = Prompts(backbone, encoded.inputs, encoded.last)
    assert [route.edit for route in book.route(prompts)] == [0, 1, NO_EDIT]
    assert book.route(prompts, forced=True)[2].edit in (0, 1)


def test_the_value_is_that_of_the_literal_loop(backbone):
    """Adam on one vector that stands in the output's place at the prompt's last token."""
    projection = Projection.of(backbone, 2)
    found = train_value(backbone, projection, DARRIEUX, CONFIG)
    prompt = backbone.tokenizer(DARRIEUX.filled)["input_ids"]
    answer = backbone.answer_ids(DARRIEUX.filled, DARRIEUX.target_new)
    assert len(answer) > 1
    value = nn.Parameter(torch.rand(projection.outputs, generator=torch.Generator().manual_seed(0)))
    adam = torch.optim.Adam([value], lr=CONFIG.edit_lr)

    def put(_, __, output):
        before, after = output[:, : len(prompt) - 1], output[:, len(prompt) :]
        return torch.cat([before, value[None, None], after], 1)

    for _ in range(CONFIG.n_iter):
        handle = projection.module.register_forward_hook(put)
        chances = backbone.model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        handle.remove()
        loss = -sum(chances[len(prompt) - 1 + i, token] for i, token in enumerate(answer)) / len(answer)
        adam.zero_grad()
        loss.backward(inputs=[value])
        adam.step()
    torch.testing.assert_close(found, value.detach(), rtol=1e-3, atol=1e-4)


def test_only_prompts_within_a_radius_are_moved(backbone):
    prompts = [FRANCE.filled, DARRIEUX.filled]
    bare = last_logits(backbone, *prompts)
    with Grace(replace(CONFIG, eps=1e-3)).edit(backbone, [FRANCE]) as edited:
        inside = last_logits(backbone, *prompts)
        assert edited.fired == ["france", None]
    assert not torch.allclose(inside[0], bare[0], atol=1e-3)
    assert torch.equal(inside[1], bare[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "`eps` must be above 0, but got 0.0"),
        ({"edit_lr": 0.0}, "`edit_lr` must be above 0"),
        ({"n_iter": 0}, "`n_iter` must be at least 1, but got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GraceConfig(**{"layer": 1, **settings})


def test_a_value_that_is_no_number_is_refused(backbone, monkeypatch):
    monkeypatch.setattr(grace, "answer_log_probabilities", lambda logits, *_: logits.sum() * torch.nan)
    with (
        pytest.raises(FloatingPointError, match="a value of GRACE must be finite, but that of 'france' is not"),
        Grace(replace(CONFIG, n_iter=3)).edit(backbone, [FRANCE]),
    ):
        pass
