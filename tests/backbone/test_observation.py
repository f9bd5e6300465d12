from contextlib import ExitStack
from dataclasses import fields
from functools import partial

import pytest
import torch

from mega_pl.backbone import SITE_KINDS, Backbone, Site, steer
from mega_pl.backbone.anatomy import head_rows, neuron_rows, projection_bias
from mega_pl.backbone.observation import observe_gates, observe_history, observe_parts, observe_paths, observe_stream

FAMILIES = ["gpt2", "llama"]
PROMPTS = ["Rome is", "The capital of France is", "He was born in the city of"]
LAYER = 1
assert_close = partial(torch.testing.assert_close, atol=1e-6, rtol=1e-5)  # the model's logits are float32


@pytest.fixture
def build(tiny_model, tiny_tokenizer):
    def build_one(model_type, dtype=torch.double):
        return Backbone(tiny_model(model_type).to(dtype), tiny_tokenizer)

    return build_one


def push(values):
    return 0.5 * values.flip(-1) + 3.0


def hook_count(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def tensors(observation):
    """Every tensor of an observation, of what it holds included, by name."""
    for field in fields(observation):
        value = getattr(observation, field.name)
        if isinstance(value, torch.Tensor):
            yield field.name, value
        elif value is not None:
            yield from tensors(value)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("observe", [observe_stream, observe_parts, observe_paths, observe_history])
def test_padding_and_batches_do_not_matter(build, model_type, observe):
    backbone = build(model_type)
    left = dict(tensors(observe(backbone, backbone.encode(PROMPTS, "left"))))
    right = dict(tensors(observe(backbone, backbone.encode(PROMPTS, "right"))))
    for name in left:
        assert_close(left[name], right[name])
    for row, prompt in enumerate(PROMPTS):
        encoded = backbone.encode([prompt])
        for name, alone in tensors(observe(backbone, encoded)):
            batched = left[name][row]
            if name in ("embedding", "attn_out", "mlp_out", "weights", "values") or observe is observe_history:
                axis = 0 if name == "embedding" else 1
                length = encoded.input_ids.shape[1]
                assert not batched.narrow(axis, length, batched.shape[axis] - length).any()
                batched = batched.narrow(axis, 0, length)
            assert_close(batched, alone[0])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_last_token_of_a_history_is_what_parts_show(build, model_type):
    backbone = build(model_type)
    encoded = backbone.encode(PROMPTS)
    history, parts = observe_history(backbone, encoded), observe_parts(backbone, encoded)
    lengths = encoded.attention_mask.sum(-1)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(history.neurons[row, :, length - 1], parts.neurons[row])
        total = history.embedding[row, length - 1] + (history.attn_out + history.mlp_out)[row, :, length - 1].sum(0)
        torch.testing.assert_close(total, parts.stream.final[row])


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.double, torch.float, torch.bfloat16, torch.half])
def test_without_hooks_there_is_no_steering_to_the_bit(build, model_type, dtype):
    backbone = build(model_type, dtype)
    parts = observe_parts(backbone, backbone.encode(PROMPTS))
    assert not parts.attn_steering.any()
    assert not parts.mlp_steering.any()
    for _, values in tensors(parts):
        assert values.dtype == (torch.float if values is parts.stream.logits or dtype.itemsize < 8 else torch.double)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("kind", SITE_KINDS)
@pytest.mark.parametrize("late", [False, True])
def test_sums_close_under_steering(build, model_type, kind, late):
    """Also where an edit attaches its hooks only when the model starts to read, as a bank does."""
    backbone = build(model_type)
    model, encoded = backbone.model, backbone.encode(PROMPTS)
    bare = observe_parts(backbone, encoded)
    with ExitStack() as stack:
        steering = steer(model, {Site(LAYER, kind): push}, encoded.last)
        if late:
            stack.callback(model.register_forward_pre_hook(lambda *_: stack.enter_context(steering) or None).remove)
        else:
            stack.enter_context(steering)
        parts = observe_parts(backbone, encoded)
    stream = parts.stream
    after = torch.cat([stream.resid_pre[:, 1:], stream.final[:, None]], 1)
    for layer in range(4):
        attention = parts.heads[:, layer].flatten(1) @ head_rows(model, layer) + parts.attn_steering[:, layer]
        attention += projection_bias(model, layer, "attention")
        torch.testing.assert_close(stream.resid_pre[:, layer] + attention, stream.resid_mid[:, layer])
        mlp = parts.neurons[:, layer] @ neuron_rows(model, layer) + parts.mlp_steering[:, layer]
        mlp += projection_bias(model, layer, "mlp")
        torch.testing.assert_close(stream.resid_mid[:, layer] + mlp, after[:, layer])
    moved, still = parts.attn_steering, parts.mlp_steering
    if kind in ("mlp_out", "resid_post"):
        moved, still = still, moved
    assert moved[:, LAYER].abs().min() > 1e-6
    assert not still.any()
    assert not moved[:, [0, 2, 3]].any()
    assert not torch.allclose(stream.final, bare.stream.final)


@pytest.mark.parametrize("observe", [observe_stream, observe_paths])
def test_the_model_is_given_back_also_after_a_failure(build, observe):
    backbone = build("gpt2")
    model = backbone.model
    count, chosen, encoded = hook_count(model), model.config._attn_implementation, backbone.encode(PROMPTS)
    bare = backbone.last_logits(encoded)
    observe(backbone, encoded)
    assert torch.equal(backbone.last_logits(encoded), bare)

    def fail(*_):
        raise RuntimeError("stop")

    handle = model.transformer.h[2].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        observe(backbone, encoded)
    handle.remove()
    assert hook_count(model) == count
    assert model.config._attn_implementation == chosen
    assert torch.equal(backbone.last_logits(encoded), bare)


def test_gates_are_read_in_the_order_asked(build):
    backbone = build("llama")
    encoded = backbone.encode(PROMPTS)
    parts, last = observe_parts(backbone, encoded), encoded.attention_mask.sum(-1) - 1
    neurons = torch.tensor([[2, 5], [0, 63], [2, 1], [0, 0], [3, 7]])
    gates = observe_gates(backbone, encoded, neurons)
    rows = torch.arange(len(PROMPTS))
    assert parts.input is not None
    for values, expected in (
        (gates.gate, parts.gate),
        (gates.input, parts.input),
        (gates.activation, parts.neurons),
    ):
        assert torch.equal(values[rows, last], expected[:, neurons[:, 0], neurons[:, 1]])
    torch.testing.assert_close(torch.nn.functional.silu(gates.gate) * gates.input, gates.activation)


def test_models_without_gates_are_refused(build):
    backbone = build("gpt2")
    with pytest.raises(ValueError, match="must have a gate, but those of 'gpt2' have none"):
        observe_gates(backbone, backbone.encode(PROMPTS), torch.tensor([[0, 0]]))
