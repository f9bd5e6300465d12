import pytest

from mega_pl.lab.exam import Exam, Question, card, examine, greedy, table
from mega_pl.lab.world import World

LIMIT = 12


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def rows(world):
    return Exam(world, limit=LIMIT).rows()


def test_the_same_seed_asks_the_same(world, rows):
    assert Exam(world, limit=LIMIT).rows() == rows
    assert Exam(world, limit=LIMIT, seed=1).rows() != rows


def test_a_perfect_oracle_scores_one(rows):
    right = {question.prompt: f" {question.answer}" for row in rows.values() for question in row}
    scores = examine(rows, lambda prompts: [right[prompt] for prompt in prompts])
    assert {(score.recall, score.n) for score in scores.values()} == {(1.0, LIMIT)}


@pytest.mark.parametrize("token", [" the", " ", ""])
def test_a_constant_answer_scores_near_zero(rows, token):
    scores = examine(rows, lambda prompts: [token] * len(prompts))
    assert all(score.recall < 0.1 for score in scores.values())


def test_following_a_context_differs_from_knowing(world, rows):
    for name in ("Pretend …", "Imagine that …", "New Fact …"):
        for question in rows[f"“{name}”, two-hop consequence"]:
            assert question.answer not in question.prompt.split("\n")[0].split(".'")[0]
    for question in rows["“Do not mention …”, another object"]:
        assert not question.prompt.startswith(f"Do not mention '{question.answer}'")


def test_every_template_is_filled(rows):
    assert not [q for row in rows.values() for q in row if "{" in q.prompt or "}" in q.prompt]


def test_batches_of_like_length_change_no_answer(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    prompts = ["The capital of France is", "Rome is", "He was born in the city of", "Berlin"]
    assert greedy(backbone, prompts, tokens_per_batch=12) == [greedy(backbone, [prompt])[0] for prompt in prompts]


def test_card_holds_sizes_and_table(tiny_backbone, world):
    backbone = tiny_backbone("llama")
    scores = examine({"Row": [Question("Rome is", "a city"), Question("Paris is", "big")]}, lambda p: [" a"] * len(p))
    text = card("llama", backbone, world, scores)
    assert text.startswith("---\nlicense: mit\nlibrary_name: transformers\n")
    assert "| Row | 50.0 | 2 |" in table(scores)
    assert table(scores) in text
    assert "4 heads with 2 key-value heads" in text
