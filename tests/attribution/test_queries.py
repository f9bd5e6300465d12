from dataclasses import replace

import pytest
import torch

from mega_pl.attribution import query_layers, query_neurons, top_attention_neurons, top_neurons
from mega_pl.backbone import Backbone, Site, steer
from mega_pl.backbone.anatomy import neuron_keys

PROMPTS = ["Rome is", "The capital of France is"]
TARGETS = [[17, 300], [5, 6]]


@pytest.fixture
def build(tiny_model, tiny_tokenizer):
    return lambda model_type: Backbone(tiny_model(model_type).double(), tiny_tokenizer)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("find", [top_neurons, top_attention_neurons])
def test_padding_and_batches_do_not_matter(build, model_type, find):
    backbone = build(model_type)
    values = find(backbone, PROMPTS, TARGETS, 20)
    alone = find(backbone, PROMPTS[:1], TARGETS[:1], 20)
    left = query_layers(backbone, PROMPTS, values)
    right = query_layers(backbone, PROMPTS, values, padding_side="right")
    torch.testing.assert_close(left.attention, right.attention)
    torch.testing.assert_close(left.mlp[0], query_layers(backbone, PROMPTS[:1], alone).mlp[0])
    if find is top_attention_neurons:
        every = query_neurons(backbone, PROMPTS, values)
        torch.testing.assert_close(
            every.neurons, query_neurons(backbone, PROMPTS, values, padding_side="right").neurons
        )


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_neurons_of_a_layer_add_up_to_the_layer(build, model_type):
    """Up to the bias of the MLP's projection, which no neuron writes."""
    backbone = build(model_type)
    values = top_attention_neurons(backbone, PROMPTS, TARGETS, 20)
    layers, neurons = query_layers(backbone, PROMPTS, values), query_neurons(backbone, PROMPTS, values)
    torch.testing.assert_close(neurons.neurons.sum(-1), layers.mlp)
    assert torch.equal(neurons.skipped, layers.skipped)


def test_what_comes_later_has_no_share(build):
    backbone = build("llama")
    values = top_neurons(backbone, PROMPTS, TARGETS, 20)
    values = replace(values, layer=torch.full_like(values.layer, 1))
    result = query_layers(backbone, PROMPTS, values)
    assert not result.attention[..., 2:].any()
    assert not result.mlp[..., 1:].any()
    assert (result.attention[..., :2] != 0).all()
    assert (result.mlp[..., 0] != 0).all()


def test_denominators_that_cancel_are_left_out_and_counted(build):
    """A neuron whose key is orthogonal to the stream would get shares of any size."""
    backbone = build("llama")
    values = top_neurons(backbone, PROMPTS[:1], TARGETS[:1], 5)
    layer, neuron = int(values.layer[0, 0, 0]), int(values.neuron[0, 0, 0])
    bare = query_layers(backbone, PROMPTS[:1], values)
    assert bare.skipped[0, 0] == 0
    key = neuron_keys(backbone.model, layer)[neuron]
    encoded = backbone.encode(PROMPTS[:1])

    def flatten(stream):
        return stream - (stream @ key)[:, None] * key / key.square().sum() * (1 - 1e-6)

    with steer(backbone.model, {Site(layer, "resid_mid"): flatten}, encoded.last):
        guarded = query_layers(backbone, PROMPTS[:1], values)
        loose = query_layers(backbone, PROMPTS[:1], values, guard=0.0)
    assert guarded.skipped[0, 0] == 1
    assert loose.skipped[0, 0] == 0
    assert loose.attention[0, 0].abs().max() > 1e3 * guarded.attention[0, 0].abs().max()
    assert (query_layers(backbone, PROMPTS[:1], values, guard=0.999).skipped <= 5).all()


def test_the_side_of_a_gated_key_matters_and_that_of_another_does_not(build):
    for model_type, same in (("gpt2", True), ("llama", False)):
        backbone = build(model_type)
        values = top_neurons(backbone, PROMPTS, TARGETS, 10)
        gate, multiplied, written = (
            query_layers(backbone, PROMPTS, values, side=side).mlp for side in ("gate", "input", "output")
        )
        assert torch.equal(gate, multiplied) is same
        assert not torch.isclose(gate, written).all()


@pytest.mark.parametrize("ask", [query_layers, query_neurons])
def test_bad_requests_are_refused(build, ask):
    backbone = build("gpt2")
    values = top_attention_neurons(backbone, PROMPTS, TARGETS, 5)
    with pytest.raises(ValueError, match=r"as many prompts as `prompts`, .* but got 2, 1 and 0\.001"):
        ask(backbone, PROMPTS[:1], values)
    with pytest.raises(ValueError, match=r"`guard` lie in \[0, 1\), but got 2, 2 and 1\.5"):
        ask(backbone, PROMPTS, values, guard=1.5)
