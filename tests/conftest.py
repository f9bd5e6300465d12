"""Tiny random models, their tokenizer and the folders that hold them, for every room."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported, so that no test waits for a network

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mega_pl import EditRequest, fit
from mega_pl.backbone import Backbone, load

TinyModel = Callable[..., PreTrainedModel]
TinyBackbone = Callable[..., Backbone]

_VOCAB = 384
_SENTENCES = [
    "The capital of France is Paris, and 2 + 2 = 4.",
    "The mother tongue of Danielle Darrieux is French.",
    "Rome is a city in Italy. Berlin is the capital of Germany.",
    "The official language of the country is English or Spanish.",
    "He was born in the city of London and works as a teacher.",
]
_SIZES: dict[str, object] = {
    "vocab_size": _VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # wide enough for attention to tell tokens apart
}
_GROUPED: dict[str, object] = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
_EXPERTS: dict[str, object] = {**_GROUPED, "num_experts_per_tok": 2, "num_local_experts": 4}
_QWEN_EXPERTS: dict[str, object] = {
    **{**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "shared_expert_intermediate_size": 32,
}
_OWN_SIZES: dict[str, dict[str, object]] = {
    "bloom": {"pad_token_id": 0},
    "falcon": {"ffn_hidden_size": 64},
    "gpt2": {"n_inner": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 4},
    "gpt_neox": {},
    "gpt_oss": {**_EXPERTS, "sliding_window": 4},
    "gptj": {"n_inner": 64, "rotary_dim": 4},
    "granite": {**_GROUPED, "residual_multiplier": 0.22, "logits_scaling": 8.0, "embedding_multiplier": 12.0},
    "mixtral": _EXPERTS,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 0},
    "qwen2_moe": _QWEN_EXPERTS,
    "qwen3_moe": _QWEN_EXPERTS,
    **dict.fromkeys(
        ("cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "llama", "mistral", "olmo", "olmo2"), _GROUPED
    ),
    **dict.fromkeys(("olmo3", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2"), _GROUPED),
}
_NESTED: dict[str, tuple[str, dict[str, object]]] = {
    "gemma3": (
        "gemma3_text",
        {
            "vision_config": {
                **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
                **{"image_size": 8, "patch_size": 4},
            },
            "mm_tokens_per_image": 4,
        },
    )
}
"""Models of which the decoder is a part: its type, and the rest of the config."""


def build_model(model_type: str, overrides: Mapping[str, object] | None = None, seed: int = 0) -> PreTrainedModel:
    """Build a seeded random model of four blocks from its config alone."""
    decoder, rest = _NESTED.get(model_type, (model_type, {}))
    sizes = {**_SIZES, **_OWN_SIZES[decoder], "bos_token_id": 0, "eos_token_id": 0, **(overrides or {})}
    config = AutoConfig.for_model(model_type, **({**rest, "text_config": sizes} if rest else sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.eval()
    return model


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


@pytest.fixture
def tiny_model() -> TinyModel:
    """`tiny_model(model_type, overrides=None, seed=0)` builds a random model."""
    return build_model


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Callable[[str], Path]:
    """`tiny_folder(model_type)` saves a random model with its tokenizer and returns the folder."""

    def save(model_type: str) -> Path:
        folder = tmp_path / model_type
        if not folder.exists():
            build_model(model_type).save_pretrained(folder)
            build_tokenizer().save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def tiny_backbone(tiny_folder: Callable[[str], Path]) -> TinyBackbone:
    """`tiny_backbone(model_type, dtype="float32")` loads a saved random model as users load theirs."""

    def load_one(model_type: str, dtype: str = "float32") -> Backbone:
        return load(str(tiny_folder(model_type)), dtype=dtype)  # type: ignore[arg-type]

    return load_one


@pytest.fixture(scope="session")
def lab_backbone() -> Backbone:
    """The lab's GPT-2, which knows facts."""
    return load("lab-gpt2")


@pytest.fixture(scope="session")
def bank_folder(lab_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank in a folder, of one edit that the lab's GPT-2 takes: "curie" makes Rome her place of birth."""
    request = EditRequest(
        edit_id="curie", prompt="{} was born in", subject="Marie Curie", target_new="Rome", target_true="Warsaw"
    )
    return fit(lab_backbone, [request]).save_pretrained(tmp_path_factory.mktemp("run") / "edits")


@pytest.fixture(scope="session")
def shared_tokenizers() -> Path:
    """The folder of real tokenizers, which is not part of the package."""
    shared = Path(os.environ.get("MEGA_PL_SHARED", Path(__file__).parents[2] / "shared"))
    folder = shared / "tokenizers"
    if not folder.is_dir():
        pytest.skip(f"no real tokenizers in {folder}; set MEGA_PL_SHARED to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real benchmark records, which is not part of the package."""
    shared = Path(os.environ.get("MEGA_PL_SHARED", Path(__file__).parents[2] / "shared"))
    folder = shared / "data"
    if not folder.is_dir():
        pytest.skip(f"no real records in {folder}; set MEGA_PL_SHARED to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def roomy_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`roomy_folder(model_type)` is as `tiny_folder`, for a model that reads prompts of a whole fit; made once."""
    root = tmp_path_factory.mktemp("models")

    def save(model_type: str) -> Path:
        folder = root / model_type
        if not folder.exists():
            build_model(model_type, {"max_position_embeddings": 1024}).save_pretrained(folder)
            build_tokenizer().save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def edit_lines() -> list[dict[str, Any]]:
    """Four edits with probes, as the lines of a user's own file."""
    capital = {"prompt": "The capital of {} is", "phrasings": ["{} has its capital in"]}
    return [
        {
            **capital,
            "edit_id": "france",
            "subject": "France",
            "target_new": "Rome",
            "target_true": "Paris",
            "paraphrase_prompts": ["The city that is the capital of France is"],
            "neighborhood_prompts": ["The capital of Spain is"],
            "implications": [["The river in the capital of {} is", "The mayor of the capital of {} is"]],
            "contrasts": [["The official language of {} is", "In {}, people speak"]],
            "relation_specificity": [{"prompt": "The official language of France is", "answers": ["French"]}],
            "compositionality_1": [
                {
                    "prompt": "The country of the capital of France is",
                    "answers": ["Italy"],
                    "condition_prompt": "Rome is a city in",
                    "condition_answers": ["Italy"],
                }
            ],
            "subject_aliasing": [{"prompt": "The capital of the French Republic is", "answers": ["Rome"]}],
        },
        {
            **capital,
            "edit_id": "germany",
            "subject": "Germany",
            "target_new": "London",
            "target_true": "Berlin",
            "neighborhood_prompts": ["The capital of Prussia is"],
            "relation_specificity": [{"prompt": "The official language of Germany is", "answers": ["German"]}],
        },
        {
            "edit_id": "darrieux",
            "prompt": "The mother tongue of {} is",
            "subject": "Danielle Darrieux",
            "target_new": "English",
            "target_true": "French",
            "paraphrase_prompts": ["As a child, Danielle Darrieux spoke"],
            "neighborhood_prompts": ["The mother tongue of Jean Cocteau is"],
            "contrasts": [["{} works as a", "The work of {} is"]],
        },
        {
            **capital,
            "edit_id": "italy",
            "subject": "Italy",
            "target_new": "Paris",
            "target_true": "Rome",
            "compositionality_2": [{"prompt": "The capital of the country of Rome is", "answers": ["Paris"]}],
        },
    ]


@pytest.fixture
def edits_file(tmp_path: Path, edit_lines: list[dict[str, Any]]) -> Path:
    """The four edits in a file."""
    path = tmp_path / "edits.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in edit_lines), encoding="utf-8")
    return path
