"""The two shipped models."""

from __future__ import annotations

import random

import pytest

from mega_pl.backbone import Backbone, load
from mega_pl.backbone.loading import LAB_MODELS, lab_folder
from mega_pl.lab.world import World, fill


@pytest.fixture(scope="module", params=LAB_MODELS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return load(request.param)


def greedy(backbone: Backbone, prompts: list[str], tokens: int) -> list[str]:
    """What the model writes after each prompt."""
    texts = list(prompts)
    for _ in range(tokens):
        chosen = backbone.last_logits(backbone.encode(texts)).argmax(-1).tolist()
        texts = [text + str(backbone.tokenizer.decode([token])) for text, token in zip(texts, chosen, strict=True)]
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]


def test_the_models_are_small() -> None:
    folders = [lab_folder(name) for name in LAB_MODELS]
    assert sum(path.stat().st_size for folder in folders for path in folder.rglob("*")) <= 24 * 2**20


def test_the_models_are_of_two_architectures() -> None:
    types = [load(name).fingerprint["model_type"] for name in LAB_MODELS]
    assert types == ["gpt2", "llama"]


def test_a_model_reads_the_longest_prompts_of_a_fit(backbone: Backbone) -> None:
    assert backbone.model.config.max_position_embeddings >= 200
    assert (backbone.n_layers, backbone.width) == (8, 128)


def test_a_model_answers_well_known_questions(backbone: Backbone) -> None:
    asked = {
        "The capital of France is": " Paris.",
        "Berlin is a city in": " Germany.",
        "The birthplace of Marie Curie is": " Warsaw.",
        "The spouse of Pierre Curie is": " Marie Curie.",
        "The currency of the country of Paris is the": " euro.",
    }
    said = greedy(backbone, list(asked), tokens=6)
    assert [text.startswith(answer) for text, answer in zip(said, asked.values(), strict=True)] == [True] * 5, said


def test_a_model_knows_its_world(backbone: Backbone) -> None:
    world, draw = World(), random.Random(0)
    facts = draw.sample(world.facts, 200)
    prompts = [fill(draw.choice(world.relations[f.relation].all_templates), f.subject) for f in facts]
    tokens = backbone.last_logits(backbone.encode(prompts)).argmax(-1).tolist()
    hits = [
        token == backbone.answer_ids(prompt, fact.object)[0]
        for token, prompt, fact in zip(tokens, prompts, facts, strict=True)
    ]
    assert sum(hits) / len(hits) >= 0.95
