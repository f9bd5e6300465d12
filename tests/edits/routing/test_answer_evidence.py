"""What the bare model is about to say: evidence, its weights, and what they are on models that know nothing."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from mega_pl.edits.routing import ContentRouter
from mega_pl.edits.routing.answers import HIGHEST, LOWEST, AnswerEvidence
from mega_pl.lab.world import World
from tests.edits.routing.conftest import CAPITAL, PANCAKE, REQUESTS, routes

PRIOR = math.log(2)
"""A weight that nothing has moved."""


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def test_evidence_by_hand():
    answers = AnswerEvidence(tensor(-3, -5, -1), torch.tensor([1, 2]), (2.0, 0.5))
    log_probs = tensor([-1, -1, -4], [-1, -7, -0.5])
    rows, edits = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    evidence = answers(log_probs, rows, edits, torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(evidence, tensor([4, 0], [0, -3], [0, -2], [0.5, 0]))
    torch.testing.assert_close(answers.logits(evidence), tensor(8, -1.5, -1, 1))


def test_evidence_has_bounds():
    answers = AnswerEvidence(tensor(-50, -1), torch.tensor([0, 1]), (1.0, 1.0))
    two = torch.arange(2)
    evidence = answers(tensor([-1, -1], [-1, -math.inf]), two, two, torch.zeros(2, dtype=torch.bool))
    assert evidence.tolist() == [[HIGHEST, 0.0], [0.0, LOWEST]]


def test_nothing_speaks_against_a_question_that_goes_on_from_the_object():
    answers = AnswerEvidence(tensor(-3, -3), torch.tensor([0, 1]), (1.0, 1.0))
    rows, edits = torch.zeros(4, dtype=torch.long), torch.tensor([0, 1, 0, 1])
    evidence = answers(tensor([-1, -5]), rows, edits, torch.tensor([False, False, True, True]))
    assert evidence.tolist() == [[2.0, 0.0], [0.0, -2.0], [2.0, 0.0], [0.0, 0.0]]


def test_without_an_edit_later_ones_move_up():
    answers = AnswerEvidence(tensor(-1, -2, -3), torch.tensor([2, 0, 1]), (1.0, 2.0))
    fewer = answers.without(1)
    assert fewer.tokens.tolist() == [2, 1]
    assert (fewer.base is answers.base, fewer.weights) == (True, answers.weights)
    assert answers.tokens.tolist() == [2, 0, 1]


def evidence_of(nats):
    return torch.stack([nats.clamp(min=0), nats.clamp(max=0)], 1)


def fitted(nats, right, text=None):
    answers = AnswerEvidence(torch.zeros(1), torch.zeros(1, dtype=torch.long), (0.0, 0.0))
    return answers.fit(torch.zeros(len(nats)) if text is None else text, evidence_of(nats), right).weights


def test_weights_say_how_much_the_model_knows():
    draw = torch.Generator().manual_seed(0)
    right = torch.arange(400) % 2 == 0
    noise = torch.randn(400, generator=draw)
    sign = right.float() * 2 - 1
    assert fitted(torch.zeros(400), right) == pytest.approx((PRIOR, PRIOR), abs=1e-4)
    assert max(fitted(4 * noise, right)) < PRIOR / 2  # loud, and about something else
    rising, falling = fitted(0.8 * sign + 0.2 * noise, right)
    assert min(rising, falling) > 1.5 * PRIOR
    rising, falling = fitted(torch.where(right, 0.8, 0.0), right)  # only speaks where it knows
    assert rising > 1.3 * PRIOR > falling == pytest.approx(PRIOR, abs=1e-4)


def test_weights_are_small_where_the_text_says_it_all():
    right = torch.arange(400) % 2 == 0
    nats = torch.where(right, 1.0, -1.0)
    assert max(fitted(nats, right, text=20 * nats)) < min(fitted(nats, right)) - 0.3


def test_weights_are_the_best_of_a_grid():
    draw = torch.Generator().manual_seed(1)
    right = torch.rand(60, generator=draw) < 0.5
    nats = right * 1.5 - 0.6 + torch.randn(60, generator=draw)
    text = torch.randn(60, generator=draw) + right.float()
    weights = fitted(nats, right, text)
    free = torch.linspace(-3, 3, 61, dtype=torch.float64)
    a, b, bias = torch.meshgrid(free, free, free, indexing="ij")
    rising, falling = (torch.nn.functional.softplus(x)[..., None] for x in (a, b))
    logits = text + rising * nats.clamp(min=0) + falling * nats.clamp(max=0) + bias[..., None]
    loss = torch.nn.functional.softplus(torch.where(right, -logits, logits)).mean(-1)
    loss = loss + 1e-2 * (a**2 + b**2 + bias**2)
    i, j, _ = torch.unravel_index(loss.argmin(), loss.shape)
    wanted = torch.nn.functional.softplus(torch.stack([free[i], free[j]])).tolist()
    assert weights == pytest.approx(wanted, abs=0.06)


def learned(backbone):
    """Weights and evidence of a model that is asked 40 facts and the other ones about their subjects."""
    world, draw = World(), random.Random(0)
    chosen = draw.sample(world.facts, 40)
    asked = [(edit, f) for edit, fact in enumerate(chosen) for f in world.facts if f.subject == fact.subject]
    prompts = [world.relations[f.relation].templates[0].replace("{}", f.subject) for _, f in asked]
    right = torch.tensor([f == chosen[edit] for edit, f in asked])
    tokens = [
        backbone.answer_ids(p, f.object)[0] for p, (edit, f) in zip(prompts, asked, strict=True) if f == chosen[edit]
    ]
    log_probs = backbone.last_logits(backbone.encode(prompts)).log_softmax(-1)
    base = log_probs[~right].logsumexp(0) - math.log(int((~right).sum()))
    answers = AnswerEvidence(base, torch.tensor(tokens), (0.0, 0.0))
    none = torch.zeros(len(asked), dtype=torch.bool)
    evidence = answers(log_probs, torch.arange(len(asked)), torch.tensor([edit for edit, _ in asked]), none)
    return answers.fit(torch.zeros(len(asked)), evidence, right).weights, evidence.sum(1), right


def test_a_model_that_knows_facts_is_heard_and_a_random_one_hardly(lab_backbone, tiny_backbone):
    knows, nats, right = learned(lab_backbone)
    assert nats[right].mean() > 3 > 0 > nats[~right].mean()
    noise, heard, right = learned(tiny_backbone("gpt2"))
    assert abs(heard[right].mean() - heard[~right].mean()) < 0.5
    assert max(noise) < PRIOR
    assert sum(knows) > 1.3 * sum(noise)


def test_a_stored_router_hears_the_same(router, lab_backbone):
    config, tensors = router.state()
    again = ContentRouter.from_state(REQUESTS, json.loads(json.dumps(config)), load(save(tensors)))
    assert again.answers is not None
    assert again.answers.weights == router.answers.weights
    assert torch.equal(again.answers.base, router.answers.base)
    assert torch.equal(again.answers.tokens, router.answers.tokens)
    deaf = replace(router, answers=None)
    config, tensors = deaf.state()
    assert ContentRouter.from_state(REQUESTS, json.loads(json.dumps(config)), tensors).answers is None
    texts = [CAPITAL.filled, PANCAKE.filled]
    heard, unheard = (routes(r, lab_backbone, texts) for r in (again, deaf))
    assert [r.evidence["answer"] for r in unheard] == [0.0, 0.0]
    assert [r.confidence for r in heard] != [r.confidence for r in unheard]
