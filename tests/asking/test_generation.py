"""Writing on against a slow twin that reads the whole text anew for each token, without padding, mask or cache."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from transformers import AutoTokenizer

from mega_pl.asking import Continuation, Edited, Sampling, continuations
from mega_pl.backbone import Backbone, Site, steer
from mega_pl.edits import EditBank, EditRequest
from mega_pl.edits.routing import CentreRouter
from mega_pl.functional import mean_shift, stack

PROMPTS = ["Rome", "The capital of France is", "He was born in the city of", "The official language of the country is"]
FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma2")


def new_ids(backbone: Backbone, prompt: str, new_tokens: int, maps=None) -> list[int]:
    """Greedy; `maps` move the last token of the prompt in every pass."""
    ids = list(backbone.tokenizer(prompt)["input_ids"])
    start = len(ids)
    moves = {site: (lambda h, m=m: m.apply(h, torch.zeros(1).long(), 1.0)) for site, m in (maps or {}).items()}
    for _ in range(new_tokens):
        with ExitStack() as entered, torch.no_grad():
            if moves:
                entered.enter_context(steer(backbone.model, moves, torch.tensor([start - 1])))
            ids.append(int(backbone.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[start:]


def write_slowly(backbone: Backbone, prompt: str, new_tokens: int, maps=None) -> str:
    ids = list(backbone.tokenizer(prompt)["input_ids"])
    before = backbone.tokenizer.decode(ids)
    return str(backbone.tokenizer.decode(ids + new_ids(backbone, prompt, new_tokens, maps)))[len(before) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_agrees_with_one_token_at_a_time(tiny_backbone, family):
    backbone = tiny_backbone(family)
    expected = [Continuation(write_slowly(backbone, prompt, 6)) for prompt in PROMPTS]
    assert len({len(backbone.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS}) > 2
    for tokens in (1, 40, 4096):
        assert continuations(backbone, PROMPTS, 6, tokens_per_batch=tokens) == expected
    assert continuations(backbone, PROMPTS[::-1], 6) == expected[::-1]


def test_each_prompt_may_have_its_own_length(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    lengths = [1, 7, 2, 7]
    expected = [Continuation(write_slowly(backbone, *pair)) for pair in zip(PROMPTS, lengths, strict=True)]
    assert continuations(backbone, PROMPTS, lengths) == expected
    limit = backbone.model.config.max_position_embeddings
    full = [limit - len(backbone.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    assert len(continuations(backbone, PROMPTS, full)) == len(PROMPTS)


def test_a_prompt_is_read_once_and_continued_once(tiny_backbone):
    backbone, shapes = tiny_backbone("gpt2"), []
    handle = backbone.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    twice = continuations(backbone, PROMPTS + PROMPTS, 3)
    handle.remove()
    assert twice[:4] == twice[4:]
    assert [rows for rows, _ in shapes] == [len(PROMPTS)] * 3
    assert [width for _, width in shapes[1:]] == [1, 1]


def test_the_text_stops_where_the_model_does(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    ids = new_ids(backbone, PROMPTS[3], 6)
    end = next(i for i in range(1, 5) if ids[i] not in ids[:i])
    expected = write_slowly(backbone, PROMPTS[3], end + 1)
    assert expected != write_slowly(backbone, PROMPTS[3], 6)
    backbone.model.generation_config.eos_token_id = ids[end]
    assert continuations(backbone, PROMPTS[3:], 6)[0].text == expected
    assert continuations(backbone, PROMPTS, 6)[3].text == expected  # padding behind the end is no text


def test_what_a_model_ships_with_does_not_change_greedy_answers(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    plain = continuations(backbone, PROMPTS, 6)
    for name, value in {"do_sample": True, "temperature": 3.0, "top_k": 2, "repetition_penalty": 5.0}.items():
        setattr(backbone.model.generation_config, name, value)
    assert continuations(backbone, PROMPTS, 6) == plain


def test_draws_depend_on_their_seeds_alone(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    seeds = ("a", "b", "c", "d")
    together = continuations(backbone, PROMPTS, 6, sampling=Sampling(seeds))
    for prompt, seed, text in zip(PROMPTS, seeds, together, strict=True):
        assert continuations(backbone, [prompt], 6, sampling=Sampling((seed,))) == [text]
    assert together != continuations(backbone, PROMPTS, 6, sampling=Sampling(seeds[::-1]))
    twice = continuations(backbone, PROMPTS[1:2] * 2, 6, sampling=Sampling(("a", "b")))
    assert twice[0] != twice[1]
    assert continuations(backbone, PROMPTS, 6, sampling=Sampling(seeds, top_k=1)) == continuations(backbone, PROMPTS, 6)


class Told(Edited):
    def prompt(self, text: str) -> str:
        return f"Rome is a city in Italy. {text}"


def test_edited_prompts_are_asked_as_the_editor_says(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    expected = [Continuation(write_slowly(backbone, Told().prompt(prompt), 5)) for prompt in PROMPTS]
    assert continuations(backbone, PROMPTS, 5, edited=Told()) == expected


class Routed(Edited):
    def __init__(self, use):
        self.use = use

    @property
    def fired(self):
        return self.use.fired


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_bank_routes_and_moves_the_prompt_and_then_lets_the_model_write(tiny_backbone, family):
    backbone = tiny_backbone(family)
    request = EditRequest(edit_id="x", prompt="{} is", subject="Rome", target_new="a", target_true="b")
    generator = torch.Generator().manual_seed(3)
    source = torch.randn(6, backbone.width, generator=generator)
    target = source + 3 * torch.randn(1, backbone.width, generator=generator)
    maps = {Site(layer, "resid_mid"): stack([mean_shift(source, target)]) for layer in (1, 2)}
    router = CentreRouter(torch.zeros(1, backbone.width), torch.tensor([-1.0]), layer=3)  # silent unless it is forced
    bank = EditBank((request,), maps, router, 1.0, {"name": backbone.name, **backbone.fingerprint}, {})
    with bank.apply(backbone, forced=True) as use:
        written = continuations(backbone, PROMPTS, 6, edited=Routed(use))
    assert written == [Continuation(write_slowly(backbone, prompt, 6, maps), "x") for prompt in PROMPTS]
    bare = continuations(backbone, PROMPTS, 6)
    assert all(a.text != b.text for a, b in zip(written, bare, strict=True))
    with bank.apply(backbone) as use:
        assert continuations(backbone, PROMPTS, 6, edited=Routed(use)) == bare


def test_the_space_before_a_sentencepiece_word_is_kept(shared_tokenizers, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(shared_tokenizers / "llama2")
    backbone = Backbone(tiny_model("llama", {"vocab_size": len(tokenizer)}), tokenizer)
    start = tokenizer("The capital of France is")["input_ids"]
    ids = backbone.answer_ids("The capital of France is", "Paris")
    assert backbone.continuation(start, ids) == " Paris"
    assert tokenizer.decode(ids) == "Paris"  # alone it loses its space
    assert backbone.continuation(start, [*ids, tokenizer.eos_token_id]) == " Paris"


def test_refusals(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    with pytest.raises(ValueError, match="`new_tokens` must be 1 or more, but got 0"):
        continuations(backbone, PROMPTS, [1, 0, 1, 1])
    with pytest.raises(ValueError, match="must be given for each prompt, but got 4 and 1 for 4 prompts"):
        continuations(backbone, PROMPTS, sampling=Sampling(("a",)))
    with pytest.raises(ValueError, match=r"a prompt and its continuation must have at most 64 tokens .* but got 6\d"):
        continuations(backbone, ["Rome"], 64)
    with pytest.raises(ValueError, match="`top_k` must be 1 or more, but got 0"):
        continuations(backbone, ["Rome"], 2, sampling=Sampling(("a",), top_k=0))
    assert continuations(backbone, []) == []


def test_stops_end_a_text_and_change_nothing_before(lab_backbone: Backbone) -> None:
    prompts = ["The capital of France is", "Marie Curie was born in", "Rome"]
    stops = (" the", ".")
    for whole, short in zip(
        continuations(lab_backbone, prompts, 24), continuations(lab_backbone, prompts, 24, stops=stops), strict=True
    ):
        ends = [whole.text.find(stop) + len(stop) for stop in stops if stop in whole.text]
        assert whole.text.startswith(short.text)
        assert short.text[: min(ends)] == whole.text[: min(ends)]
        assert len(short.text) <= min(ends) + 3
