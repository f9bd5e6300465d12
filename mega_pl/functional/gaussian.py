"""The transport map between two Gaussians, estimated from samples of activations."""

import math

import torch
from torch import Tensor

from mega_pl.errors import MegaValueError
from mega_pl.functional.transport import Transport, shifting


def fit_transport(
    source: Tensor,
    target: Tensor,
    *,
    rank: int | float | None = 0.95,
    max_rank: int = 128,
    regularization: float = 1e-2,
    relative: bool = True,
    directions: int | None = None,
) -> Transport:
    """Solves the optimal transport map between two Gaussians in the leading directions of the samples.

    B holds the leading principal directions of the pooled samples and the normalised part of μt − μs outside them.
    Inside B, with Σ the biased covariances plus `regularization` on the diagonal,

        A = Σs^(−1/2) (Σs^(1/2) Σt Σs^(1/2))^(1/2) Σs^(−1/2),    T(x) = x + (μt − μs) + B (A − I) Bᵀ (x − μs),

    the symmetric positive definite solution of A Σs A = Σt (Remark 2.31 of arXiv:1803.00567). Outside B the map only
    shifts. With `rank=None` and `relative=False` this is the map of SAKE, `ot.da.LinearTransport(reg=...)` of POT:
    outside the span of the samples both regularised covariances are the same multiple of I, hence A = I there.

    With `directions`, of the eigenvectors u of A − I, with eigenvalues λ, those are kept along which the map does most
    besides shifting the source samples, by λ² uᵀ Σs u, the mean square of the move along u without regularisation.

    Args:
        source: Activations to move, (N, D), any floating dtype; solved in float64.
        target: Activations to be met, (M, D).
        rank: Number of principal directions (no more than the samples span), or the share of the pooled variance that
            they must keep, in (0, 1), or None for the whole span.
        max_rank: Upper bound on the directions that a share may take; numbers and None are taken as they are.
        regularization: Added to the diagonals; in multiples of the mean retained eigenvalue of the pooled covariance
            if `relative`, else in squared units of the activations.
        relative: Which of the two units `regularization` has.
        directions: The most eigenvectors that the map keeps, or None for all.

    Returns:
        The map, in float64 on the device of the samples.

    Raises:
        ValueError: Samples are not finite, fewer than 2 or of different widths, or an option is out of range.
    """
    check_options(rank, max_rank, regularization, directions)
    source, target = _samples(source, target)
    mean, target_mean = source.mean(0), target.mean(0)
    principal, variances = _principal_directions(torch.cat([source, target]))
    kept = _retained(variances, rank, max_rank)
    if kept == 0:  # every sample is the same point
        return mean_shift(source, target)
    shift = target_mean - mean
    basis = _with_direction(principal[:, :kept], shift)
    ridge = regularization * float(variances[:kept].mean()) if relative else regularization
    inside = (source - mean) @ basis
    matrix = _gaussian_map(inside, (target - target_mean) @ basis, ridge)
    matrix = matrix - torch.eye(len(matrix)).to(matrix)
    if directions is not None:
        vectors, matrix = _leading(matrix, inside, directions)
        basis = basis @ vectors
    return Transport(shift, basis, matrix, basis.T @ mean)


def mean_shift(source: Tensor, target: Tensor) -> Transport:
    """Gives the map T(x) = x + (μt − μs), of rank 0.

    Args:
        source: Activations to move, (N, D), any floating dtype.
        target: Activations to be met, (M, D).

    Raises:
        ValueError: Samples are not finite, fewer than 2 or of different widths.
    """
    source, target = _samples(source, target)
    return shifting(target.mean(0) - source.mean(0))


def _leading(matrix: Tensor, inside: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The eigenvectors (R, K) of a symmetric map along which it moves centred samples (N, R) most, and it in them."""
    values, vectors = torch.linalg.eigh(matrix)
    effect = values.square() * (inside @ vectors).square().mean(0)
    top = effect.topk(min(count, len(effect))).indices
    return vectors[:, top], values[top].diag()


def _gaussian_map(source: Tensor, target: Tensor, ridge: float) -> Tensor:
    """Solves for A from centred samples (N, R) and (M, R); symmetric positive definite, (R, R)."""
    values, vectors = _eigh(source, ridge)
    target_values, target_vectors = _eigh(target, ridge)
    root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
    target_root = (target_vectors * target_values.sqrt()) @ target_vectors.T
    # (K Kᵀ)^(1/2) = U S Uᵀ for K = Σs^(1/2) Σt^(1/2) = U S Vᵀ: never forming K Kᵀ keeps twice as many digits.
    left, singular, _ = torch.linalg.svd(root @ target_root)
    half = inverse @ left * singular.clamp_min(ridge).sqrt()
    return torch.mm(half, half.T)


def _eigh(centred: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of the biased covariance plus `ridge`; rounding cannot take a value below `ridge`."""
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    return values.clamp_min(0) + ridge, vectors


def _principal_directions(pooled: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal directions (D, K) that the samples (N, D) span around their mean, and their variances, descending."""
    centred = pooled - pooled.mean(0)
    # QR first: as fast as an eigendecomposition of the Gram matrix, without squaring its condition number.
    if len(centred) <= centred.shape[1]:
        outer, inner = torch.linalg.qr(centred.T)
        vectors, singular, _ = torch.linalg.svd(inner)
        directions = outer @ vectors
    else:
        _, inner = torch.linalg.qr(centred, mode="r")
        _, singular, vectors = torch.linalg.svd(inner)
        directions = vectors.T
    # Centring leaves rounding errors of the size of the samples, which must not count as a direction.
    noise = max(pooled.shape) * torch.finfo(pooled.dtype).eps * torch.maximum(singular[0], pooled.abs().max())
    spanned = int((singular > noise).sum())
    return directions[:, :spanned], singular[:spanned].square() / len(pooled)


def _retained(variances: Tensor, rank: int | float | None, max_rank: int) -> int:
    """Number of leading directions that `rank` asks for."""
    if rank is None or len(variances) == 0:
        return len(variances)
    if isinstance(rank, int):
        return min(rank, len(variances))
    share = variances.cumsum(0) / variances.sum()
    return min(int((share < rank).sum()) + 1, max_rank, len(variances))


def _with_direction(basis: Tensor, direction: Tensor) -> Tensor:
    """Appends the normalised part of `direction` (D,) outside `basis` (D, R), unless only rounding is left of it."""
    outside = direction - basis @ (basis.T @ direction)
    if outside.norm() <= 1e-8 * direction.norm():
        return basis
    outside = outside / outside.norm()
    outside = outside - basis @ (basis.T @ outside)  # a second pass makes a small remainder orthogonal, too
    return torch.cat([basis, (outside / outside.norm()).unsqueeze(1)], dim=1)


def check_options(rank: int | float | None, max_rank: int, regularization: float, directions: int | None) -> None:
    """Refuses options of `fit_transport` that are out of range.

    Raises:
        ValueError: Naming the first.
    """
    wanted = "`rank` must be a positive int, a share in (0, 1) or None for the whole span"
    if isinstance(rank, bool) or (isinstance(rank, int) and rank < 1):
        raise MegaValueError(f"{wanted}, but got {rank}; `mean_shift` gives the map of rank 0.")
    if isinstance(rank, float) and not 0 < rank < 1:
        raise MegaValueError(f"{wanted}, but got {rank}.")
    if max_rank < 1:
        raise MegaValueError(f"`max_rank` must be at least 1, but got {max_rank}.")
    if directions is not None and directions < 1:
        raise MegaValueError(
            f"`directions` must be at least 1, but got {directions}; `mean_shift` gives the map without any."
        )
    if not (math.isfinite(regularization) and regularization > 0):
        raise MegaValueError(f"`regularization` must be finite and above 0, but got {regularization}.")


def _samples(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Checks both sets of samples and gives them in float64."""
    for name, samples in (("source", source), ("target", target)):
        if samples.ndim != 2 or len(samples) < 2 or samples.shape[1] == 0:
            raise MegaValueError(
                f"`{name}` must hold at least 2 samples, shape (N, D), but got {tuple(samples.shape)}."
            )
        if not samples.isfinite().all():
            bad = int((~samples.isfinite()).any(1).sum())
            raise MegaValueError(f"`{name}` must be finite, but {bad} of its {len(samples)} samples are not.")
    if source.shape[1] != target.shape[1]:
        raise MegaValueError(
            f"`source` and `target` must be of one width, but got {source.shape[1]} and {target.shape[1]}."
        )
    return source.detach().double(), target.detach().double()
