"""How linear a relation is: affine maps from subject states to object states, judged on examples left out."""

from __future__ import annotations

import torch
from torch import Tensor

from mega_pl.errors import MegaValueError


def left_out_ridge(inputs: Tensor, outputs: Tensor, ridge: float) -> Tensor:
    """What an affine map, fitted by ridge regression to all other examples, makes of each example.

    W, b = argmin Σ_j |W s_j + b − o_j|² + λ |W|² with λ = ridge · (1/N) Σ_j |s_j − s̄|² and b free. The smoother is
    H = 11ᵀ/N + K (K + λI)⁻¹ with the centred kernel K, and the fit without example i, at the same λ, gives it
    o_i − (o_i − (H o)_i) / (1 − H_ii). O(N² D + N³), whatever D is.

    Args:
        inputs: (N, D) subject states.
        outputs: (N, K) object states.
        ridge: multiple of the inputs' mean square distance from their mean.

    Returns:
        (N, K) float64.

    Raises:
        ValueError: if there are fewer than two examples, the lengths differ, or the ridge is not positive.
    """
    _check(inputs, outputs)
    if not ridge > 0:
        raise MegaValueError(f"`ridge` must be more than 0, but got {ridge}.")
    n, states, objects = len(inputs), inputs.double(), outputs.double()
    centred = states - states.mean(0)
    kernel = centred @ centred.T
    penalty = (ridge * kernel.diagonal().mean()).clamp(min=torch.finfo(torch.float64).tiny)
    smoother = torch.linalg.solve(kernel + penalty * torch.eye(n).to(kernel), kernel) + 1 / n
    errors: Tensor = (objects - smoother @ objects) / (1 - smoother.diagonal())[:, None]
    return objects - errors


def left_out_jacobian(inputs: Tensor, outputs: Tensor, jacobians: Tensor, *, scale: float = 1.0) -> Tensor:
    """What the mean first-order expansion around all other examples makes of each example (LRE, arXiv:2308.09124).

    o ≈ β W s + b with W = E[J_j] and b = E[o_j − J_j s_j], the means over the examples j ≠ i.

    Args:
        inputs: (N, D) subject states.
        outputs: (N, K) object states.
        jacobians: (N, K, D) derivative of each object state with respect to its subject state.
        scale: β, by which the paper makes up for Jacobians that are too small.

    Returns:
        (N, K) float64.

    Raises:
        ValueError: if there are fewer than two examples, or the shapes do not fit.
    """
    _check(inputs, outputs)
    if jacobians.shape != (len(inputs), outputs.shape[1], inputs.shape[1]):
        raise MegaValueError(
            f"`jacobians` must have shape {(len(inputs), outputs.shape[1], inputs.shape[1])}, "
            f"but got {tuple(jacobians.shape)}."
        )
    n, states, objects, slopes = len(inputs), inputs.double(), outputs.double(), jacobians.double()
    own = torch.einsum("nkd,nd->nk", slopes, states)
    offsets = objects - own
    others = states @ slopes.sum(0).T - own
    return (scale * others + offsets.sum(0) - offsets) / (n - 1)


def left_out_mean(outputs: Tensor) -> Tensor:
    """The mean of all other examples' object states (N, K), as a map has it that does not look at the subject."""
    _check(outputs, outputs)
    values = outputs.double()
    return (values.sum(0) - values) / (len(values) - 1)


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 of values (N,), equal ones with the mean of their places, (N,) float64.

    >>> ranks(torch.tensor([3.0, 1.0, 3.0]))
    tensor([2.5000, 1.0000, 2.5000], dtype=torch.float64)
    """
    below = (values[:, None] > values).sum(1)
    return below + ((values[:, None] == values).sum(1) + 1).double() / 2


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's rank correlation: Pearson's correlation of the ranks.

    Args:
        x: (N,) values.
        y: (N,) values.

    Returns:
        It, in [-1, 1]; nan where there are fewer than three pairs or one side is constant.

    Raises:
        ValueError: if the shapes differ.
    """
    if x.ndim != 1 or x.shape != y.shape:
        raise MegaValueError(f"`x` and `y` must have one shape (N,), but got {tuple(x.shape)} and {tuple(y.shape)}.")
    if len(x) < 3:
        return float("nan")
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b / (a.norm() * b.norm())).clamp(-1, 1))


def _check(inputs: Tensor, outputs: Tensor) -> None:
    if inputs.ndim != 2 or outputs.ndim != 2 or len(inputs) != len(outputs):
        raise MegaValueError(
            "`inputs` and `outputs` must have shapes (N, D) and (N, K), "
            f"but got {tuple(inputs.shape)} and {tuple(outputs.shape)}."
        )
    if len(inputs) < 2:
        raise MegaValueError(
            f"`inputs` must hold at least two examples, so that one can be left out, but got {len(inputs)}."
        )
