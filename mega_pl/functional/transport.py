"""Affine transport maps that carry one cloud of activations onto another.

`fit_transport` and `mean_shift` solve one edit's map; `stack` puts the maps of many edits into one `Transports`, which
moves a batch whose rows belong to different edits. A map is solved in float64 and may be cast afterwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mega_pl.errors import MegaValueError


@dataclass(frozen=True, eq=False)
class Transport:
    """One affine map that is the identity up to a shift outside a low-rank basis.

    T(x) = x + α (δ + B M Bᵀ (x − μ)), with α the strength, δ the `shift`, B the `basis`, M the `matrix` and μ the
    `mean`; μ goes to μ + αδ.

    Args:
        mean: Mean of the source activations, (D,).
        shift: Mean of the target minus mean of the source, (D,).
        basis: Orthonormal columns, (D, R); R may be 0.
        matrix: Map inside the basis minus the identity, (R, R), symmetric.
    """

    mean: Tensor
    shift: Tensor
    basis: Tensor
    matrix: Tensor

    @property
    def rank(self) -> int:
        """Number of directions in which the map does more than shift."""
        return self.basis.shape[1]

    def __call__(self, x: Tensor, strength: float = 1.0) -> Tensor:
        """Moves activations, in the wider of the two dtypes, and returns them in their own.

        Args:
            x: Activations, (N, D).
            strength: Multiple of the full move; 0 gives `x` itself back.

        Raises:
            ValueError: `x` is not of shape (N, D).
        """
        _check_rows(x, self.mean.shape[-1])
        if strength == 0:
            return x
        wide = x.to(torch.promote_types(x.dtype, self.mean.dtype))
        inside = (wide - self.mean) @ self.basis.to(wide) @ self.matrix.to(wide) @ self.basis.to(wide).T
        return (wide + strength * (self.shift + inside)).to(x.dtype)

    def cast(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Transport":
        """Gives the same map in another dtype or on another device; None keeps what it has."""
        mean, shift, basis, matrix = (
            t.to(device=device, dtype=dtype) for t in (self.mean, self.shift, self.basis, self.matrix)
        )
        return Transport(mean, shift, basis, matrix)


@dataclass(frozen=True, eq=False)
class Transports:
    """The maps of E edits, one behind the other in one set of tensors, without padding.

    Row n of `apply` equals `self[edit[n]]` on that row. Tensors may be of a file that is read where it is touched.

    Args:
        mean: (E, D).
        shift: (E, D).
        basis: (S, D), the directions of all maps, `ranks[e]` rows of edit e.
        matrix: (Q,), the matrices of all maps, `ranks[e]`² numbers of edit e, row by row.
        ranks: Rank of each map, (E,), int64.
    """

    mean: Tensor
    shift: Tensor
    basis: Tensor
    matrix: Tensor
    ranks: Tensor

    def __len__(self) -> int:
        return self.mean.shape[0]

    def __getitem__(self, index: int) -> Transport:
        rank = int(self.ranks[index])
        rows, numbers = int(self._rows[index]), int(self._numbers[index])
        basis = self.basis[rows : rows + rank].T
        matrix = self.matrix[numbers : numbers + rank * rank].view(rank, rank)
        return Transport(self.mean[index], self.shift[index], basis, matrix)

    @cached_property
    def _rows(self) -> Tensor:
        """Where the directions of each map begin, (E,)."""
        return self.ranks.cumsum(0) - self.ranks

    @cached_property
    def _numbers(self) -> Tensor:
        """Where the matrix of each map begins, (E,)."""
        return self.ranks.square().cumsum(0) - self.ranks.square()

    def apply(self, x: Tensor, edit: Tensor, strength: float = 1.0) -> Tensor:
        """Moves each row by the map of its edit, in the wider of the two dtypes.

        The maps of the N rows are gathered, which takes N · D · R numbers for the time of the call.

        Args:
            x: Activations, (N, D).
            edit: Index of each row's map, (N,), int64.
            strength: Multiple of the full move; 0 gives `x` itself back.

        Returns:
            Moved activations, (N, D), in the dtype of `x`.

        Raises:
            ValueError: The shapes do not fit, or an index lies outside [0, E).
        """
        _check_rows(x, self.mean.shape[-1])
        if edit.shape != x.shape[:1]:
            raise MegaValueError(f"`edit` must hold one index a row, shape ({len(x)},), but got {tuple(edit.shape)}.")
        if len(x) == 0 or strength == 0:
            return x
        low, high = (int(bound) for bound in torch.aminmax(edit))
        if low < 0 or high >= len(self):
            raise MegaValueError(f"`edit` must lie in [0, {len(self) - 1}] for these maps, but got {low} to {high}.")
        wide = x.to(torch.promote_types(x.dtype, self.mean.dtype))
        moved = self.shift[edit]
        basis, matrix = self._padded(edit)
        if basis.shape[1]:
            inside = torch.bmm((wide - self.mean[edit]).unsqueeze(1), basis.to(wide).mT)
            moved = moved + torch.bmm(torch.bmm(inside, matrix.to(wide)), basis.to(wide)).squeeze(1)
        return (wide + strength * moved).to(x.dtype)

    def _padded(self, edit: Tensor) -> tuple[Tensor, Tensor]:
        """Directions (N, R, D) and matrices (N, R, R) of some maps, padded with zeros to the largest rank."""
        ranks, widest = self.ranks[edit], int(self.ranks[edit].max())
        place = torch.arange(widest, device=edit.device)
        real = place < ranks[:, None]
        rows = (self._rows[edit][:, None] + place).masked_fill(~real, 0)
        numbers = self._numbers[edit][:, None, None] + place[:, None] * ranks[:, None, None] + place
        both = real[:, :, None] & real[:, None, :]
        if not widest:
            return self.basis.new_zeros(len(edit), 0, self.mean.shape[1]), self.matrix.new_zeros(len(edit), 0, 0)
        basis = self.basis[rows].masked_fill(~real[..., None], 0)
        return basis, self.matrix[numbers.masked_fill(~both, 0)].masked_fill(~both, 0)

    def select(self, indices: Tensor | Sequence[int]) -> "Transports":
        """Gives the maps at `indices`, in that order; no others are touched."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.mean.device)
        ranks = self.ranks[index]
        rows, numbers = _ranges(self._rows[index], ranks), _ranges(self._numbers[index], ranks.square())
        return Transports(self.mean[index], self.shift[index], self.basis[rows], self.matrix[numbers], ranks)

    def cast(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Transports":
        """Gives the same maps in another dtype or on another device; None keeps what they have."""
        mean, shift, basis, matrix = (
            t.to(device=device, dtype=dtype) for t in (self.mean, self.shift, self.basis, self.matrix)
        )
        return Transports(mean, shift, basis, matrix, self.ranks.to(device=device))


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """The numbers from each start on, as many as its length, one range behind the other."""
    ends = lengths.cumsum(0)
    offsets = (starts - (ends - lengths)).repeat_interleave(lengths)
    return offsets + torch.arange(len(offsets), device=starts.device)


def stack(transports: Sequence[Transport]) -> Transports:
    """Puts maps of one width, dtype and device into one `Transports`; ranks may differ.

    Raises:
        ValueError: There is no map, or their widths, dtypes or devices differ.
    """
    if not transports:
        raise MegaValueError("`transports` must hold at least one map, but got none.")
    kinds = {(t.mean.shape[0], t.mean.dtype, t.mean.device) for t in transports}
    if len(kinds) > 1:
        found = ", ".join(sorted(f"({width}, {dtype}, {device})" for width, dtype, device in kinds))
        raise MegaValueError(f"`transports` must share one width, dtype and device, but got {found}; cast them first.")
    return Transports(
        mean=torch.stack([t.mean for t in transports]),
        shift=torch.stack([t.shift for t in transports]),
        basis=torch.cat([t.basis.T for t in transports]),
        matrix=torch.cat([t.matrix.flatten() for t in transports]),
        ranks=torch.tensor([t.rank for t in transports], device=transports[0].mean.device),
    )


def join(parts: Sequence[Transports]) -> Transports:
    """Puts the maps of several sets of one width, dtype and device one after the other."""
    mean, shift, basis, matrix, ranks = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "shift", "basis", "matrix", "ranks")
    )
    return Transports(mean, shift, basis, matrix, ranks)


def fit_transport(
    source: Tensor,
    target: Tensor,
    *,
    rank: int | float | None = 0.95,
    max_rank: int = 128,
    regularization: float = 1e-2,
    relative: bool = True,
) -> Transport:
    """Solves the optimal transport map between two Gaussians in the leading directions of the samples.

    B holds the leading principal directions of the pooled samples and the normalised part of μt − μs outside them.
    Inside B, with Σ the biased covariances plus `regularization` on the diagonal,

        A = Σs^(−1/2) (Σs^(1/2) Σt Σs^(1/2))^(1/2) Σs^(−1/2),    T(x) = x + (μt − μs) + B (A − I) Bᵀ (x − μs),

    the symmetric positive definite solution of A Σs A = Σt (Remark 2.31 of arXiv:1803.00567). Outside B the map only
    shifts. With `rank=None` and `relative=False` this is the map of SAKE, `ot.da.LinearTransport(reg=...)` of POT:
    outside the span of the samples both regularised covariances are the same multiple of I, hence A = I there.

    Args:
        source: Activations to move, (N, D), any floating dtype; solved in float64.
        target: Activations to be met, (M, D).
        rank: Number of principal directions (no more than the samples span), or the share of the pooled variance that
            they must keep, in (0, 1), or None for the whole span.
        max_rank: Upper bound on the directions that a share may take; numbers and None are taken as they are.
        regularization: Added to the diagonals; in multiples of the mean retained eigenvalue of the pooled covariance
            if `relative`, else in squared units of the activations.
        relative: Which of the two units `regularization` has.

    Returns:
        The map, in float64 on the device of the samples.

    Raises:
        ValueError: Samples are not finite, fewer than 2 or of different widths, or an option is out of range.
    """
    _check_options(rank, max_rank, regularization)
    source, target = _samples(source, target)
    mean, target_mean = source.mean(0), target.mean(0)
    directions, variances = _principal_directions(torch.cat([source, target]))
    kept = _retained(variances, rank, max_rank)
    if kept == 0:  # every sample is the same point
        return mean_shift(source, target)
    shift = target_mean - mean
    basis = _with_direction(directions[:, :kept], shift)
    ridge = regularization * float(variances[:kept].mean()) if relative else regularization
    matrix = _gaussian_map((source - mean) @ basis, (target - target_mean) @ basis, ridge)
    return Transport(mean, shift, basis, matrix - torch.eye(len(matrix)).to(matrix))


def mean_shift(source: Tensor, target: Tensor) -> Transport:
    """Gives the map T(x) = x + (μt − μs), of rank 0.

    Args:
        source: Activations to move, (N, D), any floating dtype.
        target: Activations to be met, (M, D).

    Raises:
        ValueError: Samples are not finite, fewer than 2 or of different widths.
    """
    source, target = _samples(source, target)
    mean = source.mean(0)
    return Transport(mean, target.mean(0) - mean, mean.new_zeros(len(mean), 0), mean.new_zeros(0, 0))


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


def _check_rows(x: Tensor, width: int) -> None:
    if x.ndim != 2 or x.shape[1] != width:
        raise MegaValueError(f"`x` must have shape (N, {width}) for this map, but got {tuple(x.shape)}.")


def _check_options(rank: int | float | None, max_rank: int, regularization: float) -> None:
    wanted = "`rank` must be a positive int, a share in (0, 1) or None for the whole span"
    if isinstance(rank, bool) or (isinstance(rank, int) and rank < 1):
        raise MegaValueError(f"{wanted}, but got {rank}; `mean_shift` gives the map of rank 0.")
    if isinstance(rank, float) and not 0 < rank < 1:
        raise MegaValueError(f"{wanted}, but got {rank}.")
    if max_rank < 1:
        raise MegaValueError(f"`max_rank` must be at least 1, but got {max_rank}.")
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
