import pytest
import torch

from mega_pl.attribution import head_importance, layer_importance, neuron_importance, position_importance
from mega_pl.backbone import Backbone, Site, record, steer
from mega_pl.edits import EditBank, EditRequest
from mega_pl.edits.routing import CentreRouter, Prompts
from mega_pl.functional import mean_shift, stack

WRITING = ["gpt2", "llama", "qwen3", "gemma"]
EVERY = [*WRITING, "mistral", "qwen2", "gemma2", "gemma3_text", "olmo2", "gpt_neox"]
PROMPTS = ["Rome is", "The capital of France is", "He was born in the city of"]
TARGETS = [[17, 300], [5, 6], [383, 0]]


@pytest.fixture
def build(tiny_model, tiny_tokenizer):
    """A backbone whose norms are not at their initial values."""

    def build_one(model_type, dtype=torch.double, overrides=None):
        model = tiny_model(model_type, overrides)
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        return Backbone(model.to(dtype), tiny_tokenizer)

    return build_one


def push(values):
    return 0.5 * values.flip(-1) + 1.0


@pytest.mark.parametrize("model_type", EVERY)
@pytest.mark.parametrize("parallel", [True, False])
def test_layers_telescope(build, model_type, parallel):
    """after − before is the sum of all layers, exactly."""
    overrides = {"use_parallel_residual": parallel} if model_type == "gpt_neox" else None
    result = layer_importance(build(model_type, overrides=overrides), PROMPTS, TARGETS, padding_side="right")
    assert result.attention.shape == result.mlp.shape == (3, 2, 4)
    total = (result.attention + result.mlp).sum(-1)
    torch.testing.assert_close(total, result.after - result.before, atol=1e-12, rtol=0)


@pytest.mark.parametrize("model_type", EVERY)
def test_with_the_final_bias_the_last_log_probability_is_the_models_own(build, model_type):
    backbone = build(model_type)
    faithful = layer_importance(backbone, PROMPTS, TARGETS, include_final_bias=True, padding_side="right")
    bare = layer_importance(backbone, PROMPTS, TARGETS, padding_side="right")
    torch.testing.assert_close(faithful.after, faithful.output.double(), atol=1e-5, rtol=0)
    assert torch.equal(faithful.after, bare.after) is (model_type not in ("gpt2", "gpt_neox"))
    expected = backbone.last_logits(backbone.encode(PROMPTS, "right"))
    assert torch.equal(bare.predicted, expected.argmax(-1))
    torch.testing.assert_close(bare.output, expected.log_softmax(-1).gather(1, torch.tensor(TARGETS)))


@pytest.mark.parametrize("model_type", WRITING)
@pytest.mark.parametrize("measure", [layer_importance, head_importance, position_importance])
def test_padding_and_batches_do_not_matter(build, model_type, measure):
    backbone = build(model_type, torch.float)

    def scores(prompts, targets, side):
        result = measure(backbone, prompts, targets, padding_side=side)
        if measure is layer_importance:
            return torch.stack([result.attention, result.mlp], -1)
        return result.heads if measure is head_importance else result.positions

    left, right = scores(PROMPTS, TARGETS, "left"), scores(PROMPTS, TARGETS, "right")
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)
    for row in range(3):
        alone = scores(PROMPTS[row : row + 1], TARGETS[row : row + 1], "left")[0]
        batched = left[row]
        if measure is position_importance:
            assert not batched[..., alone.shape[-1] :].any()
            batched = batched[..., : alone.shape[-1]]
        torch.testing.assert_close(batched, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", WRITING)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
def test_half_precision_models_are_scored_in_float32(build, model_type, dtype):
    """As if the recorded stream were read by the same weights in float64."""
    backbone = build(model_type, dtype)
    result = layer_importance(backbone, PROMPTS, TARGETS)
    assert result.attention.dtype == torch.float
    wide = build(model_type)
    wide.model.load_state_dict(backbone.model.state_dict())
    encoded = backbone.encode(PROMPTS)
    site = Site(3, "resid_post")
    with record(backbone.model, [site], encoded.last) as seen:
        backbone.last_logits(encoded)
    norm = wide.model.get_submodule(wide.layout.final_norm)
    if model_type == "gpt2":
        norm.bias.data.zero_()
    exact = wide.model.get_output_embeddings()(norm(seen[site].double())).log_softmax(-1)
    expected = exact.gather(1, torch.tensor(TARGETS)).float()
    torch.testing.assert_close(result.after, expected, atol=1e-5, rtol=1e-5)
    total = (result.attention + result.mlp).sum(-1)
    torch.testing.assert_close(total, result.after - result.before, atol=1e-5, rtol=0)


def test_another_pass_can_lend_its_scale(build):
    backbone = build("gpt2")
    first = layer_importance(backbone, PROMPTS, TARGETS)
    second = layer_importance(backbone, PROMPTS, TARGETS, scale=2 * first.scale)
    assert torch.equal(second.scale, 2 * first.scale)
    assert not torch.isclose(first.after, second.after).any()
    again = layer_importance(backbone, PROMPTS, TARGETS, scale=first.scale)
    assert torch.equal(again.attention, first.attention)


def test_one_target_each_may_be_given_flat(build):
    backbone = build("llama")
    flat = layer_importance(backbone, PROMPTS, [17, 5, 383])
    every = layer_importance(backbone, PROMPTS, TARGETS)
    torch.testing.assert_close(flat.attention, every.attention[:, :1])
    as_tensor = layer_importance(backbone, PROMPTS, torch.tensor([17, 5, 383]))
    assert torch.equal(as_tensor.attention, flat.attention)


@pytest.mark.parametrize("model_type", WRITING)
@pytest.mark.parametrize("kind", ["attn_out", "resid_mid"])
def test_steering_is_a_part_of_its_own(build, model_type, kind):
    backbone = build(model_type)
    bare = head_importance(backbone, PROMPTS, TARGETS)
    assert not bare.steering.any()
    with steer(backbone.model, {Site(2, kind): push}, backbone.encode(PROMPTS).last):
        steered = head_importance(backbone, PROMPTS, TARGETS)
        layers = layer_importance(backbone, PROMPTS, TARGETS)
    torch.testing.assert_close(steered.layers.attention, layers.attention)
    total = (layers.attention + layers.mlp).sum(-1)
    torch.testing.assert_close(total, layers.after - layers.before, atol=1e-12, rtol=0)
    assert steered.steering[..., 2].abs().min() > 1e-4
    assert not steered.steering[..., [0, 1, 3]].any()
    assert not torch.isclose(steered.layers.mlp[..., 2], bare.layers.mlp[..., 2]).any()


def bank_of(backbone, site):
    """One edit, which moves the second prompt's activation at a site and leaves the others alone."""
    encoded = backbone.encode(PROMPTS[1:2])
    centre = Prompts(backbone, encoded.inputs, encoded.last).last_states(0)
    shift = torch.randn(2, backbone.width, generator=torch.Generator().manual_seed(0)) + torch.tensor([[0.0], [9.0]])
    return EditBank(
        requests=(EditRequest(edit_id="a", prompt="{} is", subject="Rome", target_new="a", target_true="b"),),
        maps={site: stack([mean_shift(torch.zeros(2, backbone.width), shift).cast(torch.float)])},
        router=CentreRouter(centre, torch.tensor([1e-2]), layer=0),
        strength=1.0,
        backbone={"name": backbone.name, "revision": None, **backbone.fingerprint},
        settings={},
    )


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_bank_is_seen_though_it_attaches_its_hooks_in_the_pass(build, model_type):
    backbone = build(model_type, torch.float)
    bare = head_importance(backbone, PROMPTS, TARGETS)
    with bank_of(backbone, Site(2, "resid_mid")).apply(backbone) as use:
        edited = head_importance(backbone, PROMPTS, TARGETS)
    assert use.fired == [None, "a", None]
    assert edited.steering[1, :, 2].abs().min() > 1e-3
    assert not edited.steering[[0, 2]].any()
    torch.testing.assert_close(edited.layers.attention[[0, 2]], bare.layers.attention[[0, 2]])
    for one in (bare.layers, edited.layers):
        torch.testing.assert_close(one.before + (one.attention + one.mlp).sum(-1), one.after, atol=1e-5, rtol=0)
    assert not torch.isclose(edited.layers.attention[1, :, 2], bare.layers.attention[1, :, 2]).any()


def test_importances_follow_an_edit_of_weights(build):
    """Only what the edited layer feeds can change, in a pass with the same scale."""
    backbone = build("llama")
    before = head_importance(backbone, PROMPTS, TARGETS)
    backbone.model.model.layers[2].mlp.down_proj.weight.data *= 1.5
    after = layer_importance(backbone, PROMPTS, TARGETS, scale=before.layers.scale)
    changed = ~torch.isclose(after.mlp, before.layers.mlp)
    assert not changed[..., :2].any()
    assert changed[..., 2].all()
    assert torch.equal(after.attention[..., :3], before.layers.attention[..., :3])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([[1, 2]], r"for each of the 3 prompts, but got int64 of shape \(1, 2\)"),
        ([[0.5], [1.0], [2.0]], r"got float32 of shape \(3, 1\)"),
        (torch.zeros(3, 0).long(), r"at least one, .* got int64 of shape \(3, 0\)"),
        ([384, 0, 0], r"`targets` must lie in \[0, 383\] for this model, but got 0 to 384\."),
        ([-1, 0, 0], r"`targets` must lie in \[0, 383\] for this model, but got -1 to 0\."),
    ],
)
def test_targets_that_do_not_fit_are_refused(build, targets, message):
    with pytest.raises(ValueError, match=message):
        layer_importance(build("gpt2"), PROMPTS, targets)


@pytest.mark.parametrize("scale", [torch.ones(2), torch.tensor([1.0, 0.0, 1.0])])
def test_scales_that_do_not_fit_are_refused(build, scale):
    with pytest.raises(ValueError, match="`scale` must hold a positive number for each prompt"):
        layer_importance(build("gpt2"), PROMPTS, TARGETS, scale=scale)


@pytest.mark.parametrize("heads", [[], [(0, 4)], [(4, 0)], [(-1, 0)]])
def test_heads_that_do_not_exist_are_refused(build, heads):
    with pytest.raises(ValueError, match=r"`heads` must name layers in \[0, 3\] and heads in \[0, 3\], but got"):
        position_importance(build("gpt2"), PROMPTS, TARGETS, heads)


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_neox"])
@pytest.mark.parametrize("measure", [head_importance, position_importance])
def test_the_head_level_is_refused_where_it_is_not_defined(build, model_type, measure):
    with pytest.raises(ValueError, match=f"attention first, but got '{model_type}'; use the layer level"):
        measure(build(model_type), PROMPTS, TARGETS)
    with pytest.raises(ValueError, match=r"`layers` must lie in \[0, 3\]"):
        neuron_importance(build("gpt2"), PROMPTS, TARGETS, [4])
