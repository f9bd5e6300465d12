"""The next token in batches, against one prompt at a time."""

import pytest
import torch

from mega_pl.asking import argmax_tokens, next_log_probs

PROMPTS = ["The capital of France is", "Rome is a city in", "He works as a"]


def test_the_likeliest_token_is_that_of_each_prompt_alone(tiny_backbone):
    backbone = tiny_backbone("llama")
    alone = [int(backbone.last_logits(backbone.encode([prompt])).argmax()) for prompt in PROMPTS]
    assert argmax_tokens(backbone, PROMPTS, tokens_per_batch=12) == alone


def test_the_log_probability_is_that_of_each_prompt_alone(tiny_backbone):
    backbone, tokens = tiny_backbone("llama"), torch.tensor([3, 5, 8])
    alone = [
        float(backbone.last_logits(backbone.encode([prompt]))[0].log_softmax(-1)[token])
        for prompt, token in zip(PROMPTS, tokens, strict=True)
    ]
    assert next_log_probs(backbone, PROMPTS, tokens, tokens_per_batch=12).tolist() == pytest.approx(alone, abs=1e-5)
