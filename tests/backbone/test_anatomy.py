from functools import partial

import pytest
import torch

from mega_pl.backbone import Backbone, Site, blocks, record
from mega_pl.backbone.anatomy import (
    check_components,
    head_keys,
    head_rows,
    head_shape,
    neuron_keys,
    neuron_rows,
    projection_bias,
    read_out,
)
from mega_pl.backbone.observation import observe_parts, observe_paths, observe_stream

WRITING = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3", "stablelm", "starcoder2"]
CENTRED = {"gpt2", "gpt_neox", "stablelm", "starcoder2"}
OTHERS = ["gemma2", "gemma3_text", "olmo2", "gpt_neox"]
OVERRIDES = {
    "mistral": {"sliding_window": 3},
    "gemma2": {"final_logit_softcapping": 2.0},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
}
PROMPTS = ["Rome is", "The capital of France is"]
assert_close = partial(torch.testing.assert_close, atol=1e-6, rtol=1e-5)


@pytest.fixture
def build(tiny_model, tiny_tokenizer):
    """A float64 backbone whose norms and biases are not at their initial values."""

    def build_one(model_type):
        model = tiny_model(model_type, OVERRIDES.get(model_type)).double()
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.double)
        return Backbone(model, tiny_tokenizer)

    return build_one


@pytest.mark.parametrize("model_type", [*WRITING, *OTHERS])
def test_the_read_out_gives_the_models_own_logits(build, model_type):
    """With the final norm's bias, where there is one; without it, only a layer norm's logits differ."""
    backbone = build(model_type)
    stream = observe_stream(backbone, backbone.encode(PROMPTS, "right"))
    for final, logits in zip(stream.final, stream.logits, strict=True):
        faithful = read_out(backbone.model, final, include_final_bias=True).logits(final[None])[0]
        assert_close(faithful.float(), logits)
        bare = read_out(backbone.model, final).logits(final[None])[0]
        assert torch.equal(bare, faithful) is (model_type not in CENTRED)


@pytest.mark.parametrize("model_type", WRITING)
def test_heads_and_neurons_add_up_to_what_their_blocks_add(build, model_type):
    backbone = build(model_type)
    model, encoded = backbone.model, backbone.encode(PROMPTS)
    parts = observe_parts(backbone, encoded)
    sites = [Site(layer, kind) for layer in range(4) for kind in ("attn_out", "mlp_out")]
    with record(model, sites, encoded.last) as seen:
        backbone.last_logits(encoded)
    for layer in range(4):
        attention = parts.heads[:, layer].flatten(1) @ head_rows(model, layer)
        attention += projection_bias(model, layer, "attention")
        assert_close(attention, seen[Site(layer, "attn_out")])
        mlp = parts.neurons[:, layer] @ neuron_rows(model, layer) + projection_bias(model, layer, "mlp")
        assert_close(mlp, seen[Site(layer, "mlp_out")])


@pytest.mark.parametrize("model_type", WRITING)
def test_a_head_is_its_values_weighted_by_its_attention(build, model_type):
    backbone = build(model_type)
    encoded = backbone.encode(PROMPTS)
    paths, parts = observe_paths(backbone, encoded), observe_parts(backbone, encoded)
    assert_close((paths.weights[..., None] * paths.values).sum(2), parts.heads)
    assert_close(paths.weights.sum(2), torch.ones_like(paths.weights[:, :, 0]))


@pytest.mark.parametrize("model_type", WRITING)
def test_keys_read_the_normalised_stream(build, model_type):
    """Up to the norm's bias, a value is its key times the stream, centred and scaled; so is what enters a neuron."""
    backbone = build(model_type)
    model, layout, layer = backbone.model, backbone.layout, 2
    for name, parameter in blocks(model)[layer].named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    encoded = backbone.encode(PROMPTS[1:])
    paths, parts = observe_paths(backbone, encoded), observe_parts(backbone, encoded)

    def normalised(vector):
        vector = vector - vector.mean() if model_type in CENTRED else vector
        epsilon = 1e-5 if model_type in CENTRED else 1e-6
        return vector / (vector.square().mean() + epsilon).sqrt()

    values = head_keys(model, layer) @ normalised(parts.stream.resid_pre[0, layer])
    assert_close(values, paths.values[0, layer, -1].flatten())
    mid = normalised(parts.stream.resid_mid[0, layer])
    assert_close(neuron_keys(model, layer) @ mid, parts.gate[0, layer])
    assert (parts.input is None) is (len(layout.mlp_in) == 1)
    if parts.input is not None:
        assert_close(neuron_keys(model, layer, "input") @ mid, parts.input[0, layer])
    gain = neuron_keys(model, layer, "output") / neuron_rows(model, layer)
    torch.testing.assert_close(gain, gain[:1].expand_as(gain))


def test_groups_are_repeated(build):
    assert head_shape(build("llama").model) == (4, 2, 8)
    assert head_shape(build("gpt2").model) == (4, 4, 8)
    model = build("llama").model
    keys = head_keys(model, 1).view(4, 8, 32)
    assert torch.equal(keys[0], keys[1])
    assert not torch.equal(keys[1], keys[2])


@pytest.mark.parametrize("model_type", OTHERS)
def test_models_with_another_order_of_parts_are_refused(build, model_type):
    backbone = build(model_type)
    with pytest.raises(ValueError, match=rf"as it is, attention first, but got '{model_type}'; use the layer level"):
        check_components(backbone.model)
    for observe in (observe_parts, observe_paths):
        with pytest.raises(ValueError, match="use the layer level"):
            observe(backbone, backbone.encode(PROMPTS))


def test_weights_that_are_no_numbers_are_refused(build):
    model = build("llama").model
    weight = model.model.layers[0].mlp.down_proj.weight
    model.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"`mlp\.down_proj` must be a linear module with floating-point weights"):
        neuron_rows(model, 0)
