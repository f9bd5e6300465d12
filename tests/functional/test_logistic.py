"""Logistic regression with weights that are not negative."""

import pytest
import torch
from torch.nn import functional as F

from mega_pl.functional.logistic import fit_logistic


def samples(count=400, seed=0):
    draw = torch.Generator().manual_seed(seed)
    right = torch.rand(count, generator=draw) < 0.4
    return 1.5 * right + torch.randn(count, generator=draw), right


def test_weights_are_the_best_of_a_grid():
    x, right = samples(60)
    evidence, penalty = torch.stack([x.clamp(min=0), x.clamp(max=0)], 1), 1e-2
    offset = samples(60, seed=1)[0]
    weights, bias = fit_logistic(evidence, right, offset=offset, penalty=penalty)
    scale = evidence.std(0)
    rising, falling, intercept = torch.meshgrid(
        torch.linspace(0, 3, 61), torch.linspace(0, 3, 61), torch.linspace(-3, 3, 121), indexing="ij"
    )
    logits = offset + rising[..., None] * evidence[:, 0] + falling[..., None] * evidence[:, 1] + intercept[..., None]
    loss = F.softplus(torch.where(right, -logits, logits)).mean(-1)
    loss = loss + penalty * ((scale[0] * rising) ** 2 + (scale[1] * falling) ** 2)
    best = torch.unravel_index(loss.argmin(), loss.shape)
    wanted = [float(axis[best]) for axis in (rising, falling, intercept)]
    assert [*weights.tolist(), bias] == pytest.approx(wanted, abs=0.05)


def test_evidence_against_gets_no_weight():
    x, right = samples()
    weights, _ = fit_logistic(torch.stack([x, -x], 1), right)
    assert weights[0] > 0.5
    assert weights[1] < 0.05


def test_the_scale_of_evidence_does_not_matter():
    x, right = samples()
    weights, bias = fit_logistic(x[:, None], right, penalty=0.1)
    scaled, same = fit_logistic(100 * x[:, None], right, penalty=0.1)
    assert 100 * scaled.item() == pytest.approx(weights.item(), rel=1e-3)
    assert same == pytest.approx(bias, abs=1e-3)


def test_a_larger_penalty_shrinks_and_what_an_offset_says_already_is_worth_less():
    x, right = samples()
    free, _ = fit_logistic(x[:, None], right)
    assert fit_logistic(x[:, None], right, penalty=1.0)[0] < free / 2
    assert fit_logistic(x[:, None], right, offset=2 * x)[0] < free / 2


def test_the_weights_that_made_the_answers_are_found():
    draw = torch.Generator().manual_seed(0)
    evidence = torch.randn(40_000, 4, generator=draw) * torch.tensor([1.0, 0.1, 5.0, 1.0])
    true = torch.tensor([2.0, 10.0, 0.2, 0.0])
    right = torch.rand(40_000, generator=draw) < torch.sigmoid(evidence @ true - 1.5)
    weights, bias = fit_logistic(evidence, right, penalty=0.0)
    torch.testing.assert_close(weights, true, atol=0.06, rtol=0.06)
    assert bias == pytest.approx(-1.5, abs=0.06)
    against, _ = fit_logistic(-evidence, right)
    assert (against < 1e-3).all()  # what speaks against gets no weight


def test_no_gradient_mode_is_needed():
    evidence, right = torch.tensor([[1.0], [0.0], [2.0], [-1.0]]), torch.tensor([True, False, True, False])
    wanted = fit_logistic(evidence, right)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(fit_logistic(evidence.clone(), right)[0], wanted[0])
