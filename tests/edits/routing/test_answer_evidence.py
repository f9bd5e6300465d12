"""What the bare model is about to say, as evidence."""

import json
import math
from dataclasses import replace

import torch
from safetensors.torch import load, save

from mega_pl.edits.routing import ContentRouter
from mega_pl.edits.routing.answers import HIGHEST, LOWEST, AnswerEvidence
from tests.edits.routing.conftest import BORN, REQUESTS, routes


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def no(count):
    return torch.zeros(count, dtype=torch.bool)


def test_evidence_by_hand():
    answers = AnswerEvidence(torch.tensor([7, 9]), tensor(-5, -1), (2.0, 0.5), (0.0, 0.0))
    evidence = answers(tensor(-1, -4, -7, -0.5), torch.tensor([0, 1, 0, 1]), no(4))
    torch.testing.assert_close(evidence, tensor([4, 0], [0, -3], [0, -2], [0.5, 0]))
    torch.testing.assert_close(answers.logits(evidence), tensor(8, -1.5, -1, 1))


def test_evidence_has_bounds():
    answers = AnswerEvidence(torch.tensor([0, 1]), tensor(-50, -1), (1.0, 1.0), (0.0, 0.0))
    evidence = answers(tensor(-1, -math.inf), torch.arange(2), no(2))
    assert evidence.tolist() == [[HIGHEST, 0.0], [0.0, LOWEST]]


def test_nothing_speaks_against_a_question_that_goes_on_from_the_object():
    answers = AnswerEvidence(torch.tensor([0, 1]), tensor(-3, -3), (1.0, 1.0), (0.0, 0.0))
    evidence = answers(tensor(-1, -5, -1, -5), torch.tensor([0, 1, 0, 1]), torch.tensor([False, False, True, True]))
    assert evidence.tolist() == [[2.0, 0.0], [0.0, -2.0], [2.0, 0.0], [0.0, 0.0]]


def test_edits_come_at_the_end_and_later_ones_move_up():
    answers = AnswerEvidence(torch.tensor([2, 0]), tensor(-1, -2), (1.0, 2.0), (0.5, 0.0))
    grown = answers.with_more(torch.tensor([1]), tensor(-3))
    assert (grown.tokens.tolist(), grown.base.tolist(), grown.weights) == ([2, 0, 1], [-1, -2, -3], answers.weights)
    fewer = grown.select([0, *range(2, len(grown.tokens))])
    assert (fewer.tokens.tolist(), fewer.base.tolist(), fewer.weights) == ([2, 1], [-1, -3], answers.weights)
    assert answers.tokens.tolist() == [2, 0]


def test_a_stored_router_hears_the_same(router, lab_backbone):
    config, tensors = router.state()
    again = ContentRouter.from_state(REQUESTS, json.loads(json.dumps(config)), load(save(tensors)))
    assert again.answers is not None
    assert (again.answers.weights, again.answers.thresholds) == (router.answers.weights, router.answers.thresholds)
    assert torch.equal(again.answers.base, router.answers.base)
    assert torch.equal(again.answers.tokens, router.answers.tokens)
    deaf = replace(router, answers=None)
    config, tensors = deaf.state()
    assert ContentRouter.from_state(REQUESTS, json.loads(json.dumps(config)), tensors).answers is None
    texts = [BORN.filled, "Marie Curie saw the light in"]
    loud = replace(again, answers=replace(again.answers, weights=(1.0, 1.0)))
    heard, unheard = (routes(r, lab_backbone, texts) for r in (loud, deaf))
    assert [r.evidence["answer"] for r in unheard] == [0.0, 0.0]
    assert [r.confidence for r in heard] != [r.confidence for r in unheard]
