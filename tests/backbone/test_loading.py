"""Loading: every source, what it is called, and that a caller's own pair is left as it was."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import mega_pl
from mega_pl import EditRequest, fit, load
from mega_pl.backbone import Site, load_outline, loading, steer
from mega_pl.backbone.loading import LAB_MODELS, lab_folder
from mega_pl.fitting import FitConfig, PromptConfig
from mega_pl.fitting.refinement import RefineConfig, refine
from mega_pl.functional import mean_shift

PROMPTS = ["Rome is", "The capital of France is"]
FRANCE, GERMANY = (
    EditRequest(edit_id=name, prompt="The capital of {} is", subject=name, target_new="Rome", target_true="Paris")
    for name in ("France", "Germany")
)


@pytest.mark.parametrize("make", [load, load_outline])
@pytest.mark.parametrize("name", LAB_MODELS)
def test_lab_models_are_known_by_their_names(make, name):
    backbone = make(name)
    assert (backbone.name, backbone.n_layers) == (name, 8)
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert backbone.answer_ids("Rome is in", "Italy") == load(lab_folder(name)).answer_ids("Rome is in", "Italy")


@pytest.mark.parametrize(
    ("told", "folder", "expected"),
    [
        (None, "mine", "mine"),
        ("openai-community/gpt2", "mine", "openai-community/gpt2"),
        ("gpt2", "mine", "gpt2"),
        ("/home/me/models/gpt2", "mine", "mine"),
        ("../gpt2", "mine", "mine"),
        (None, "models--openai-community--gpt2/snapshots/607a30d", "openai-community/gpt2"),
    ],
)
def test_a_folder_has_a_portable_name(tiny_model, tiny_tokenizer, tmp_path, told, folder, expected):
    place = tmp_path / folder
    tiny_model("gpt2").save_pretrained(place)
    tiny_tokenizer.save_pretrained(place)
    if told is not None:
        config = place / "config.json"
        config.write_text(config.read_text().replace("{", f'{{"_name_or_path": "{told}",', 1))
    assert load(place).name == load_outline(str(place)).name == expected


def test_the_folder_that_one_is_in_has_its_name(tiny_folder, monkeypatch):
    folder = tiny_folder("gpt2")
    monkeypatch.chdir(folder)
    assert load(".").name == "gpt2"


@pytest.mark.parametrize(
    ("origin", "expected"), [("", ""), ("openai-community/gpt2", "openai-community/gpt2"), ("/home/me/mine", "mine")]
)
def test_a_pair_is_called_what_its_config_says(tiny_model, tiny_tokenizer, origin, expected):
    model = tiny_model("gpt2")
    model.config._name_or_path = origin
    assert load(model, tiny_tokenizer).name == expected


def state(model, tokenizer):
    """All that a caller can see of a pair."""
    return {
        "digest": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        "config": model.config.to_dict(),
        "special": (tokenizer.pad_token, tokenizer.special_tokens_map, tokenizer.padding_side),
        "vocabulary": tokenizer.get_vocab(),
        "backend": tokenizer.backend_tokenizer.to_str(),
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    torch.testing.assert_close(one.pop("digest"), other.pop("digest"), atol=0, rtol=0)
    assert one == other


@pytest.mark.parametrize("pads", [False, True])
def test_a_pair_is_left_as_it_was(tiny_model, tiny_tokenizer, pads):
    model = tiny_model("gpt2", {"max_position_embeddings": 1024})
    model.transformer.h[0].requires_grad_(False)
    if pads:
        tiny_tokenizer.pad_token = "!"
    before = state(model, tiny_tokenizer)
    lm = load(model, tiny_tokenizer)
    assert lm.model is model
    assert lm.tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    bank = fit(lm, [FRANCE, GERMANY], FitConfig(prompts=PromptConfig(prefixes=1)))
    bare = lm.generate(PROMPTS, max_new_tokens=2)
    with bank.apply(lm):
        lm.generate(PROMPTS, max_new_tokens=2)
    assert lm.generate(PROMPTS, max_new_tokens=2) == bare
    lm.last_logits(lm.encode(PROMPTS, "right"))
    assert_same(state(model, tiny_tokenizer), before)


def test_a_refined_map_leaves_no_gradient(tiny_model, tiny_tokenizer):
    model = tiny_model("gpt2", {"max_position_embeddings": 1024})
    before, site = state(model, tiny_tokenizer), Site(2, "resid_mid")
    maps = mean_shift(torch.randn(4, 32), torch.randn(4, 32)).cast(torch.float32)
    refine(load(model, tiny_tokenizer), FRANCE, (FRANCE.filled,), {site: maps}, 1.0, RefineConfig(steps=1))
    assert_same(state(model, tiny_tokenizer), before)


def test_a_pair_gives_what_a_loaded_model_gives(tiny_folder, tiny_model):
    folder = tiny_folder("llama")
    lm, loaded = load(tiny_model("llama"), AutoTokenizer.from_pretrained(folder)), load(folder)
    torch.testing.assert_close(lm.last_logits(lm.encode(PROMPTS)), loaded.last_logits(loaded.encode(PROMPTS)))
    assert lm.fingerprint == loaded.fingerprint


def test_a_model_in_training_mode_is_refused_and_stays_in_it(tiny_model, tiny_tokenizer):
    model = tiny_model("gpt2").train()
    with pytest.raises(ValueError, match=r"must be in evaluation mode, .*; call `model\.eval\(\)`"):
        load(model, tiny_tokenizer)
    assert model.training
    lm = load(model.eval(), tiny_tokenizer)
    model.train()
    for ask in (lm.encode, lm.generate):
        with pytest.raises(ValueError, match="must be in evaluation mode"):
            ask(PROMPTS)


class PeftModel(torch.nn.Module):
    """Wraps a model as adapters do."""

    def get_base_model(self):
        return None


def test_pairs_that_cannot_be_taken_are_refused(tiny_model, tiny_tokenizer, tiny_folder):
    with pytest.raises(ValueError, match=r"without adapters, but got PeftModel; pass `model\.merge_and_unload\(\)`"):
        load(PeftModel(), tiny_tokenizer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be a name, a path or a model of transformers, but got Linear"):
        load(torch.nn.Linear(1, 1), tiny_tokenizer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`tokenizer` must come with a model of your own, but got none"):
        load(tiny_model("gpt2"))
    with pytest.raises(ValueError, match="`tokenizer` must come with a model of your own, but got the name 'lab-gpt2'"):
        load("lab-gpt2", tiny_tokenizer)
    with pytest.raises(ValueError, match="must come without options of loading"):
        load(tiny_model("gpt2"), tiny_tokenizer, dtype="float16")
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="must have a pad or an end-of-sequence token"):
        load(tiny_model("gpt2"), bare)


@pytest.fixture
def gguf_file(tmp_path, tiny_tokenizer):
    """A LLaMA of one block with random weights and a byte-level tokenizer, as llama.cpp keeps it."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    path, generator = tmp_path / "tiny.Q8_0.gguf", np.random.default_rng(0)
    backend = tiny_tokenizer.backend_tokenizer
    vocabulary = sorted(backend.get_vocab(), key=backend.get_vocab().get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token == "<|endoftext|>" else 1 for token in vocabulary])
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    shapes = {
        "token_embd": (len(vocabulary), 32),
        "output_norm": (32,),
        "output": (len(vocabulary), 32),
        **{f"blk.0.{name}": (32,) for name in ("attn_norm", "ffn_norm")},
        **{"blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32)},
        **{"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)},
    }
    for name, shape in shapes.items():
        weights = generator.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", weights)
        else:
            packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_loads_as_plain_weights_that_can_be_saved(gguf_file, tmp_path):
    lm = load(str(gguf_file))
    assert (lm.name, lm.n_layers, lm.width, lm.dtype) == ("tiny.Q8_0.gguf", 1, 32, torch.float32)
    assert load_outline(gguf_file).name == lm.name
    for holder, name in [(lm.model, "hf_quantizer"), (lm.model, "is_quantized"), (lm.config, "quantization_config")]:
        assert not getattr(holder, name, None)
    lm.model.save_pretrained(tmp_path / "saved")
    lm.tokenizer.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.digest() == lm.digest()
    assert again.generate(PROMPTS, max_new_tokens=3) == lm.generate(PROMPTS, max_new_tokens=3)
    assert lm.tokenizer.decode(lm.answer_ids("The capital of France is", "Paris")) == " Paris"


@pytest.mark.parametrize("absent", [["gguf"], ["accelerate"], ["gguf", "accelerate"]])
def test_a_gguf_file_is_refused_without_the_packages_that_read_it(monkeypatch, absent):
    monkeypatch.setattr(loading, "find_spec", lambda name: None if name in absent else find_spec("os"))
    with pytest.raises(
        ValueError, match=f"there is no {' and no '.join(absent)}; run `pip install {' '.join(absent)}`"
    ):
        load("model.gguf")


def test_the_fingerprint_is_computed_once(tiny_backbone, monkeypatch):
    backbone = tiny_backbone("gpt2")
    first = backbone.fingerprint
    monkeypatch.setattr(type(backbone), "_weights_digest", lambda self: pytest.fail("a second time"))
    assert backbone.fingerprint == first


def test_the_package_exports_the_loader():
    assert mega_pl.load is load
    assert not hasattr(mega_pl, "model_path")


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_generate_gives_the_text_that_follows_verbatim(tiny_backbone, model_type):
    lm = tiny_backbone(model_type)
    texts = [*PROMPTS, "He was born in the city of"]
    together = lm.generate(texts, max_new_tokens=5)
    for text, continuation in zip(texts, together, strict=True):
        ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]
        whole = lm.model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)[0]
        assert text + continuation == lm.tokenizer.decode(whole, skip_special_tokens=True)
        assert lm.generate(text, max_new_tokens=5) == continuation


def test_generate_has_edits_in_force_and_passes_options_on(tiny_backbone):
    lm = tiny_backbone("gpt2")
    bare = lm.generate(PROMPTS, max_new_tokens=5)
    with steer(lm.model, {Site(2, "resid_mid"): lambda values: -values}):
        assert lm.generate(PROMPTS, max_new_tokens=5) != bare
    assert lm.generate(PROMPTS, max_new_tokens=5, num_beams=3) != bare
    torch.manual_seed(0)
    sampled = {lm.generate(PROMPTS[0], max_new_tokens=5, do_sample=True, temperature=5.0) for _ in range(5)}
    assert len(sampled) > 1


def test_spaces_survive_a_tokenizer_that_drops_the_first(tiny_model):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=["</s>"], show_progress=False)
    backend.train_from_iterator(["The capital of France is Paris, and 2 + 2 = 4."] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    paris = tokenizer("Paris,")["input_ids"]
    assert tokenizer.decode(paris) == "Paris,"  # alone it loses its space
    model = tiny_model("llama", {"vocab_size": len(tokenizer)})
    lm = load(model, tokenizer)
    assert lm.continuation(tokenizer("The capital of France is")["input_ids"], [*paris, 0]) == " Paris,"
    texts = ["The capital of", "2 + 2 = 4. The capital of France is"]
    for text, continuation in zip(texts, lm.generate(texts, max_new_tokens=6), strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        whole = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0]
        assert text + continuation == tokenizer.decode(whole, skip_special_tokens=True)


def test_generate_refuses_what_it_cannot_give_back(tiny_backbone):
    lm = tiny_backbone("gpt2")
    for options in ({"num_return_sequences": 2}, {"return_dict_in_generate": True}):
        with pytest.raises(ValueError, match=rf"must get one continuation, but got `{next(iter(options))}`"):
            lm.generate(PROMPTS, **options)
    with pytest.raises(ValueError, match="at least one text"):
        lm.generate([])
    room = 64 - len(lm.tokenizer(PROMPTS[1])["input_ids"])
    assert len(lm.generate(PROMPTS, max_new_tokens=room)) == 2
    with pytest.raises(ValueError, match=f"must be at most {room} after these texts .* but got {room + 1}"):
        lm.generate(PROMPTS, max_new_tokens=room + 1)
