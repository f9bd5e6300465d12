import pytest
import torch

from mega_pl.backbone import SITE_KINDS, Site, blocks, check_sites, layout_of, record

SEQUENTIAL = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2"]
IDS = torch.tensor([[5, 9, 2, 17, 31], [8, 8, 40, 3, 1]])


@pytest.mark.parametrize("model_type", [*SEQUENTIAL, "gpt_neox"])
def test_every_named_module_exists(tiny_model, model_type):
    model = tiny_model(model_type)
    layout = layout_of(model)
    assert len(blocks(model)) == 4
    model.get_submodule(layout.final_norm)
    for block in blocks(model):
        for name in (layout.entry, layout.attention, layout.attn_out, layout.path("mlp_out")):
            block.get_submodule(name)


@pytest.mark.parametrize("model_type", SEQUENTIAL)
def test_the_stream_is_the_sum_of_what_the_sites_add(tiny_model, model_type):
    """The defining equations: mid = pre + attn_out, post = mid + mlp_out, where pre is the post of the block before."""
    model = tiny_model(model_type)
    with record(model, [Site(layer, kind) for layer in range(4) for kind in SITE_KINDS]) as seen, torch.no_grad():
        hidden = model(IDS, output_hidden_states=True).hidden_states
    for layer in range(4):
        attn, mid, mlp, post = (seen[Site(layer, kind)] for kind in SITE_KINDS)
        torch.testing.assert_close(mid, hidden[layer] + attn)
        torch.testing.assert_close(post, mid + mlp)
        if layer < 3:  # the last entry has been through the final norm
            assert torch.equal(post, hidden[layer + 1])


@pytest.mark.parametrize("parallel", [True, False])
def test_gpt_neox_is_parallel_as_its_config_says(tiny_model, parallel):
    model = tiny_model("gpt_neox", {"use_parallel_residual": parallel})
    assert layout_of(model).parallel is parallel
    sites = [Site(2, "attn_out"), Site(2, "mlp_out"), Site(2, "resid_post"), Site(1, "resid_post")]
    with record(model, sites) as seen, torch.no_grad():
        model(IDS)
    attn, mlp, post, pre = (seen[site] for site in sites)
    torch.testing.assert_close(post, pre + attn + mlp)


def test_parallel_blocks_have_no_resid_mid(tiny_model):
    with pytest.raises(ValueError, match=r"that this model has, attn_out, mlp_out, resid_post, but got resid_mid\.1"):
        check_sites(tiny_model("gpt_neox", {"use_parallel_residual": True}), [Site(1, "resid_mid")])
    check_sites(tiny_model("gpt_neox", {"use_parallel_residual": False}), [Site(1, "resid_mid")])


def test_layers_out_of_range_are_refused(tiny_model):
    with pytest.raises(ValueError, match=r"`layers` must lie in \[0, 3\] for this model, but got 12\."):
        check_sites(tiny_model("llama"), [Site(3, "mlp_out"), Site(12, "mlp_out")])


def test_unknown_architectures_are_refused(tiny_model):
    model = tiny_model("gpt2")
    model.config.model_type = "mamba"
    with pytest.raises(ValueError, match=r"`model_type` must be one of bloom, .* but got 'mamba'"):
        layout_of(model)
