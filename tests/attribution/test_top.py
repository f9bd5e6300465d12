import pytest
import torch

from mega_pl.attribution import (
    SIGN_CLASSES,
    attention_neuron_importance,
    layer_importance,
    neuron_importance,
    top_attention_neurons,
    top_neurons,
)
from mega_pl.backbone import Backbone, Site, steer

FAMILIES = ["gpt2", "llama"]
PROMPTS = ["Rome is", "The capital of France is"]
TARGETS = [[17, 300], [5, 6]]
EVERY_HEAD = [(layer, head) for layer in range(4) for head in range(4)]


@pytest.fixture
def build(tiny_model, tiny_tokenizer):
    def build_one(model_type, dtype=torch.double):
        return Backbone(tiny_model(model_type).to(dtype), tiny_tokenizer)

    return build_one


def sorted_end(scores, count, end):
    return scores.sort(descending=end == "positive").values[..., :count]


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("end", ["positive", "negative"])
@pytest.mark.parametrize("count", [1, 20])
def test_the_list_of_mlp_neurons_is_the_exhaustive_one(build, model_type, end, count):
    backbone = build(model_type)
    every = neuron_importance(backbone, PROMPTS, TARGETS, range(4))
    found = top_neurons(backbone, PROMPTS, TARGETS, count, end=end)
    torch.testing.assert_close(found.importance, sorted_end(every.neurons.flatten(2), count, end))
    rows = torch.arange(2)[:, None, None]
    at = every.neurons[rows, torch.arange(2)[:, None], found.layer, found.neuron]
    torch.testing.assert_close(found.importance, at)
    torch.testing.assert_close(found.activation, every.activations[rows, found.layer, found.neuron])
    assert found.candidates.tolist() == [256, 256]
    assert (found.evaluated >= count).all()
    assert (found.evaluated < 256 // 2).all()
    if every.signs is None or found.signs is None:
        assert (found.signs, every.signs, model_type) == (None, None, "gpt2")
    else:
        assert torch.equal(found.signs, every.signs[rows, found.layer, found.neuron])
        assert 0 <= found.signs.min() <= found.signs.max() < len(SIGN_CLASSES)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("end", ["positive", "negative"])
def test_the_list_of_attention_neurons_is_the_exhaustive_one(build, model_type, end):
    backbone = build(model_type)
    found = top_attention_neurons(backbone, PROMPTS, TARGETS, 20, end=end)
    for row in range(2):
        every = attention_neuron_importance(backbone, PROMPTS[row : row + 1], TARGETS[row : row + 1], EVERY_HEAD)[0]
        assert found.candidates[row] == every[0].numel()
        for w in range(2):
            torch.testing.assert_close(found.importance[row, w], sorted_end(every[w].flatten(), 20, end))
            head = 4 * found.layer[row, w] + found.head[row, w]
            at = every[w, head, found.position[row, w], found.coordinate[row, w]]
            torch.testing.assert_close(found.importance[row, w], at)
    assert (found.evaluated < found.candidates[:, None] // 2).all()


@pytest.mark.parametrize("find", [top_neurons, top_attention_neurons])
@pytest.mark.parametrize("end", ["positive", "negative"])
def test_padding_and_batches_do_not_matter(build, find, end):
    backbone = build("llama", torch.float)
    left = find(backbone, PROMPTS, TARGETS, 5, end=end)
    right = find(backbone, PROMPTS, TARGETS, 5, end=end, padding_side="right")
    torch.testing.assert_close(left.importance, right.importance)
    assert torch.equal(left.layer, right.layer)
    alone = find(backbone, PROMPTS[:1], TARGETS[:1], 5, end=end)
    torch.testing.assert_close(alone.importance[0], left.importance[0])
    assert torch.equal(alone.layer[0], left.layer[0])


@pytest.mark.parametrize("dtype", [torch.float, torch.bfloat16])
def test_lists_in_other_dtypes(build, dtype):
    backbone = build("llama", dtype)
    found, every = (
        top_neurons(backbone, PROMPTS, TARGETS, 10),
        neuron_importance(backbone, PROMPTS, TARGETS, range(4)).neurons,
    )
    assert found.importance.dtype == every.dtype == torch.float
    torch.testing.assert_close(found.importance, sorted_end(every.flatten(2), 10, "positive"))


def test_neurons_bias_and_steering_add_up_to_first_order(build):
    """A small multiple of everything: importances are then linear, and parts add up to the layer."""
    backbone = build("gpt2")
    for block in backbone.model.transformer.h:
        block.mlp.c_proj.weight.data *= 1e-6
        block.mlp.c_proj.bias.data.fill_(1e-6)
    site = Site(1, "mlp_out")
    shift = 1e-6 * torch.randn(32, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    with steer(backbone.model, {site: lambda values: values + shift}, backbone.encode(PROMPTS).last):
        parts = neuron_importance(backbone, PROMPTS, TARGETS, [1])
        whole = layer_importance(backbone, PROMPTS, TARGETS).mlp[..., 1]
    total = parts.neurons.sum(-1) + parts.bias + parts.steering
    torch.testing.assert_close(total[..., 0], whole, atol=1e-10, rtol=0)
    assert parts.steering.abs().min() > 1e-8


@pytest.mark.parametrize("find", [top_neurons, top_attention_neurons])
def test_bad_requests_are_refused(build, find):
    with pytest.raises(ValueError, match=r"`end` must be one of positive, negative, but got 'both'\."):
        find(build("gpt2"), PROMPTS, TARGETS, end="both")
    with pytest.raises(ValueError, match=r"`count` must lie in \[1, \d+\], but got 100000\."):
        find(build("gpt2"), PROMPTS, TARGETS, 100_000)
