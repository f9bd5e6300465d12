from contextlib import ExitStack

import pytest
import torch
from torch import nn

from mega_pl.backbone import SITE_KINDS, Site, SiteKind, blocks, record, steer
from mega_pl.backbone.layout import layout_of

FAMILIES = ["gpt2", "llama"]
LAYER = 1
IDS = torch.tensor([[5, 9, 2, 17, 31, 6], [8, 8, 40, 3, 1, 77], [12, 60, 7, 7, 90, 4]])
POSITIONS = torch.tensor([5, 2, 4])
PROMPTS = ["Rome is", "The capital of France is", "He was born in the city of"]


def push(values):
    """An affine map that is neither small nor the identity."""
    return 0.5 * values.flip(-1) + 3.0


def keep(values):
    return values


def keeping(got):
    """The identity, which keeps what it gets."""

    def keep_in_list(values):
        got.append(values)
        return values

    return keep_in_list


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


class Spy:
    """Keeps the output of a module and the first input of another, with hooks of its own."""

    def __init__(self, stack, source, reader):
        stack.callback(source.register_forward_hook(self.on_output).remove)
        stack.callback(reader.register_forward_pre_hook(self.on_input).remove)

    def on_output(self, module, args, output):
        self.output = output if isinstance(output, torch.Tensor) else output[0]

    def on_input(self, module, args):
        self.read = args[0]


MLP_NORM = {"gpt2": "ln_2", "llama": "post_attention_layernorm"}


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_record_equals_what_the_modules_hand_on(tiny_model, model_type, attention):
    model = tiny_model(model_type)
    model.set_attn_implementation(attention)
    block, layout = blocks(model)[LAYER], layout_of(model)
    with ExitStack() as stack:
        attn = Spy(stack, block.get_submodule(layout.attention), block.get_submodule(MLP_NORM[model_type]))
        mlp = Spy(
            stack, layout.source(block, Site(LAYER, "mlp_out")), blocks(model)[LAYER + 1].get_submodule(layout.entry)
        )
        every = stack.enter_context(record(model, [Site(LAYER, kind) for kind in SITE_KINDS]))
        some = stack.enter_context(record(model, [Site(LAYER, kind) for kind in SITE_KINDS], POSITIONS))
        logits(model)
    expected: dict[SiteKind, torch.Tensor]
    expected = {"attn_out": attn.output, "resid_mid": attn.read, "mlp_out": mlp.output, "resid_post": mlp.read}
    for kind, value in expected.items():
        assert torch.equal(every[Site(LAYER, kind)], value)
        for row, position in enumerate(POSITIONS):
            assert torch.equal(some[Site(LAYER, kind)][row], value[row, position])


def test_record_equals_the_models_own_hidden_states_and_is_detached(tiny_model):
    model = tiny_model("llama")
    with record(model, [Site(2, "resid_post")]) as seen:
        hidden = model(IDS, output_hidden_states=True).hidden_states
    assert torch.equal(seen[Site(2, "resid_post")], hidden[3])
    assert hidden[3].requires_grad
    assert not seen[Site(2, "resid_post")].requires_grad


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("kind", SITE_KINDS)
def test_the_stream_really_gets_the_steered_value(tiny_model, model_type, kind):
    """What is read downstream, by modules that no edit touches, is f of the bare value."""
    model = tiny_model(model_type)
    block, layout, site = blocks(model)[LAYER], layout_of(model), Site(LAYER, kind)
    with ExitStack() as stack:
        attn = Spy(stack, block.get_submodule(layout.attention), block.get_submodule(MLP_NORM[model_type]))
        mlp = Spy(
            stack, layout.source(block, Site(LAYER, "mlp_out")), blocks(model)[LAYER + 1].get_submodule(layout.entry)
        )
        bare = stack.enter_context(record(model, [site]))
        logits(model)
        entering = attn.read - attn.output
        wanted, before = push(bare[site].clone()), {"mid": attn.read, "mlp": mlp.output}
        with steer(model, {site: push}):
            logits(model)
    mid = {"attn_out": entering + wanted, "resid_mid": wanted}.get(kind, before["mid"])
    torch.testing.assert_close(attn.read, mid, atol=1e-5, rtol=1e-5)
    if kind in ("attn_out", "resid_mid"):
        stream = mid + block.get_submodule(layout.path("mlp_out"))(block.get_submodule(MLP_NORM[model_type])(mid))
    else:
        stream = wanted if kind == "resid_post" else before["mid"] + wanted
    torch.testing.assert_close(mlp.read, stream, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("kind", SITE_KINDS)
def test_only_the_named_rows_and_tokens_change(tiny_model, model_type, kind):
    model = tiny_model(model_type)
    bare, site = logits(model), Site(LAYER, kind)
    with steer(model, {site: push}, POSITIONS, torch.tensor([1])):
        steered = logits(model)
    assert torch.equal(steered[[0, 2]], bare[[0, 2]])
    assert torch.equal(steered[1, :2], bare[1, :2])  # before the position nothing can change
    assert not torch.isclose(steered[1, 2], bare[1, 2]).all()
    assert not torch.isclose(steered[1, 5], bare[1, 5]).all()  # attention carries the change to later tokens


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_without_rows_or_with_the_identity_nothing_changes(tiny_model, kind):
    model = tiny_model("gpt2")
    bare, count = logits(model), hook_count(model)
    with steer(model, {Site(LAYER, kind): push}, POSITIONS, torch.tensor([], dtype=torch.long)):
        assert hook_count(model) == count
        assert torch.equal(logits(model), bare)
    with steer(model, {Site(LAYER, kind): keep}, POSITIONS):
        assert hook_count(model) > count
        assert torch.equal(logits(model), bare)


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_edits_write_out_of_place(tiny_model, kind):
    """What a module computed stays as it was, for whoever kept it."""
    model, site = tiny_model("gpt2"), Site(LAYER, kind)
    source = layout_of(model).source(blocks(model)[LAYER], site)
    with ExitStack() as stack:
        spy = Spy(stack, source, source)
        logits(model)
        bare = spy.output.clone()
        with steer(model, {site: push}, POSITIONS):
            logits(model)
    assert torch.equal(spy.output, bare)


def test_rows_come_in_the_order_given(tiny_model):
    model, site = tiny_model("llama"), Site(2, "mlp_out")
    got: list[torch.Tensor] = []
    with (
        record(model, [site], POSITIONS) as seen,
        steer(model, {site: keeping(got)}, POSITIONS, torch.tensor([2, 0])),
    ):
        logits(model)
    assert torch.equal(got[0], seen[site][[2, 0]])


def test_every_token_comes_row_by_row(tiny_model):
    model, site = tiny_model("gpt2"), Site(2, "resid_mid")
    got: list[torch.Tensor] = []
    with record(model, [site]) as seen, steer(model, {site: keeping(got)}, None, torch.tensor([2, 0])):
        logits(model)
    assert torch.equal(got[0], torch.cat([seen[site][2], seen[site][0]]))


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("kind", SITE_KINDS)
def test_nested_edits_compose_and_a_recording_sees_those_entered_before(tiny_model, model_type, kind):
    model, site = tiny_model(model_type), Site(LAYER, kind)
    with (
        record(model, [site], POSITIONS) as bare,
        steer(model, {site: push}, POSITIONS),
        record(model, [site], POSITIONS) as once,
        steer(model, {site: torch.tanh}, POSITIONS),
        record(model, [site], POSITIONS) as twice,
    ):
        logits(model)
    torch.testing.assert_close(once[site], push(bare[site]))
    torch.testing.assert_close(twice[site], push(bare[site]).tanh(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_padded_batches_agree_with_single_prompts(tiny_backbone, model_type):
    backbone = tiny_backbone(model_type)
    site, later = Site(LAYER, "resid_mid"), Site(3, "resid_post")

    def run(prompts, side):
        encoded = backbone.encode(prompts, side)
        bare = backbone.last_logits(encoded)
        with steer(backbone.model, {site: push}, encoded.last), record(backbone.model, [later], encoded.last) as seen:
            return bare, backbone.last_logits(encoded), seen[later]

    singles = [torch.cat(parts) for parts in zip(*(run([prompt], "left") for prompt in PROMPTS), strict=True)]
    assert (singles[0] - singles[1]).abs().max() > 1e-2
    for side in ("left", "right"):
        for batched, single in zip(run(PROMPTS, side), singles, strict=True):
            torch.testing.assert_close(batched, single, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("beams", [1, 2])
def test_cached_generation_agrees_with_generation_without_a_cache(tiny_backbone, model_type, beams):
    """The cache keeps the steered keys and values, so steering the prompt once is steering it at every step."""
    backbone = tiny_backbone(model_type)
    encoded = backbone.encode(PROMPTS)
    positions = encoded.last.repeat_interleave(beams)

    def generate(use_cache):
        return backbone.model.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            max_new_tokens=5,
            num_beams=beams,
            do_sample=False,
            use_cache=use_cache,
            pad_token_id=0,
        )

    edits, count = {Site(LAYER, "resid_mid"): push}, hook_count(backbone.model)
    bare = generate(True)
    with steer(backbone.model, edits, positions):
        uncached = generate(False)
        assert not torch.equal(uncached, bare)
    assert hook_count(backbone.model) == count


def test_a_decoding_step_under_armed_hooks_is_refused(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    encoded = backbone.encode(PROMPTS)
    with (
        steer(backbone.model, {Site(0, "mlp_out"): push}, encoded.last),
        pytest.raises(ValueError, match="prefill only"),
    ):
        backbone.model.generate(**encoded.inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_half_precision_stays_half_and_close(tiny_backbone, kind):
    half, site = tiny_backbone("llama", "bfloat16"), Site(LAYER, kind)
    dtypes = []

    def in_float(values):
        dtypes.append(values.dtype)
        return push(values.float())

    with (
        record(half.model, [site], POSITIONS) as bare,
        steer(half.model, {site: in_float}, POSITIONS),
        record(half.model, [site], POSITIONS) as steered,
    ):
        logits(half.model)
    assert dtypes == [torch.bfloat16]
    assert steered[site].dtype == torch.bfloat16
    torch.testing.assert_close(steered[site].float(), push(bare[site].float()), atol=0.02, rtol=2**-7)
    plain = logits(half.model)
    with steer(half.model, {site: keep}, POSITIONS):
        assert torch.equal(logits(half.model), plain)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")  # its name before 5.23
def test_gradients_reach_an_edit_also_under_activation_checkpointing(tiny_model):
    """Checkpointing runs a block's modules twice, and must give the same gradient."""
    model = tiny_model("llama").requires_grad_(False)
    shift = torch.ones(32, requires_grad=True)

    def nudge(values):
        return values + shift

    def gradient():
        with steer(model, {Site(1, "resid_mid"): nudge, Site(2, "resid_mid"): push}, POSITIONS):
            both = model(IDS, use_cache=False).logits, model(IDS.flip(0), use_cache=False).logits
            return torch.autograd.grad(both[0].square().mean() + both[1].mean(), shift)[0]

    plain = gradient()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()  # checkpointing is on in training only, and this model has no dropout
    assert plain.abs().max() > 0
    torch.testing.assert_close(gradient(), plain)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_hook_survives_an_exception(tiny_model, model_type):
    model = tiny_model(model_type)
    bare, count = logits(model), hook_count(model)
    sites = [Site(layer, kind) for layer in range(4) for kind in SITE_KINDS]

    def fail(values):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"), record(model, sites), steer(model, dict.fromkeys(sites, fail)):
        logits(model)
    with pytest.raises(KeyError, match="planted"), steer(model, dict.fromkeys(sites, push)):
        raise KeyError("planted")
    assert hook_count(model) == count
    assert torch.equal(logits(model), bare)


def test_the_same_edit_can_be_entered_again(tiny_model):
    model, edits = tiny_model("gpt2"), {Site(LAYER, "resid_mid"): push}
    results = []
    for _ in range(2):
        with steer(model, edits, POSITIONS):
            results += [logits(model), logits(model)]
    assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize("kind", SITE_KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_names_site_and_rows(tiny_model, kind, bad):
    def spoil(values):
        return torch.where(torch.tensor([[False], [True]]), bad, values)

    model, site = tiny_model("gpt2"), Site(LAYER, kind)
    message = rf"{kind}\.1 must give finite values, but rows \[2\]"
    with steer(model, {site: spoil}, POSITIONS, torch.tensor([0, 2])), pytest.raises(FloatingPointError, match=message):
        logits(model)


@pytest.mark.parametrize(
    ("positions", "rows", "message"),
    [
        (torch.tensor([1, 2]), None, "`positions` must hold one index for each of the 3 rows of the batch, but got 2"),
        (torch.tensor([1, 2, 6]), None, r"`positions` must lie in \[0, 5\] for this forward pass, but got 6"),
        (torch.tensor([1, 2, -1]), None, "`positions` must be 0 or more, but got -1"),
        (torch.tensor([1.0, 2.0, 3.0]), None, r"`positions` must be a long tensor .* but got float32 of shape \(3,\)"),
        (POSITIONS, torch.tensor([3]), r"`rows` must lie in \[0, 2\] for this batch, but got 3"),
        (POSITIONS, torch.tensor([1, 1]), r"`rows` must not repeat a row, but got \[1, 1\]"),
        (POSITIONS, torch.tensor([True, False, True]), "`rows` must be a long tensor .* but got bool"),
    ],
)
def test_rows_and_positions_that_do_not_fit_are_refused(tiny_model, positions, rows, message):
    model = tiny_model("gpt2")
    with pytest.raises(ValueError, match=message), steer(model, {Site(0, "attn_out"): push}, positions, rows):
        logits(model)


def test_an_edit_that_changes_the_shape_is_refused(tiny_model):
    model = tiny_model("gpt2")
    message = r"keep the shape \(3, 32\) at attn_out\.0, but returned \(1, 32\)"
    with steer(model, {Site(0, "attn_out"): lambda h: h[:1]}, POSITIONS), pytest.raises(ValueError, match=message):
        logits(model)


def test_sites_the_model_lacks_are_refused_before_anything_is_hooked(tiny_model):
    model = tiny_model("gpt2")
    count = hook_count(model)
    for context in (record(model, [Site(4, "mlp_out")]), steer(model, {Site(4, "mlp_out"): push})):
        with pytest.raises(ValueError, match=r"\[0, 3\] for this model, but got 4"), context:
            pass
    assert hook_count(model) == count
