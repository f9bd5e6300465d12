"""Beginnings are read once, and what follows them is what it would be behind the whole texts."""

from __future__ import annotations

import pytest
import torch

from mega_pl.asking import read_beginnings, read_states
from mega_pl.backbone import Backbone, Site, record
from mega_pl.backbone.layout import _LAYOUTS

ROWS = [
    [5, 6, 7, 8, 9, 10],
    [5, 6, 7, 8, 11],
    [5, 6, 7, 8],
    [20, 21],
    [5, 6, 7, 8, 9, 10],  # the same once more
    [],
]


def states_of(backbone, texts, site, tokens):
    """Activations (N, S, D) of the last tokens of whole texts, one at a time."""
    found = []
    for text in texts:
        with torch.no_grad(), record(backbone.model, [site]) as seen:
            backbone.model(torch.tensor([text]), use_cache=False)
        found.append(seen[site][0, -tokens:])
    return torch.stack(found)


@pytest.mark.parametrize("tokens_per_batch", [1, 6, 1000])
@pytest.mark.parametrize("family", _LAYOUTS)
def test_what_follows_a_beginning_is_what_follows_the_whole_text(tiny_model, tiny_tokenizer, family, tokens_per_batch):
    backbone, site = Backbone(tiny_model(family), tiny_tokenizer), Site(3, "resid_post")
    texts = read_beginnings(backbone, ROWS, tokens_per_batch=tokens_per_batch)
    assert texts.mask.sum(1).tolist() == [len(row) for row in ROWS]
    new = torch.tensor([[30, 31]] * len(ROWS))
    with torch.no_grad(), record(backbone.model, [site]) as seen:
        backbone.model.base_model(**texts.follow(new))
    wanted = states_of(backbone, [[*row, 30, 31] for row in ROWS], site, 2)
    torch.testing.assert_close(seen[site], wanted, atol=1e-4, rtol=1e-4)
    texts.select([0, 3])
    with torch.no_grad(), record(backbone.model, [site]) as seen:
        backbone.model.base_model(**texts.follow(torch.tensor([[32], [33]])))
    wanted = states_of(backbone, [[*ROWS[0], 30, 31, 32], [*ROWS[3], 30, 31, 33]], site, 1)
    torch.testing.assert_close(seen[site], wanted, atol=1e-4, rtol=1e-4)


def test_a_common_part_is_read_once(tiny_backbone, monkeypatch):
    backbone, read = tiny_backbone("gpt2"), []
    forward = backbone.model.base_model.forward

    def count(*args, **kwargs):
        mask = kwargs["attention_mask"][:, -kwargs["input_ids"].shape[1] :]
        read.append(int(mask.sum()))
        return forward(*args, **kwargs)

    monkeypatch.setattr(backbone.model.base_model, "forward", count)
    read_beginnings(backbone, ROWS)
    # 5 6 7 8 and, as its neighbour in their order, 5 6 7 8 9 10 are the parts; then 9 10, 11 and 20 21 are left
    assert sum(read) == len([5, 6, 7, 8]) + len([9, 10]) + len([11]) + len([20, 21])


@pytest.mark.parametrize("tokens_per_batch", [1, 6, 1000])
@pytest.mark.parametrize("family", _LAYOUTS)
def test_states_are_those_of_whole_texts(tiny_model, tiny_tokenizer, family, tokens_per_batch):
    backbone, site = Backbone(tiny_model(family), tiny_tokenizer), Site(1, "resid_post")
    texts = [row for row in ROWS if row]
    states, places = read_states(backbone, texts, site, tokens_per_batch=tokens_per_batch)
    assert states.shape == (len([5, 6, 7, 8]) + len([9, 10]) + len([11]) + len([20, 21]), backbone.width)  # each once
    for text, own in zip(texts, places, strict=True):
        torch.testing.assert_close(
            states[list(own)], states_of(backbone, [text], site, len(text))[0], atol=1e-4, rtol=1e-4
        )


def test_blocks_above_the_last_site_are_not_run(tiny_backbone):
    backbone = tiny_backbone("llama")
    run = []
    hooks = [
        block.register_forward_hook(lambda *_, n=n: run.append(n))
        for n, block in enumerate(backbone.model.model.layers)
    ]
    texts = read_beginnings(backbone, ROWS[:2], last=Site(1, "resid_post"))
    for hook in hooks:
        hook.remove()
    assert set(run) <= {0, 1}
    assert len(texts.cache.layers) == 2
    with torch.no_grad(), record(backbone.model, [Site(1, "resid_post")]) as seen:
        backbone.model.base_model(torch.tensor([[*ROWS[0]]]), use_cache=False)
    assert seen  # the model is whole again
