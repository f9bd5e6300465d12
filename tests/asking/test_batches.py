"""The batching loop: every text once, not too much at a time, and answers in the callers' order."""

import random
from itertools import combinations, pairwise

import pytest

from mega_pl.asking import batches, check_room, encoded_batches, in_batches, token_counts

PROMPTS = ["The capital of France is", "Rome", "He was born in the city of", "Rome is"]


def test_batches_hold_every_text_once_and_not_too_much():
    lengths = [7, 1, 30, 7, 3, 12, 1, 5]
    for tokens in (1, 8, 15, 1000):
        cut = list(batches(lengths, tokens))
        assert sorted(i for batch in cut for i in batch) == list(range(len(lengths)))
        for batch in cut:
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens
    assert list(batches([])) == []
    assert len(list(batches(lengths, 1000, pass_tokens=1000))) == 1


def cost(lengths, cut, pass_tokens):
    return sum(len(batch) * max(lengths[i] for i in batch) + pass_tokens for batch in cut)


@pytest.mark.parametrize("pass_tokens", [0, 5, 40, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_no_other_cut_at_a_change_of_length_costs_less(pass_tokens, seed):
    draw = random.Random(seed)
    lengths = [draw.choice([1, 3, 4, 9, 20, 33]) for _ in range(30)]
    widths = sorted(set(lengths))
    found = cost(lengths, batches(lengths, 10_000, pass_tokens=pass_tokens), pass_tokens)
    for count in range(len(widths)):
        for ends in combinations(widths[:-1], count):
            edges = [0, *ends, widths[-1]]
            cut = [[i for i, n in enumerate(lengths) if low < n <= high] for low, high in pairwise(edges)]
            assert found <= cost(lengths, cut, pass_tokens)


def test_too_small_a_batch_is_refused():
    with pytest.raises(ValueError, match="`tokens_per_batch` must be 1 or more, but got 0"):
        list(batches([1], 0))


@pytest.mark.parametrize("tokens_per_batch", [1, 12, 4096])
def test_answers_come_in_the_order_of_the_items(tokens_per_batch):
    seen = []

    def read(words):
        seen.append(words)
        return [word.upper() for word in words]

    words = ["eleven", "a", "fourteen", "two", "a"]
    assert in_batches(words, [len(word) for word in words], read, tokens_per_batch) == [word.upper() for word in words]
    assert [word for batch in seen for word in batch] == sorted(words, key=len)
    assert all(len(batch) * len(batch[-1]) <= max(tokens_per_batch, len(batch[-1])) for batch in seen)
    assert in_batches([], [], read) == []


def test_an_item_without_an_answer_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        in_batches(["a", "b"], [1, 1], lambda words: words[:1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_batch_is_encoded_with_its_places(tiny_backbone, side):
    backbone = tiny_backbone("gpt2")
    counts = token_counts(backbone, PROMPTS)
    places = []
    for rows, encoded in encoded_batches(backbone, PROMPTS, 24, padding_side=side):
        places += rows
        assert encoded.attention_mask.sum(1).tolist() == [counts[i] for i in rows]
        assert encoded.input_ids.numel() <= 24 or len(rows) == 1
        for i, ids, mask in zip(rows, encoded.input_ids, encoded.attention_mask, strict=True):
            assert backbone.tokenizer.decode(ids[mask.bool()]) == PROMPTS[i]
    assert sorted(places) == list(range(len(PROMPTS)))
    assert list(encoded_batches(backbone, [])) == []


def test_what_will_be_written_counts(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    assert len(list(encoded_batches(backbone, PROMPTS, 100))) == 1
    assert len(list(encoded_batches(backbone, PROMPTS, 100, new_tokens=90))) == len(PROMPTS)


def test_texts_beyond_the_model_are_refused(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    check_room(backbone, PROMPTS, [64] * 4, "its answer")
    with pytest.raises(ValueError, match=r"its answer must have at most 64 tokens together .* got 65: 'Rome'"):
        check_room(backbone, PROMPTS, [64, 65, 1, 66], "its answer")
    backbone.model.config.max_position_embeddings = None  # a model that does not say
    check_room(backbone, PROMPTS, [10**6] * 4, "its answer")
