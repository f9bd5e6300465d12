"""What the bare model is asked, against loops of single tokens."""

import pytest
import torch
from mega_pl.data.asking import acquaintances, answers, likeliest, names

from mega_pl.lab.world import World

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
    got = answers(backbone, PROMPTS, least=0.02, tokens=4, batch=2)
    assert got == wanted
    assert any(got)  # control


def test_no_answer_is_likely_enough(tiny_backbone):
    assert answers(tiny_backbone("gpt2"), ["Rome is a city in"], least=1.0) == [()]


def test_the_likeliest_token_is_that_of_each_prompt_alone(tiny_backbone):
    backbone = tiny_backbone("llama")
    alone = [int(backbone.last_logits(backbone.encode([prompt])).argmax()) for prompt in PROMPTS]
    assert likeliest(backbone, PROMPTS, batch=2) == alone


def test_a_model_names_those_whom_it_knows_and_the_seed_decides(lab_backbone):
    drawn = names(lab_backbone, "The birthplace of {} is", draws=64, seed=0)
    assert len(set(drawn) & set(World().entities)) > 30
    assert drawn == names(lab_backbone, "The birthplace of {} is", draws=64, seed=0)
    assert drawn != names(lab_backbone, "The birthplace of {} is", draws=64, seed=1)
    assert not any(name.startswith("the ") for name in drawn)


def test_drawing_names_leaves_the_random_state_alone(lab_backbone):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    names(lab_backbone, "The birthplace of {} is", draws=4, seed=0)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("template", ["{} was born in", "The birthplace of {}", "{}"])
def test_without_words_on_both_sides_there_is_nothing_to_draw(tiny_backbone, template):
    assert names(tiny_backbone("gpt2"), template, draws=4, seed=0) == ()


def test_a_model_is_asked_once_about_those_whom_it_knows(lab_backbone, monkeypatch):
    template = "The spouse of {} is"
    found = acquaintances(lab_backbone, template, draws=32, seed=3)
    assert list(found) == list(names(lab_backbone, template, draws=32, seed=3))
    assert list(found.values()) == answers(lab_backbone, [template.replace("{}", name) for name in found])
    monkeypatch.setattr(lab_backbone.model, "generate", None)
    assert acquaintances(lab_backbone, template, draws=32, seed=3) == found
    assert names(lab_backbone, template, draws=32, seed=3) == tuple(found)
