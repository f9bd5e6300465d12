"""Draws against the probabilities that they should have."""

from collections import Counter

import pytest
import torch

from mega_pl.asking import sample
from mega_pl.asking.sampling import TopKNoise


def test_draws_have_the_probabilities_of_the_best_tokens():
    scores = torch.tensor([[2.0, -1.0, 1.0, 0.5, 1.5]])
    n = 6000
    noisy = TopKNoise([str(i) for i in range(n)], top_k=3)(torch.zeros(n, 1).long(), scores.expand(n, -1))
    counts = Counter(noisy.argmax(-1).tolist())
    best = [0, 4, 2]
    for token, chance in zip(best, scores[0, best].softmax(-1).tolist(), strict=True):
        assert counts[token] / n == pytest.approx(chance, abs=0.025)
    assert set(counts) == set(best)
    assert torch.isinf(noisy).sum() == 2 * n


def test_samples_follow_the_models_distribution(tiny_backbone):
    """First tokens at temperature 1 are as frequent as they are likely."""
    backbone, count = tiny_backbone("gpt2"), 3000
    ids = backbone.encode(["Rome"]).input_ids.expand(count, -1)
    texts = sample(backbone, ids, torch.ones_like(ids), 1, seed=0)
    chances = backbone.last_logits(backbone.encode(["Rome"]))[0].softmax(-1)
    whole = [t for t in chances.topk(40).indices.tolist() if "\ufffd" not in backbone.tokenizer.decode([t])]
    for token in whole[:4]:
        text = backbone.tokenizer.decode([*ids[0].tolist(), token], skip_special_tokens=True)
        share = sum(found == text for found in texts) / count
        assert abs(share - float(chances[token])) < 4 * (float(chances[token]) / count) ** 0.5
