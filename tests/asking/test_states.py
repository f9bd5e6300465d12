"""Last-token states in batches, against one prompt at a time."""

from functools import partial

import pytest
import torch

from mega_pl.asking import final_states, last_states
from mega_pl.backbone import Site, record, steer

PROMPTS = ["Now. The capital of France is", "Rome is a city in", "France is", "The city of Rome is in", "Rome"]
SITES = [Site(1, "resid_mid"), Site(2, "resid_mid"), Site(3, "resid_post")]


@torch.no_grad()
def alone(backbone, site, moves):
    """States of each prompt by itself, each with its own moves."""
    rows = []
    for i, prompt in enumerate(PROMPTS):
        encoded = backbone.encode([prompt])
        with steer(backbone.model, moves([i]), encoded.last), record(backbone.model, [site], encoded.last) as seen:
            backbone.model(**encoded.inputs)
        rows.append(seen[site][0])
    return torch.stack(rows)


def bare(rows):
    return {}


def pushed(rows):
    """Moves each prompt at the first site by a number of its own."""
    return {SITES[0]: partial(torch.add, torch.tensor(rows, dtype=torch.float32)[:, None])}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("tokens_per_batch", [1, 24, 4096])
@pytest.mark.parametrize("moves", [bare, pushed])
def test_states_do_not_depend_on_the_batches(tiny_backbone, family, tokens_per_batch, moves):
    backbone = tiny_backbone(family)
    given = None if moves is bare else moves
    states = last_states(backbone, PROMPTS, SITES, given, tokens_per_batch=tokens_per_batch)
    for site in SITES:
        assert states[site].dtype == torch.float32
        torch.testing.assert_close(states[site], alone(backbone, site, moves), atol=1e-4, rtol=1e-4)


def test_moves_are_seen_at_later_sites(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    before, after = (last_states(backbone, PROMPTS, SITES, moves)[SITES[2]] for moves in (None, pushed))
    assert ((before - after).norm(dim=1) > 1e-2).tolist() == [False, True, True, True, True]  # the first by 0


def test_final_states_are_what_the_head_reads(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    logits = backbone.last_logits(backbone.encode(PROMPTS))
    head = backbone.model.get_output_embeddings().weight
    torch.testing.assert_close(final_states(backbone, PROMPTS) @ head.T, logits, atol=1e-4, rtol=1e-4)
    assert final_states(backbone, []).shape == (0, backbone.width)
