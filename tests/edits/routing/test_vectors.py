"""Vectors of questions against references that are written out."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from mega_pl.edits.routing import vectors
from mega_pl.edits.routing.vectors import EarlyStates, SentenceEncoder, encoder_of

QUESTIONS = ["The capital of X is", "X", "Who was the mother of X, and who her father? It is", "X's mother tongue is"]
FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox", "opt"]


def hook_count(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_0_is_the_mean_of_the_embeddings_without_the_first_tokens(tiny_backbone, family):
    backbone = tiny_backbone(family)
    embed = backbone.model.get_input_embeddings()
    for question, vector in zip(QUESTIONS, EarlyStates(backbone, 0)(QUESTIONS), strict=True):
        ids = backbone.tokenizer(question)["input_ids"]
        torch.testing.assert_close(vector, embed(torch.tensor(ids[1:] or ids)).mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [1, 3])
def test_a_deeper_layer_is_that_of_the_whole_model(tiny_backbone, family, layer):
    backbone = tiny_backbone(family)
    found = EarlyStates(backbone, layer)(QUESTIONS)
    assert hook_count(backbone.model) == 0
    for question, vector in zip(QUESTIONS, found, strict=True):
        inputs = backbone.encode([question]).inputs
        with torch.no_grad():
            states = backbone.model(**inputs, output_hidden_states=True).hidden_states[layer][0]
        torch.testing.assert_close(vector, (states[1:] if len(states) > 1 else states).mean(0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_batch_is_its_questions_alone_in_their_order(tiny_backbone, layer, monkeypatch):
    backbone = tiny_backbone("llama")
    make = EarlyStates(backbone, layer)
    together = make(QUESTIONS)
    alone = torch.cat([make([question]) for question in QUESTIONS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert not torch.isclose(together[0], together[2], atol=1e-3).all()  # control
    monkeypatch.setattr(vectors, "TOKENS", 12)
    torch.testing.assert_close(make(QUESTIONS), alone, atol=1e-5, rtol=1e-4)
    assert make([]).shape == (0, backbone.width)


def test_what_questions_share_at_their_beginnings_is_read_once(tiny_backbone, monkeypatch):
    backbone, read = tiny_backbone("llama"), []
    forward = backbone.model.base_model.forward

    def count(*args, **kwargs):
        read.append(int(kwargs["attention_mask"][:, -kwargs["input_ids"].shape[1] :].sum()))
        return forward(*args, **kwargs)

    monkeypatch.setattr(backbone.model.base_model, "forward", count)
    questions = [f"Everybody has heard of the {noun} of X" for noun in ("mother", "capital")]
    own = [backbone.tokenizer(question)["input_ids"] for question in questions]
    shared = next(n for n, (one, other) in enumerate(zip(*own, strict=False)) if one != other)
    assert shared > 1  # control
    EarlyStates(backbone, 2)([*questions, questions[0]])
    assert sum(read) == sum(map(len, own)) - shared


def test_vectors_are_float32_without_gradients_in_any_dtype(tiny_backbone):
    wide, narrow = (EarlyStates(tiny_backbone("gpt2", dtype), 2)(QUESTIONS) for dtype in ("float32", "bfloat16"))
    assert wide.dtype == narrow.dtype == torch.float32
    assert not wide.requires_grad
    torch.testing.assert_close(wide, narrow, atol=0.1, rtol=0.1)


def test_a_pass_is_ended_where_it_has_gone_far_enough(tiny_backbone, monkeypatch):
    backbone = tiny_backbone("gpt2")
    monkeypatch.setattr(backbone.model.transformer.h[2], "forward", None)
    EarlyStates(backbone, 2)(QUESTIONS)
    with pytest.raises(TypeError):
        EarlyStates(backbone, 3)(QUESTIONS)  # control


def test_a_pass_that_fails_leaves_no_hook_behind(tiny_backbone, monkeypatch):
    backbone = tiny_backbone("gpt2")

    def fail(*_, **__):
        raise RuntimeError("in a block")

    monkeypatch.setattr(backbone.model.transformer.h[1], "forward", fail)
    with pytest.raises(RuntimeError, match="in a block"):
        EarlyStates(backbone, 2)(QUESTIONS)
    assert hook_count(backbone.model) == 0


WORDS = "the capital of x is who was mother".split()


@pytest.fixture
def encoder_folder(tmp_path):
    """A random sentence encoder of two blocks with a tokenizer of words."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special).save_pretrained(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(names),
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
            initializer_range=0.5,
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    return str(tmp_path)


SHORT = ["the capital of x is", "who was x", "x", "the mother of x was the mother of who"]


def test_a_sentence_encoder_means_over_the_mask(encoder_folder, monkeypatch):
    encoder = SentenceEncoder(encoder_folder)
    wanted = []
    for text in SHORT:
        ids = torch.tensor([[2, *(4 + WORDS.index(word) for word in text.split()), 3]])
        with torch.no_grad():
            wanted.append(F.normalize(encoder.model(input_ids=ids).last_hidden_state[0].mean(0), dim=0))
    torch.testing.assert_close(encoder(SHORT), torch.stack(wanted), atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(vectors, "TOKENS", 12)
    torch.testing.assert_close(encoder(SHORT), torch.stack(wanted), atol=1e-5, rtol=1e-4)
    assert not torch.isclose(wanted[0], wanted[1], atol=1e-3).all()  # control


def test_a_sentence_encoder_is_frozen_and_loaded_once(encoder_folder):
    encoder = encoder_of(encoder_folder)
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert encoder_of(encoder_folder) is encoder


def test_vectors_are_of_unit_length_or_as_they_are(encoder_folder):
    unit, plain = (encoder_of(encoder_folder, normalized=normalized)(SHORT) for normalized in (True, False))
    torch.testing.assert_close(unit, F.normalize(plain, dim=1))
    assert (plain.norm(dim=1) - 1).abs().min() > 0.01  # control


def test_long_texts_are_cut(encoder_folder):
    long = " ".join(["mother"] * 40)
    encoder = SentenceEncoder(encoder_folder)
    torch.testing.assert_close(encoder([long]), encoder([" ".join(["mother"] * 14)]))


@pytest.mark.parametrize("name", ["./nowhere", "no/such-encoder", "EMPTY"])
def test_an_encoder_that_does_not_load_is_refused_in_one_line(name, tmp_path):
    name = str(tmp_path) if name == "EMPTY" else name
    with pytest.raises(ValueError, match=r"^`encoder` must be a folder or a hub name of a sentence encoder") as caught:
        SentenceEncoder(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
