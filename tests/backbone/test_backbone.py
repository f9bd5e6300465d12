import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from mega_pl.backbone import Backbone, Site, load, steer

FAMILIES = ["gpt2", "llama"]
PROMPTS = ["Rome is", "The capital of France is", "He was born in the city of"]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_loading_gives_a_frozen_model(tiny_backbone, tiny_folder, model_type):
    backbone = tiny_backbone(model_type)
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert backbone.tokenizer.pad_token == backbone.tokenizer.eos_token
    assert (backbone.name, backbone.revision) == (model_type, None)
    assert (backbone.n_layers, backbone.width, backbone.dtype) == (4, 32, torch.float32)
    assert backbone.device == torch.device("cpu")
    assert backbone.prepends_bos is False


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float16", torch.float16), ("bfloat16", torch.bfloat16), ("auto", torch.float32)]
)
def test_dtype_is_what_was_asked(tiny_backbone, dtype, expected):
    assert tiny_backbone("gpt2", dtype).dtype == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_encode_equals_single_encodings(tiny_backbone, side):
    backbone = tiny_backbone("gpt2")
    encoded = backbone.encode(PROMPTS, side)
    for row, prompt in enumerate(PROMPTS):
        ids = backbone.tokenizer(prompt)["input_ids"]
        real = encoded.attention_mask[row].bool()
        assert encoded.input_ids[row][real].tolist() == ids
        assert encoded.position_ids[row][real].tolist() == list(range(len(ids)))
        assert int(encoded.last[row]) == int(real.nonzero().max())
    assert bool(encoded.attention_mask[0, 0]) is (side == "right")


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_last_logits_equal_each_prompt_alone(tiny_backbone, tiny_folder, model_type, side):
    backbone = tiny_backbone(model_type)
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder(model_type), dtype=torch.float32).eval()
    together = backbone.last_logits(backbone.encode(PROMPTS, side))
    assert together.dtype == torch.float32
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            alone = reference(**backbone.tokenizer(prompt, return_tensors="pt")).logits[0, -1]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


def test_answer_ids_continue_the_prompt(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    ids = backbone.answer_ids("The capital of France is", "Paris")
    assert backbone.tokenizer.decode(ids) == " Paris"


def test_steering_leaves_every_weight_as_it_was(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    before, fingerprint = backbone.digest(), backbone.fingerprint
    encoded = backbone.encode(PROMPTS)
    with steer(backbone.model, {Site(2, "resid_mid"): lambda h: h + 1}, encoded.last):
        backbone.last_logits(encoded)
    assert backbone.digest() == before
    assert backbone.fingerprint == fingerprint
    backbone.model.transformer.h[2].mlp.c_proj.bias.data[3] += 1e-6  # control: the digest sees the smallest change
    assert backbone.digest() != before


def test_fingerprint_tells_models_and_tokenizers_apart(tiny_model, tiny_tokenizer):
    prints = [Backbone(tiny_model("gpt2", seed=seed), tiny_tokenizer).fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1]
    assert prints[0]["weights"] != prints[2]["weights"]
    assert {key: value for key, value in prints[0].items() if isinstance(value, int) or key == "model_type"} == {
        "model_type": "gpt2",
        "layers": 4,
        "width": 32,
        "heads": 4,
        "vocab": 384,
    }
    tiny_tokenizer.add_tokens(["Paris"])
    assert Backbone(tiny_model("gpt2"), tiny_tokenizer).fingerprint["tokenizer"] != prints[0]["tokenizer"]


def test_fingerprint_survives_a_float16_copy(tiny_backbone):
    assert tiny_backbone("llama", "float16").fingerprint == tiny_backbone("llama").fingerprint
    assert tiny_backbone("llama", "float16").digest() != tiny_backbone("llama").digest()


def test_check_sites_uses_the_model(tiny_backbone):
    tiny_backbone("gpt2").check_sites([Site(3, "resid_mid")])
    with pytest.raises(ValueError, match=r"\[0, 3\] for this model, but got 4"):
        tiny_backbone("gpt2").check_sites([Site(4, "resid_mid")])


def test_unknown_names_are_refused_in_one_line(tmp_path):
    for name in (str(tmp_path / "missing"), str(tmp_path)):
        with pytest.raises(ValueError, match="`model` must be a lab model, a hub name") as error:
            load(name)
        assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ValueError, match=r"`model_type` must be one of bloom, .* but got 'mamba'"):
        load(str(tmp_path))
    with pytest.raises(ValueError, match=r"`dtype` must be one of float32, .* but got 'int8'"):
        load("gpt2", dtype="int8")  # type: ignore[arg-type]


def test_a_tokenizer_that_cannot_pad_or_go_back_is_refused(tiny_model, tiny_tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="must have a pad or an end-of-sequence token"):
        Backbone(tiny_model("gpt2"), bare)
    tiny_tokenizer.backend_tokenizer.decoder = None
    with pytest.raises(ValueError, match=r"must give back 'The capital .* after a round trip, but got"):
        Backbone(tiny_model("gpt2"), tiny_tokenizer)


def test_prompts_that_cannot_be_encoded_are_refused(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    with pytest.raises(TypeError, match="`prompts` must be a sequence of texts"):
        backbone.encode("Rome is")
    with pytest.raises(ValueError, match="`prompts` must hold at least one text"):
        backbone.encode([])
    with pytest.raises(ValueError, match="at least one token, but got ''"):
        backbone.encode(["Rome", ""])
    with pytest.raises(ValueError, match=r"at most 64 tokens for this model, but got \d+"):
        backbone.encode(["Rome is a city " * 30])
    with pytest.raises(ValueError, match="`padding_side` must be left or right, but got 'middle'"):
        backbone.encode(["Rome"], "middle")


def test_answers_that_are_empty_or_merge_into_the_prompt_are_refused(tiny_backbone, tiny_tokenizer):
    backbone = tiny_backbone("gpt2")
    with pytest.raises(ValueError, match="`answer` must not be empty"):
        backbone.answer_ids("Rome is", " ")

    class Merging:
        def __call__(self, text):
            return {"input_ids": [len(text)]}

    backbone.tokenizer = Merging()
    with pytest.raises(ValueError, match="'Rome is' and 'big' merge; end the prompt at a word"):
        backbone.answer_ids("Rome is", "big")


@pytest.mark.parametrize(("name", "bos"), [("gpt2", False), ("llama2", True)])
def test_real_tokenizers(shared_tokenizers, tiny_model, name, bos):
    tokenizer = AutoTokenizer.from_pretrained(shared_tokenizers / name)
    backbone = Backbone(tiny_model("llama", {"vocab_size": len(tokenizer)}), tokenizer)
    assert backbone.prepends_bos is bos
    ids = backbone.answer_ids("The mother tongue of Danielle Darrieux is", "English")
    assert tokenizer.convert_ids_to_tokens(ids) == ["ĠEnglish" if name == "gpt2" else "▁English"]
    encoded = backbone.encode(PROMPTS)
    assert encoded.input_ids.shape == encoded.position_ids.shape
    assert bool((encoded.last == encoded.input_ids.shape[1] - 1).all())
