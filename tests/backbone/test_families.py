"""Every family of the table, against streams recomputed from the modules' own code."""

from contextlib import ExitStack

import pytest
import torch

from mega_pl.backbone import SITE_KINDS, Backbone, Site, SiteKind, blocks, layout_of, load, record, steer
from mega_pl.backbone.anatomy import check_components, has_components, read_out
from mega_pl.backbone.layout import _LAYOUTS
from mega_pl.backbone.memory import forward_bytes
from mega_pl.backbone.observation import observe_gates, observe_stream
from mega_pl.editors.weights import Projection
from mega_pl.fitting import default_sites

VARIANTS = {
    "falcon, sequential": ("falcon", {"parallel_attn": False, "alibi": True}),
    "falcon, two norms": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
    "qwen2_moe, some dense": ("qwen2_moe", {"decoder_sparse_step": 2}),
}
FAMILIES = [*_LAYOUTS, *VARIANTS]
PARALLEL = {"cohere", "cohere2", "falcon", "falcon, two norms", "gpt_neox", "gptj", "phi", "stablelm, parallel"}
MIXTURES = {"gpt_oss", "mixtral", "qwen2_moe", "qwen2_moe, some dense", "qwen3_moe"}
BIASED = {"gptj", "phi"}
"""Families whose unembedding adds a bias."""

PROMPTS = ["Rome is", "The capital of France is", "He was born in the city of"]
LAYER = 1


@pytest.fixture
def build(tiny_model, tiny_tokenizer):
    """A backbone whose norms and biases are not at their initial values."""

    def build_one(name):
        model_type, overrides = VARIANTS.get(name, (name, {}))
        model = tiny_model(model_type, overrides)
        generator = torch.Generator().manual_seed(0)
        for path, parameter in model.named_parameters():
            if "norm" in path or "ln_" in path or path.endswith("bias"):
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        return Backbone(model, tiny_tokenizer)

    return build_one


def push(values):
    """An affine map that is neither small nor the identity."""
    return 0.5 * values.flip(-1) + 1.0


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=5e-5, rtol=5e-5)


def tail(backbone, stream):
    """The logits of a stream (B, T, D), by the model's own last modules."""
    model, config = backbone.model, backbone.config
    logits = model.get_output_embeddings()(model.get_submodule(backbone.layout.final_norm)(stream))
    if getattr(config, "final_logit_softcapping", None):
        return (logits / config.final_logit_softcapping).tanh() * config.final_logit_softcapping
    return logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)


@torch.no_grad()
def everywhere(backbone, encoded):
    """The values of all sites at every token, what enters each block, and the logits."""
    sites = [Site(layer, kind) for layer in range(4) for kind in backbone.site_kinds]
    entering = []
    with ExitStack() as stack:
        for block in blocks(backbone.model):
            handle = block.register_forward_pre_hook(
                lambda _, args, kwargs: entering.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
            stack.callback(handle.remove)
        seen = stack.enter_context(record(backbone.model, sites))
        logits = backbone.model(**encoded.inputs, use_cache=False).logits
    return seen, entering, logits


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_stream_gives_the_logits(build, name):
    backbone = build(name)
    seen, _, logits = everywhere(backbone, backbone.encode(PROMPTS))
    with torch.no_grad():
        close(tail(backbone, seen[Site(3, "resid_post")]), logits)
        assert not torch.allclose(tail(backbone, seen[Site(2, "resid_post")]), logits, atol=1e-2)  # control


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stream_is_the_sum_of_what_the_sites_add(build, name):
    """With x what enters a block, mid = x + attn_out and post = mid + mlp_out; in parallel, post = x + both."""
    backbone = build(name)
    encoded = backbone.encode(PROMPTS)
    seen, entering, _ = everywhere(backbone, encoded)
    real = encoded.attention_mask.bool()
    assert ("resid_mid" in backbone.site_kinds) is (name not in PARALLEL)
    for layer in range(4):
        at = {kind: seen[Site(layer, kind)][real] for kind in backbone.site_kinds}
        stream = entering[layer][real] + at["attn_out"]
        if "resid_mid" in at:
            close(at["resid_mid"], stream)
        if "mlp_out" in at:
            close(at["resid_post"], stream + at["mlp_out"])
        else:
            assert name == "opt"
            mlp = stream
            with torch.no_grad():
                for path in ("final_layer_norm", "fc1", "activation_fn", "fc2"):
                    mlp = blocks(backbone.model)[layer].get_submodule(path)(mlp)
            close(at["resid_post"], stream + mlp)
        if layer:
            assert torch.equal(entering[layer], seen[Site(layer - 1, "resid_post")])


@pytest.mark.parametrize("name", FAMILIES)
def test_what_attention_and_mlp_add_is_theirs(build, name):
    """Without a block's attention or MLP the stream lacks exactly what the site says."""
    backbone = build(name)
    encoded = backbone.encode(PROMPTS)
    seen, entering, _ = everywhere(backbone, encoded)
    real = encoded.attention_mask.bool()
    for kind in ("attn_out", "mlp_out"):
        if kind in backbone.site_kinds:
            with steer(backbone.model, {Site(LAYER, kind): torch.zeros_like}):
                without, _, _ = everywhere(backbone, encoded)
            post = without[Site(LAYER, "resid_post")][real]
            if kind == "mlp_out":
                close(post, seen[Site(LAYER, "resid_post")][real] - seen[Site(LAYER, kind)][real])
            elif "resid_mid" in backbone.site_kinds:
                close(without[Site(LAYER, "resid_mid")][real], entering[LAYER][real])
            else:
                close(post, entering[LAYER][real] + seen[Site(LAYER, "mlp_out")][real])


@pytest.mark.parametrize("name", FAMILIES)
def test_steering_gives_the_stream_the_steered_value_in_its_rows_only(build, name):
    backbone = build(name)
    encoded = backbone.encode(PROMPTS)
    row, at = torch.tensor([1]), int(encoded.last[1])
    bare, entering, bare_logits = everywhere(backbone, encoded)
    for kind in backbone.site_kinds:
        site = Site(LAYER, kind)
        with steer(backbone.model, {site: push}, encoded.last, row):
            steered, _, logits = everywhere(backbone, encoded)
        wanted = push(bare[site][1, at][None])[0]
        close(steered[site][1, at], wanted)
        post = steered[Site(LAYER, "resid_post")][1, at]
        if kind == "resid_post":
            close(post, wanted)
        elif kind == "mlp_out":
            close(post, bare[Site(LAYER, "resid_post")][1, at] - bare[site][1, at] + wanted)
        elif kind == "attn_out" and "resid_mid" in backbone.site_kinds:
            close(steered[Site(LAYER, "resid_mid")][1, at], entering[LAYER][1, at] + wanted)
        for later in range(LAYER + 1, 4):
            values = bare[Site(later, "resid_post")]
            assert not torch.allclose(steered[Site(later, "resid_post")][1, at], values[1, at], atol=1e-3)
        assert not torch.allclose(logits[1, at], bare_logits[1, at], atol=1e-3)
        others = torch.tensor([0, 2])
        close(logits[others], bare_logits[others])
        assert torch.equal(logits[others], bare_logits[others]) or name in MIXTURES
        with steer(backbone.model, {site: lambda values: values}):
            assert torch.equal(everywhere(backbone, encoded)[2], bare_logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_batches_and_both_paddings_agree_with_single_prompts(build, name):
    backbone = build(name)
    site = default_sites(backbone)[0]

    def run(prompts, side):
        encoded = backbone.encode(prompts, side)
        with steer(backbone.model, {site: push}, encoded.last):
            return backbone.last_logits(encoded)

    alone = torch.cat([run([prompt], "left") for prompt in PROMPTS])
    for side in ("left", "right"):
        close(run(PROMPTS, side), alone)


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_agrees_with_single_prompts(build, name):
    backbone = build(name)
    together = backbone.generate(PROMPTS, max_new_tokens=4)
    assert together == [backbone.generate(prompt, max_new_tokens=4) for prompt in PROMPTS]


@pytest.mark.parametrize("name", FAMILIES)
def test_default_sites_are_sites_that_there_are(build, name):
    backbone = build(name)
    kind: SiteKind = "resid_post" if name in PARALLEL else "resid_mid"
    assert default_sites(backbone) == [Site(2, kind), Site(3, kind)]
    backbone.check_sites(default_sites(backbone))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_absent_site_is_refused_with_those_that_there_are(build, name):
    backbone = build(name)
    for kind in SITE_KINDS:
        if kind not in backbone.site_kinds:
            with pytest.raises(ValueError, match=f"{', '.join(backbone.site_kinds)}, but got {kind}.2"):
                backbone.check_sites([Site(2, kind)])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layer_level_reads_the_models_own_logits(build, name):
    backbone = build(name)
    stream = observe_stream(backbone, backbone.encode(PROMPTS, "right"))
    if name in BIASED:
        with pytest.raises(ValueError, match="must have an unembedding without a bias"):
            read_out(backbone.model, stream.final[0])
        return
    if "resid_mid" in backbone.site_kinds:
        encoded = backbone.encode(PROMPTS, "right")
        with record(backbone.model, [Site(2, "resid_mid")], encoded.last) as seen:
            backbone.last_logits(encoded)
        close(stream.resid_mid[:, 2], seen[Site(2, "resid_mid")])
    for final, logits in zip(stream.final, stream.logits, strict=True):
        close(read_out(backbone.model, final, include_final_bias=True).logits(final[None])[0], logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_family_lacks_is_refused(build, name):
    backbone = build(name)
    if not has_components(backbone.model):
        with pytest.raises(ValueError, match="use the layer level"):
            check_components(backbone.model)
    for role in ("attn_proj", "value", "mlp_proj"):
        path = getattr(backbone.layout, role)
        if path is None:
            with pytest.raises(ValueError, match=f"one module a block that is its `{role}`"):
                backbone.layout.path(role)
        else:
            blocks(backbone.model)[2].get_submodule(path)
    if backbone.layout.mlp_proj is None:
        with pytest.raises(ValueError, match="mlp_"):
            Projection.of(backbone, 2)
    if len(backbone.layout.mlp_in) != 2:
        with pytest.raises(ValueError, match="must have a gate"):
            observe_gates(backbone, backbone.encode(PROMPTS), torch.tensor([[0, 0]]))
    assert forward_bytes(backbone, 2, 8) > 0


@pytest.mark.parametrize(
    ("model_type", "overrides", "rule"),
    [
        ("opt", {"do_layer_norm_before": False}, "must have its norms before attention and MLP"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "must add to the stream itself"),
        ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}, "in one product"),
    ],
)
def test_variants_that_are_not_known_are_refused(tiny_model, tiny_tokenizer, model_type, overrides, rule):
    with pytest.raises(ValueError, match=rule):
        load(tiny_model(model_type, overrides), tiny_tokenizer)


def test_a_model_that_reads_images_is_known_by_its_decoder(build):
    backbone = build("gemma3")
    assert (backbone.width, backbone.n_layers, backbone.config.model_type) == (32, 4, "gemma3_text")
    assert backbone.fingerprint["model_type"] == "gemma3"
    assert backbone.fingerprint["heads"] == 4
    assert layout_of(backbone.model).blocks == "model.language_model.layers"
    with pytest.raises(ValueError, match=r"at most 64 tokens for this model, but got \d+"):
        backbone.encode(["Rome is a city " * 30])
