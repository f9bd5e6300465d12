"""Every level against the formulas of the method, written out in loops, in float64."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mega_pl.attribution import (
    attention_neuron_importance,
    head_importance,
    layer_importance,
    neuron_importance,
    position_importance,
    query_layers,
    query_neurons,
    top_attention_neurons,
    top_neurons,
)
from mega_pl.backbone import Backbone

FAMILIES = ["gpt2", "llama"]
PROMPT = "The capital of France"
TARGETS = [[17, 300]]
HEADS = 4
assert_equal = partial(torch.testing.assert_close, atol=1e-9, rtol=1e-7)


@pytest.fixture(params=FAMILIES)
def backbone(request, tiny_model, tiny_tokenizer):
    return Backbone(tiny_model(request.param).double(), tiny_tokenizer)


def rotate(vector, cos, sin):
    half = len(vector) // 2
    return vector * cos + torch.cat([-vector[half:], vector[:half]]) * sin


def attention_weights(queries, keys):
    """Of the last token, (T,)."""
    scores = torch.stack([queries[-1] @ key for key in keys]) / len(queries[-1]) ** 0.5
    return scores.exp() / scores.exp().sum()


def full_attention(queries, keys, values):
    """What every token reads, (T, K)."""
    tokens = range(len(queries))
    return torch.stack([attention_weights(queries[: t + 1], keys[: t + 1]) @ values[: t + 1] for t in tokens])


def gpt2_block(block, x):
    size = x.shape[1] // HEADS
    q, k, v = (block.ln_1(x) @ block.attn.c_attn.weight + block.attn.c_attn.bias).chunk(3, -1)
    rows, heads = block.attn.c_proj.weight, []
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        heads.append((q[:, part], k[:, part], v[:, part], rows[part]))
    a = sum(full_attention(q, k, v) @ o for q, k, v, o in heads) + block.attn.c_proj.bias
    r = x + a
    m = torch.nn.functional.gelu(block.ln_2(r) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias, approximate="tanh")
    v = block.mlp.c_proj.weight
    f = m @ v + block.mlp.c_proj.bias
    value_keys = block.attn.c_attn.weight[:, -x.shape[1] :].T * block.ln_1.weight
    mlp_keys = block.mlp.c_fc.weight.T * block.ln_2.weight
    return SimpleNamespace(x=x, a=a, r=r, m=m, v=v, f=f, heads=heads, value_keys=value_keys, mlp_keys=mlp_keys)


def llama_block(block, x, cos, sin):
    attention, size = block.self_attn, block.self_attn.head_dim
    normed = block.input_layernorm(x)
    heads, value_keys = [], []
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        group = h // attention.num_key_value_groups
        of_group = slice(group * size, (group + 1) * size)
        q = [rotate(one, c, s) for one, c, s in zip(normed @ attention.q_proj.weight[part].T, cos, sin, strict=True)]
        k = [
            rotate(one, c, s) for one, c, s in zip(normed @ attention.k_proj.weight[of_group].T, cos, sin, strict=True)
        ]
        v = normed @ attention.v_proj.weight[of_group].T
        heads.append((torch.stack(q), torch.stack(k), v, attention.o_proj.weight[:, part].T))
        value_keys.append(attention.v_proj.weight[of_group] * block.input_layernorm.weight)
    a = sum(full_attention(q, k, v) @ o for q, k, v, o in heads)
    r = x + a
    normed = block.post_attention_layernorm(r)
    m = torch.nn.functional.silu(normed @ block.mlp.gate_proj.weight.T) * (normed @ block.mlp.up_proj.weight.T)
    v = block.mlp.down_proj.weight.T
    mlp_keys = block.mlp.gate_proj.weight * block.post_attention_layernorm.weight
    return SimpleNamespace(
        x=x, a=a, r=r, m=m, v=v, f=m @ v, heads=heads, value_keys=torch.cat(value_keys), mlp_keys=mlp_keys
    )


@torch.no_grad()
def slow(backbone):
    """The blocks of a forward pass, the log-probability LP of the targets and the last stream."""
    model = backbone.model
    ids = torch.tensor(backbone.tokenizer(PROMPT)["input_ids"])
    positions = torch.arange(len(ids))
    if model.config.model_type == "gpt2":
        x = model.transformer.wte.weight[ids] + model.transformer.wpe.weight[positions]
        run, decoder, norm = gpt2_block, model.transformer.h, model.transformer.ln_f
    else:
        x = model.model.embed_tokens.weight[ids]
        cos, sin = (angle[0] for angle in model.model.rotary_emb(x[None], positions[None]))
        run = lambda block, x: llama_block(block, x, cos, sin)  # noqa: E731
        decoder, norm = model.model.layers, model.model.norm
    blocks = []
    for block in decoder:
        blocks.append(run(block, x))
        x = blocks[-1].r + blocks[-1].f
    last = x[-1]

    def lp(vector):
        if model.config.model_type == "gpt2":
            scale = ((last - last.mean()).square().mean() + 1e-5).sqrt()
            vector = vector - vector.mean()
        else:
            scale = (last.square().mean() + 1e-6).sqrt()
        z = model.lm_head.weight @ (norm.weight * vector / scale)
        return torch.stack([z[target] - z.exp().sum().log() for target in TARGETS[0]])

    return blocks, lp, last


def test_layers(backbone):
    blocks, lp, last = slow(backbone)
    result = layer_importance(backbone, [PROMPT], TARGETS)
    for layer, block in enumerate(blocks):
        x, a, r, f = (value[-1] for value in (block.x, block.a, block.r, block.f))
        assert_equal(result.attention[0, :, layer], lp(x + a) - lp(x))
        assert_equal(result.mlp[0, :, layer], lp(r + f) - lp(r))
    assert_equal(result.before[0], lp(blocks[0].x[-1]))
    assert_equal(result.after[0], lp(last))


def test_heads_and_positions(backbone):
    blocks, lp, _ = slow(backbone)
    heads = head_importance(backbone, [PROMPT], TARGETS)
    positions = position_importance(backbone, [PROMPT], TARGETS)
    for layer, block in enumerate(blocks):
        base = block.x[-1]
        for h, (q, k, v, rows) in enumerate(block.heads):
            weights = attention_weights(q, k)
            written = [weight * value @ rows for weight, value in zip(weights, v, strict=True)]
            assert_equal(heads.heads[0, :, layer, h], lp(base + sum(written)) - lp(base))
            assert_equal(positions.weights[0, layer * HEADS + h], weights)
            for t, vector in enumerate(written):
                expected = lp(base + vector) - lp(base)
                assert_equal(positions.positions[0, :, layer * HEADS + h, t], expected)


def test_attention_neurons(backbone):
    blocks, lp, _ = slow(backbone)
    chosen = [(2, 3), (0, 1)]
    result = attention_neuron_importance(backbone, [PROMPT], TARGETS, chosen)
    for n, (layer, h) in enumerate(chosen):
        base, (q, k, v, rows) = blocks[layer].x[-1], blocks[layer].heads[h]
        for t, weight in enumerate(attention_weights(q, k)):
            for j in range(v.shape[1]):
                expected = lp(base + weight * v[t, j] * rows[j]) - lp(base)
                assert_equal(result[0, :, n, t, j], expected)


def test_mlp_neurons(backbone):
    blocks, lp, _ = slow(backbone)
    result = neuron_importance(backbone, [PROMPT], TARGETS, [3, 1])
    for n, layer in enumerate([3, 1]):
        base, m = blocks[layer].r[-1], blocks[layer].m[-1]
        for i, activation in enumerate(m):
            expected = lp(base + activation * blocks[layer].v[i]) - lp(base)
            assert_equal(result.neurons[0, :, n, i], expected)
        assert_equal(result.activations[0, n], m)


def pieces(blocks, layer, token, *, attention_too):
    """The parts of the stream before a module: embedding, attentions and MLPs, with zeros from those that follow."""
    none = torch.zeros_like(blocks[0].x[token])
    until = layer + 1 if attention_too else layer
    attention = [block.a[token] if n < until else none for n, block in enumerate(blocks)]
    mlp = [block.f[token] if n < layer else none for n, block in enumerate(blocks)]
    return torch.stack([blocks[0].x[token], *attention, *mlp])


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_query_layers(backbone, kind):
    blocks, _, _ = slow(backbone)
    find = top_attention_neurons if kind == "attention" else top_neurons
    values: Any = find(backbone, [PROMPT], TARGETS, 30)
    result = query_layers(backbone, [PROMPT], values, guard=0.0)
    for w in range(2):
        expected = torch.zeros(1 + 2 * len(blocks), dtype=torch.double)
        for n in range(30):
            layer = int(values.layer[0, w, n])
            if kind == "attention":
                size = blocks[0].heads[0][3].shape[0]
                key = blocks[layer].value_keys[int(values.head[0, w, n]) * size + int(values.coordinate[0, w, n])]
                parts = pieces(blocks, layer, int(values.position[0, w, n]), attention_too=False)
            else:
                key = blocks[layer].mlp_keys[int(values.neuron[0, w, n])]
                parts = pieces(blocks, layer, -1, attention_too=True)
            expected += (parts @ key) / (parts @ key).sum() * values.importance[0, w, n]
        scores = torch.cat([result.embedding[0, w, None], result.attention[0, w], result.mlp[0, w]])
        torch.testing.assert_close(scores, expected, atol=1e-7, rtol=1e-7)
        assert_equal(scores.sum(), values.importance[0, w].sum())  # shares add up to 1


def test_query_neurons(backbone):
    blocks, _, _ = slow(backbone)
    values = top_attention_neurons(backbone, [PROMPT], TARGETS, 10)
    result = query_neurons(backbone, [PROMPT], values, guard=0.0)
    size = blocks[0].heads[0][3].shape[0]
    for w in range(2):
        expected = torch.zeros_like(result.neurons[0, w])
        for n in range(10):
            layer, token = int(values.layer[0, w, n]), int(values.position[0, w, n])
            key = blocks[layer].value_keys[int(values.head[0, w, n]) * size + int(values.coordinate[0, w, n])]
            for earlier in range(layer):
                for i, m in enumerate(blocks[earlier].m[token]):
                    share = m * (blocks[earlier].v[i] @ key) / (blocks[layer].x[token] @ key)
                    expected[earlier, i] += share * values.importance[0, w, n]
        torch.testing.assert_close(result.neurons[0, w], expected, atol=1e-7, rtol=1e-7)
