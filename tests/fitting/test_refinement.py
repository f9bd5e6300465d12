"""Refining on tiny random models: what it lowers, what it leaves alone, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mega_pl.asking import last_states
from mega_pl.backbone import Site, steer
from mega_pl.edits import EditRequest
from mega_pl.fitting import MapConfig, fit_maps
from mega_pl.fitting.prompts import PromptConfig, PromptSet, phrasings
from mega_pl.fitting.refinement import UNRELATED, RefineConfig, refine

SITES = [Site(2, "resid_mid"), Site(3, "resid_post")]
REQUESTS = [
    EditRequest(edit_id="a", prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris"),
    EditRequest(
        edit_id="b", prompt="The language of {} is", subject="Italy", target_new="English", target_true="Spanish"
    ),
]
PROMPTS = PromptConfig(prefixes=1)
OWN = [phrasings(request, PROMPTS) for request in REQUESTS]
NONE, SHIFT = MapConfig(estimator="none"), MapConfig(estimator="mean_shift")
FAST = RefineConfig(steps=20, lr=0.05)


def fitted(backbone, config=NONE):
    sets = []
    for request, own in zip(REQUESTS, OWN, strict=True):  # shorter than SAKE's contexts, which a tiny model cannot read
        target = (f"{request.target_new}. {own[0]}", f"It is {request.target_new}. {own[0]}")
        sets.append(PromptSet(source=own, target=target, answers=("",) * len(target), facts=len(own)))
    return [fit_maps(backbone, prompts, SITES, config)[0] for prompts in sets]


def refine_all(backbone, maps, config, own=OWN):
    return [refine(backbone, *edit, 1.0, config) for edit in zip(REQUESTS, own, maps, strict=True)]


def log_probabilities(backbone, maps, prompt):
    encoded = backbone.encode([prompt])
    with steer(backbone.model, maps, encoded.last):
        return backbone.last_logits(encoded).log_softmax(-1)[0]


def nats(backbone, maps, index):
    """Mean surprise at the new object over an edit's own prompts, and how far the true one lies above it."""
    request, surprise, lead = REQUESTS[index], 0.0, 0.0
    for prompt in OWN[index]:
        found = log_probabilities(backbone, maps, prompt)
        new, true = (found[backbone.answer_ids(prompt, o)[0]] for o in (request.target_new, request.target_true))
        surprise, lead = surprise - float(new), lead + float(true - new)
    return surprise / len(OWN[index]), lead / len(OWN[index])


def divergence(backbone, maps):
    total = 0.0
    for text in UNRELATED:
        bare, steered = log_probabilities(backbone, {}, text), log_probabilities(backbone, maps, text)
        total += float((bare.exp() * (bare - steered)).sum())
    return total / len(UNRELATED)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("config", [NONE, SHIFT, MapConfig()], ids=lambda config: config.estimator)
def test_new_object_gains(tiny_backbone, model_type, config):
    backbone = tiny_backbone(model_type)
    digest, before = backbone.digest(), fitted(backbone, config)
    after = refine_all(backbone, before, FAST)
    for index in range(len(REQUESTS)):
        old, new = nats(backbone, before[index], index), nats(backbone, after[index], index)
        assert new[0] < 0.5 * old[0]
        assert new[1] < old[1]
        for site in SITES:
            assert not after[index][site].shift.requires_grad
            assert after[index][site].basis is before[index][site].basis
    assert backbone.digest() == digest
    assert all(weight.grad is None and not weight.requires_grad for weight in backbone.model.parameters())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tiny_backbone, dtype):
    backbone = tiny_backbone("llama", dtype)
    before = fitted(backbone)
    after = refine_all(backbone, before, FAST)
    assert nats(backbone, after[0], 0)[0] < 0.5 * nats(backbone, before[0], 0)[0]
    assert after[0][SITES[0]].shift.dtype == torch.float32


def test_maps_of_few_bytes_are_refined_in_float32(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    before = fitted(backbone, MapConfig(directions=2, dtype="int8"))
    after = refine_all(backbone, before, FAST)
    assert nats(backbone, after[0], 0)[0] < 0.5 * nats(backbone, before[0], 0)[0]
    assert after[0][SITES[0]].shift.dtype == torch.float16


def test_without_steps_maps_stay(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    before = fitted(backbone, MapConfig())
    after = refine_all(backbone, before, RefineConfig())
    assert all(a[site] is b[site] for a, b in zip(after, before, strict=True) for site in SITES)


def test_no_estimator_moves_nothing(tiny_backbone):
    states = torch.randn(3, 32)
    assert all(torch.equal(m(states), states) for maps in fitted(tiny_backbone("gpt2")) for m in maps.values())


@pytest.mark.parametrize("tokens", [1, 1000])
def test_batches_share_the_loss(tiny_backbone, tokens):
    backbone = tiny_backbone("gpt2")
    before = fitted(backbone, SHIFT)[0]
    whole, again = (refine(backbone, REQUESTS[0], OWN[0], before, 1.0, FAST) for _ in range(2))
    parts = refine(backbone, REQUESTS[0], OWN[0], before, 1.0, FAST, tokens_per_batch=tokens)
    for site in SITES:
        assert torch.equal(whole[site].shift, again[site].shift)
        torch.testing.assert_close(parts[site].shift, whole[site].shift, rtol=1e-3, atol=1e-3)


def test_first_step_has_the_length_of_lr(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    config = RefineConfig(steps=1, lr=0.05)
    length = refine_all(backbone, fitted(backbone), config)[0][SITES[0]].shift.norm()
    norms = last_states(backbone, OWN[0], SITES)[SITES[0]].norm(dim=1)
    assert length == pytest.approx(0.05 * float(norms.mean()), rel=1e-2)


def test_weights_of_the_loss(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    before = fitted(backbone)

    def refined(**weights):
        return refine_all(backbone, before, replace(FAST, **weights))[0]

    assert divergence(backbone, refined(divergence=10.0)) < 0.5 * divergence(backbone, refined(divergence=0.0))
    apart, plain = (nats(backbone, refined(suppression=s), 0)[1] for s in (10.0, 0.0))
    assert apart < plain


def test_refusals(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    before = fitted(backbone)
    with pytest.raises(ValueError, match=r"`own` must hold at least one prompt for 'b'"):
        refine(backbone, REQUESTS[1], (), before[1], 1.0, FAST)
    with torch.no_grad():  # an answer that the model cannot give
        backbone.model.lm_head.weight[backbone.answer_ids(OWN[1][0], "English")[0]] = float("-inf")
    with pytest.raises(FloatingPointError, match=r"'b' must be finite, but are not in step 0"):
        refine(backbone, REQUESTS[1], OWN[1], before[1], 1.0, FAST)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", -1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("suppression", -0.1),
        ("divergence", float("inf")),
    ],
)
def test_config_refusals(field, value):
    with pytest.raises(ValueError, match=rf"`{field}` must be .* but got {value}"):
        RefineConfig(**{field: value})
