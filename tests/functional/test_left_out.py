"""Affine maps judged on examples left out, and rank correlation."""

from __future__ import annotations

import math

import pytest
import torch

from mega_pl.functional.linearity import left_out_jacobian, left_out_mean, left_out_ridge, ranks, spearman

DRAW = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


@pytest.mark.parametrize(("n", "d"), [(9, 4), (5, 12)])
@pytest.mark.parametrize("ridge", [1e-3, 0.3])
def test_ridge_against_refits(n, d, ridge):
    inputs, outputs = normal(n, d) + 5, normal(n, 3) - 2
    penalty = ridge * (inputs - inputs.mean(0)).square().sum(1).mean()
    fast = left_out_ridge(inputs, outputs, ridge)
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        s, o = inputs[rest], outputs[rest]
        # an unpenalised column of ones, in normal equations
        wide = torch.cat([s, torch.ones(n - 1, 1, dtype=torch.float64)], 1)
        gram = wide.T @ wide + penalty * torch.diag(torch.tensor([1.0] * d + [0.0]).double())
        weights = torch.linalg.solve(gram, wide.T @ o)
        torch.testing.assert_close(fast[i], torch.cat([inputs[i], torch.ones(1).double()]) @ weights)


def test_ridge_finds_an_affine_map_and_not_noise():
    inputs, weight = normal(40, 6), normal(6, 3)
    exact = inputs @ weight + 7
    assert (left_out_ridge(inputs, exact, 1e-6) - exact).abs().max() < 1e-3
    noise = normal(40, 3)
    error = (left_out_ridge(inputs, noise, 1e-6) - noise).square().mean()
    assert error > (noise - noise.mean(0)).square().mean()
    assert left_out_ridge(torch.zeros(4, 2), noise[:4], 0.1) == pytest.approx(left_out_mean(noise[:4]))


def test_jacobian_against_its_equation():
    inputs, outputs, slopes = normal(6, 4), normal(6, 3), normal(6, 3, 4)
    fast = left_out_jacobian(inputs, outputs, slopes, scale=1.5)
    for i in range(6):
        rest = [j for j in range(6) if j != i]
        weight = torch.stack([slopes[j] for j in rest]).mean(0)
        bias = torch.stack([outputs[j] - slopes[j] @ inputs[j] for j in rest]).mean(0)
        torch.testing.assert_close(fast[i], 1.5 * weight @ inputs[i] + bias)
    linear = inputs @ slopes[0].T + 1
    torch.testing.assert_close(left_out_jacobian(inputs, linear, slopes[:1].expand(6, -1, -1)), linear)


def test_the_mean_of_the_others():
    outputs = normal(5, 3)
    torch.testing.assert_close(left_out_mean(outputs)[2], outputs[[0, 1, 3, 4]].mean(0))


def test_spearman_against_a_slow_twin():
    x = torch.tensor([3.0, 1.0, 3.0, 8.0, 0.0])
    y = torch.tensor([2.0, 0.0, 1.0, 9.0, 0.5])
    assert ranks(x).tolist() == [3.5, 2.0, 3.5, 5.0, 1.0]
    pearson = torch.corrcoef(torch.stack([ranks(x), ranks(y)]))[0, 1]
    assert spearman(x, y) == pytest.approx(float(pearson))
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    different = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 2.0, 3.0])
    assert spearman(*different) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert math.isnan(spearman(x, torch.ones(5)))
    assert math.isnan(spearman(x[:2], y[:2]))


def test_refusals():
    with pytest.raises(ValueError, match=r"at least two examples, so that one can be left out, but got 1"):
        left_out_mean(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"shapes \(N, D\) and \(N, K\), but got \(3, 2\) and \(2, 2\)"):
        left_out_ridge(torch.zeros(3, 2), torch.zeros(2, 2), 0.1)
    with pytest.raises(ValueError, match=r"`ridge` must be more than 0, but got 0"):
        left_out_ridge(torch.zeros(3, 2), torch.zeros(3, 2), 0)
    with pytest.raises(ValueError, match=r"`jacobians` must have shape \(3, 1, 2\), but got \(3, 2, 1\)"):
        left_out_jacobian(torch.zeros(3, 2), torch.zeros(3, 1), torch.zeros(3, 2, 1))
    with pytest.raises(ValueError, match=r"`x` and `y` must have one shape"):
        spearman(torch.zeros(3), torch.zeros(4))
