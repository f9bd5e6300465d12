"""What the bare model is asked, against loops of single tokens."""

import pytest
import torch

from mega_pl.asking import answers, continued
from mega_pl.backbone import Site
from mega_pl.edits import EditBank, EditRequest
from mega_pl.edits.routing import CentreRouter
from mega_pl.functional import mean_shift, stack

PROMPTS = ["The capital of France is", "Rome is a city in", "He works as a"]


@torch.no_grad()
def greedy(backbone, prompt, first, count):
    """The text of a token and its greedy continuation, one forward pass a token."""
    ids = [*backbone.tokenizer(prompt)["input_ids"], first]
    for _ in range(count):
        token = int(backbone.model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == backbone.tokenizer.eos_token_id:
            break
        ids.append(token)
    return backbone.tokenizer.decode(ids, skip_special_tokens=True)[len(prompt) :]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_answers_are_those_of_a_loop(tiny_backbone, family):
    backbone = tiny_backbone(family)
    wanted = []
    for prompt in PROMPTS:
        chances = backbone.last_logits(backbone.encode([prompt]))[0].softmax(-1)
        found = []
        for first in chances.argsort(descending=True)[:5].tolist():
            if chances[first] >= 0.02:
                text = greedy(backbone, prompt, first, 3)
                text = text.split(".")[0].split("\n")[0].strip()
                found += [text] if text and text not in found else []
        wanted.append(tuple(found))
    got = answers(backbone, PROMPTS, least=0.02, tokens=4, tokens_per_batch=12)
    assert got == wanted
    assert any(got)  # control


def test_no_answer_is_likely_enough(tiny_backbone):
    assert answers(tiny_backbone("gpt2"), ["Rome is a city in"], least=1.0) == [()]


def generated(backbone, prompts, tokens):
    """What transformers' own greedy search writes."""
    texts = []
    for prompt in prompts:
        encoded = backbone.encode([prompt])
        ids = backbone.model.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        whole, before = (backbone.tokenizer.decode(i, skip_special_tokens=True) for i in (ids[0], encoded.input_ids[0]))
        texts.append(whole[len(before) :])
    return texts


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("tokens_per_batch", [1, 24, 4096])
def test_continuations_are_those_of_greedy_search(tiny_backbone, family, tokens_per_batch):
    backbone = tiny_backbone(family)
    forbid_the_end(backbone)
    texts = continued(backbone, PROMPTS, 6, tokens_per_batch=tokens_per_batch)
    assert texts == generated(backbone, PROMPTS, 6)
    assert all(texts)  # control


def forbid_the_end(backbone):
    """Let the end of a text never be the likeliest token, as `min_new_tokens` does."""
    backbone.model.get_output_embeddings().weight.data[backbone.tokenizer.eos_token_id] = 0


def test_a_continuation_begins_with_the_token_that_is_named(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    first = [backbone.tokenizer.encode(word)[0] for word in (" a", " the", " is")]
    wanted = [greedy(backbone, prompt, token, 3) for prompt, token in zip(PROMPTS, first, strict=True)]
    assert continued(backbone, PROMPTS, 4, first=first, tokens_per_batch=12) == wanted


def always_on(backbone):
    """A bank whose one edit moves every prompt far when it is forced."""
    draw = torch.Generator().manual_seed(0)
    source = torch.randn(4, backbone.width, generator=draw)
    maps = mean_shift(source, source + 9 * torch.randn(1, backbone.width, generator=draw)).cast(torch.float32)
    request = EditRequest(edit_id="x", prompt="{} is", subject="Rome", target_new="a", target_true="b")
    router = CentreRouter(torch.zeros(1, backbone.width), torch.zeros(1), layer=0)
    origin = {"name": backbone.name, "revision": None, **backbone.fingerprint}
    return EditBank((request,), {Site(2, "resid_mid"): stack([maps])}, router, 1.0, origin, {})


def hook_count(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_continuation_stays_the_bare_models_while_edits_are_in_force(tiny_backbone, family):
    backbone = tiny_backbone(family)
    bare, bare_logits = continued(backbone, PROMPTS, 6), backbone.last_logits(backbone.encode(PROMPTS))
    with always_on(backbone).apply(backbone, forced=True) as use:
        before = hook_count(backbone.model)
        assert continued(backbone, PROMPTS, 6) == bare
        assert hook_count(backbone.model) == before
        assert use.fired == []  # nothing was routed
        edited = backbone.last_logits(backbone.encode(PROMPTS))
    assert use.fired == ["x", "x", "x"]
    assert not torch.isclose(edited, bare_logits).all(1).any()  # control: the edit acts on what is asked of the model
