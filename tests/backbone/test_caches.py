"""Continuations that start from one cache."""

import pytest
import torch

from mega_pl.backbone import Backbone, forked


@torch.no_grad()
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "mistral"])
def test_what_is_read_behind_a_fork_does_not_change_the_cache(tiny_model, tiny_backbone, family):
    """Also where it slides over a window that is shorter than the text."""
    config = {"sliding_window": 4} if family in ("gemma2", "mistral") else {}
    backbone = Backbone(tiny_model(family, config), tiny_backbone(family).tokenizer)
    ids = backbone.encode(["The capital of the country is", "He was born in the city of"]).input_ids
    cache = backbone.model.base_model(ids[:, :-1], use_cache=True).past_key_values
    wanted = backbone.model.base_model(ids, use_cache=False).last_hidden_state[:, -1]
    for last in (ids[:, -1:], ids[:, :1], ids[:, -1:]):
        states = backbone.model.base_model(last, past_key_values=forked(cache), use_cache=True).last_hidden_state[:, -1]
        assert torch.allclose(states, wanted, atol=1e-5) == torch.equal(last, ids[:, -1:])
    assert cache.get_seq_length() == ids.shape[1] - 1
