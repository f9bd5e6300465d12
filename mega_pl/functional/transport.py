"""Gaussian transport maps between two sets of activations, solved in the low-rank span of the samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-10
"""Directions with less than this share of the largest singular value are rounding."""


@dataclass(frozen=True)
class Transport:
    """A fitted map ``T(x) = x + strength * (shift + B M B^T (x - mean))``.

    With ``B`` orthonormal and ``M = A - I`` this is the Monge map between two Gaussians inside the span of ``B``
    and a plain shift outside it. ``T(mean) = mean + shift`` at strength 1.

    Args:
        mean: (D,) mean of the source samples.
        shift: (D,) mean of the target samples minus that of the source.
        basis: (D, R) orthonormal columns ``B``.
        matrix: (R, R) symmetric ``A - I``.
    """

    mean: Tensor
    shift: Tensor
    basis: Tensor
    matrix: Tensor

    def __call__(self, x: Tensor, strength: float = 1.0) -> Tensor:
        """Map activations (N, D)."""
        return x + strength * (self.shift + (x - self.mean) @ self.basis @ self.matrix @ self.basis.T)

    @property
    def rank(self) -> int:
        """Number R of directions in which the map is more than a shift."""
        return self.basis.shape[1]


def mean_shift(source: Tensor, target: Tensor) -> Transport:
    """The simplest map: add the difference of the means.

    Args:
        source: (N, D) activations.
        target: (M, D) activations.

    Raises:
        ValueError: If the samples are not two matrices of one width with finite values.
    """
    source, target = _checked(source, target)
    mean = source.mean(0)
    width = source.shape[1]
    return Transport(mean, target.mean(0) - mean, mean.new_zeros(width, 0), mean.new_zeros(0, 0))


def fit_transport(
    source: Tensor,
    target: Tensor,
    *,
    rank: int | float | None = 0.95,
    max_rank: int = 128,
    regularization: float = 1e-2,
    relative: bool = True,
) -> Transport:
    r"""Fit the linear Monge map between two sets of activations, as SAKE does, in a reduced space.

    Inside the basis, with biased covariances ``S`` and ``T`` plus the regularisation on their diagonals,

        A = S^{-1/2} (S^{1/2} T S^{1/2})^{1/2} S^{-1/2},

    the one symmetric positive solution of ``A S A = T``; it is the map of POT's ``LinearTransport``, which it
    equals at full rank with absolute regularisation. The basis is made of the leading directions of the pooled,
    separately centred samples and of what the difference of the means has outside them.

    Args:
        source: (N, D) activations, any floating dtype; the solution is computed and returned in float64.
        target: (M, D) activations.
        rank: Number of directions, or the share in (0, 1) of the pooled variance to keep, or None for all.
        max_rank: The most directions to keep where ``rank`` is a share.
        regularization: Added to both diagonals.
        relative: Whether it counts in mean retained eigenvalues of the pooled covariance instead of absolutely.

    Raises:
        ValueError: If a setting is out of range or the samples are not matrices of one width with finite values.
    """
    if isinstance(rank, float) and not 0 < rank < 1:
        raise ValueError(f"`rank` as a share of the variance must lie in (0, 1), but got {rank}.")
    if isinstance(rank, int) and rank < 1:
        raise ValueError(f"`rank` must be at least 1, but got {rank}.")
    if regularization <= 0:
        raise ValueError(f"`regularization` must be positive, but got {regularization}.")
    source, target = _checked(source, target)
    mean_source, mean_target = source.mean(0), target.mean(0)
    centred_source, centred_target = source - mean_source, target - mean_target
    shift = mean_target - mean_source
    basis, variances = _directions(centred_source, centred_target, rank, max_rank)
    ridge = regularization * (float(variances.mean()) if relative and len(variances) else 1.0)
    outside = shift - basis @ (basis.T @ shift)
    if outside.norm() > EPSILON * max(1.0, float(shift.norm())):
        basis = torch.cat([basis, (outside / outside.norm())[:, None]], dim=1)
    matrix = _monge(centred_source @ basis, centred_target @ basis, ridge)
    return Transport(mean_source, shift, basis, matrix - torch.eye(len(matrix), dtype=matrix.dtype))


def _directions(source: Tensor, target: Tensor, rank: int | float | None, max_rank: int) -> tuple[Tensor, Tensor]:
    """The leading pooled directions (D, R) and their variances (R,)."""
    pooled = torch.cat([source, target])
    _, singular, rows = torch.linalg.svd(pooled, full_matrices=False)
    variances = singular.square() / len(pooled)
    keep = int((singular > EPSILON * singular[0]).sum()) if singular[0] > 0 else 0
    if isinstance(rank, int):
        keep = min(keep, rank)
    elif isinstance(rank, float):
        shares = variances.cumsum(0) / variances.sum().clamp(min=torch.finfo(variances.dtype).tiny)
        keep = min(keep, max_rank, int((shares < rank).sum()) + 1)
    return rows[:keep].T, variances[:keep]


def _monge(source: Tensor, target: Tensor, ridge: float) -> Tensor:
    """The symmetric positive ``A`` with ``A S A = T`` for the regularised covariances of centred samples."""
    identity = torch.eye(source.shape[1], dtype=source.dtype)
    cov_source = source.T @ source / len(source) + ridge * identity
    cov_target = target.T @ target / len(target) + ridge * identity
    root, inverse = _root(cov_source), _root(cov_source, -0.5)
    return inverse @ _root(root @ cov_target @ root) @ inverse


def _root(matrix: Tensor, power: float = 0.5) -> Tensor:
    """A power of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp(min=0).pow(power)) @ vectors.T


def _checked(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    for name, samples in (("source", source), ("target", target)):
        if samples.dim() != 2 or len(samples) < 2:
            raise ValueError(f"`{name}` must hold at least 2 samples as rows, but got shape {tuple(samples.shape)}.")
        if not samples.isfinite().all():
            raise ValueError(f"`{name}` must be finite, but {int((~samples.isfinite()).any(1).sum())} samples are not.")
    if source.shape[1] != target.shape[1]:
        raise ValueError(f"`source` and `target` must have one width, but got {source.shape[1]} and {target.shape[1]}.")
    return source.double().cpu(), target.double().cpu()
