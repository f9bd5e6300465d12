"""Affine transport maps that carry one cloud of activations onto another.

`stack` puts the maps of many edits into one `Transports`, which moves a batch whose rows belong to different edits.
`gaussian` solves maps, in float64; they are rounded afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from mega_pl.errors import MegaNumericError, MegaValueError

MapDtype = Literal["float32", "int8"]
"""What the vectors of a map may be kept in; with int8 those of its basis alone, and its shift in float16."""

SHIFT_DTYPES = {"float32": torch.float32, "int8": torch.float16}
BASIS_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(MapDtype)}


@dataclass(frozen=True, eq=False)
class Transport:
    """One affine map that is the identity up to a shift outside a low-rank basis.

    T(x) = x + α (δ + B M (Bᵀ x − c)), with α the strength, δ the `shift`, B the `basis`, M the `matrix` and c = Bᵀ μ
    the `center`, μ being the mean of the source activations, which goes to μ + αδ.

    Args:
        shift: Mean of the target minus mean of the source, (D,).
        basis: Columns that are orthonormal but for their rounding and their lengths, (D, R); R may be 0.
        matrix: Map inside the basis minus the identity, (R, R), symmetric, in float32 at least.
        center: The mean inside the basis, (R,), in the dtype of `matrix`.
    """

    shift: Tensor
    basis: Tensor
    matrix: Tensor
    center: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the map is made of, in the order of the arguments."""
        return self.shift, self.basis, self.matrix, self.center

    @property
    def rank(self) -> int:
        """Number of directions in which the map does more than shift."""
        return self.basis.shape[1]

    def __call__(self, x: Tensor, strength: float = 1.0) -> Tensor:
        """Moves activations, in the wider of their dtype and that of `matrix`, and returns them in their own.

        Args:
            x: Activations, (N, D).
            strength: Multiple of the full move; 0 gives `x` itself back.

        Raises:
            ValueError: `x` is not of shape (N, D).
        """
        _check_rows(x, self.shift.shape[-1])
        if strength == 0:
            return x
        wide = x.to(torch.promote_types(x.dtype, self.matrix.dtype))
        shift, basis, matrix, center = (t.to(wide) for t in self.tensors)
        return (wide + strength * (shift + (wide @ basis - center) @ matrix @ basis.T)).to(x.dtype)

    def cast(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Transport":
        """Gives the same map in another dtype or on another device; None keeps what it has."""
        return Transport(*(t.to(device=device, dtype=dtype) for t in self.tensors))

    def rounded(self, dtype: MapDtype, mean: Tensor) -> "Transport":
        """Gives the map with `shift` and `basis` in a smaller dtype and the rest in float32.

        The mean still goes to where it went, but for the rounding of `shift`. With int8 the columns of B are scaled so
        that their largest number is 127, which M makes up for.

        Args:
            dtype: What is kept.
            mean: Of the source activations, (D,).

        Raises:
            FloatingPointError: A number is too large for the dtype.
        """
        shift, basis, matrix = self.shift.to(SHIFT_DTYPES[dtype]), self.basis, self.matrix
        if not shift.isfinite().all():
            raise MegaNumericError(
                f"the shift of a map must fit into float16, but reaches {float(self.shift.abs().max()):.3g}; "
                "choose `dtype` float32 for maps."
            )
        if dtype == "int8":
            scale = basis.abs().amax(0) / 127
            basis, matrix = (basis / scale).round(), scale[:, None] * matrix * scale
        basis = basis.to(BASIS_DTYPES[dtype])
        return Transport(shift, basis, matrix.float(), (basis.double().T @ mean.double()).float())


@dataclass(frozen=True, eq=False)
class Transports:
    """The maps of E edits, one behind the other in one set of tensors, without padding.

    Row n of `apply` equals `self[edit[n]]` on that row. Tensors may be of a file that is read where it is touched.

    Args:
        shift: (E, D).
        basis: (S, D), the directions of all maps, `ranks[e]` rows of edit e.
        matrix: (Q,), the matrices of all maps, `ranks[e]`² numbers of edit e, row by row.
        center: (S,), the means inside the directions.
        ranks: Rank of each map, (E,), int64.
    """

    shift: Tensor
    basis: Tensor
    matrix: Tensor
    center: Tensor
    ranks: Tensor

    def __len__(self) -> int:
        return self.shift.shape[0]

    def __getitem__(self, index: int) -> Transport:
        rank = int(self.ranks[index])
        rows, numbers = int(self._rows[index]), int(self._numbers[index])
        basis = self.basis[rows : rows + rank].T
        matrix = self.matrix[numbers : numbers + rank * rank].view(rank, rank)
        return Transport(self.shift[index], basis, matrix, self.center[rows : rows + rank])

    @cached_property
    def _rows(self) -> Tensor:
        """Where the directions of each map begin, (E,)."""
        return self.ranks.cumsum(0) - self.ranks

    @cached_property
    def _numbers(self) -> Tensor:
        """Where the matrix of each map begins, (E,)."""
        return self.ranks.square().cumsum(0) - self.ranks.square()

    def apply(self, x: Tensor, edit: Tensor, strength: float = 1.0) -> Tensor:
        """Moves each row by the map of its edit, in the wider of its dtype and that of `matrix`.

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
        _check_rows(x, self.shift.shape[-1])
        if edit.shape != x.shape[:1]:
            raise MegaValueError(f"`edit` must hold one index a row, shape ({len(x)},), but got {tuple(edit.shape)}.")
        if len(x) == 0 or strength == 0:
            return x
        low, high = (int(bound) for bound in torch.aminmax(edit))
        if low < 0 or high >= len(self):
            raise MegaValueError(f"`edit` must lie in [0, {len(self) - 1}] for these maps, but got {low} to {high}.")
        wide = x.to(torch.promote_types(x.dtype, self.matrix.dtype))
        moved = self.shift[edit].to(wide)
        if bool(self.ranks[edit].any()):
            basis, matrix, center = (t.to(wide) for t in self._padded(edit))
            inside = torch.bmm(wide.unsqueeze(1), basis.mT) - center.unsqueeze(1)
            moved = moved + torch.bmm(torch.bmm(inside, matrix), basis).squeeze(1)
        return (wide + strength * moved).to(x.dtype)

    def _padded(self, edit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Directions (N, R, D), matrices (N, R, R) and centers (N, R) of some maps, up to the largest rank."""
        ranks, widest = self.ranks[edit], int(self.ranks[edit].max())
        place = torch.arange(widest, device=edit.device)
        real = place < ranks[:, None]
        rows = (self._rows[edit][:, None] + place).masked_fill(~real, 0)
        numbers = self._numbers[edit][:, None, None] + place[:, None] * ranks[:, None, None] + place
        both = real[:, :, None] & real[:, None, :]
        matrix = self.matrix[numbers.masked_fill(~both, 0)].masked_fill(~both, 0)
        return self.basis[rows].masked_fill(~real[..., None], 0), matrix, self.center[rows].masked_fill(~real, 0)

    def select(self, indices: Tensor | Sequence[int]) -> "Transports":
        """Gives the maps at `indices`, in that order; no others are touched."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.shift.device)
        ranks = self.ranks[index]
        rows, numbers = _ranges(self._rows[index], ranks), _ranges(self._numbers[index], ranks.square())
        return Transports(self.shift[index], self.basis[rows], self.matrix[numbers], self.center[rows], ranks)

    def cast(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Transports":
        """Gives the same maps in another dtype or on another device; None keeps what they have."""
        shift, basis, matrix, center = (
            t.to(device=device, dtype=dtype) for t in (self.shift, self.basis, self.matrix, self.center)
        )
        return Transports(shift, basis, matrix, center, self.ranks.to(device=device))


def _ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """The numbers from each start on, as many as its length, one range behind the other."""
    ends = lengths.cumsum(0)
    offsets = (starts - (ends - lengths)).repeat_interleave(lengths)
    return offsets + torch.arange(len(offsets), device=starts.device)


def map_bytes(width: int, rank: int, dtype: MapDtype) -> int:
    """Gives the bytes of a map that is kept in a dtype.

    Args:
        width: D.
        rank: R.
        dtype: What is kept.
    """
    vectors = SHIFT_DTYPES[dtype].itemsize + rank * BASIS_DTYPES[dtype].itemsize
    return width * vectors + torch.float32.itemsize * rank * (rank + 1)


def shifting(shift: Tensor) -> Transport:
    """Gives the map T(x) = x + δ, of rank 0.

    Args:
        shift: δ, (D,).
    """
    return Transport(shift, shift.new_zeros(len(shift), 0), shift.new_zeros(0, 0), shift.new_zeros(0))


def stack(transports: Sequence[Transport]) -> Transports:
    """Puts maps of one width, dtype and device into one `Transports`; ranks may differ.

    Raises:
        ValueError: There is no map, or their widths, dtypes or devices differ.
    """
    if not transports:
        raise MegaValueError("`transports` must hold at least one map, but got none.")
    kinds = {(t.shift.shape[0], t.shift.dtype, t.shift.device) for t in transports}
    if len(kinds) > 1:
        found = ", ".join(sorted(f"({width}, {dtype}, {device})" for width, dtype, device in kinds))
        raise MegaValueError(f"`transports` must share one width, dtype and device, but got {found}; cast them first.")
    return Transports(
        shift=torch.stack([t.shift for t in transports]),
        basis=torch.cat([t.basis.T for t in transports]),
        matrix=torch.cat([t.matrix.flatten() for t in transports]),
        center=torch.cat([t.center for t in transports]),
        ranks=torch.tensor([t.rank for t in transports], device=transports[0].shift.device),
    )


def join(parts: Sequence[Transports]) -> Transports:
    """Puts the maps of several sets of one width, dtype and device one after the other."""
    names = ("shift", "basis", "matrix", "center", "ranks")
    return Transports(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _check_rows(x: Tensor, width: int) -> None:
    if x.ndim != 2 or x.shape[1] != width:
        raise MegaValueError(f"`x` must have shape (N, {width}) for this map, but got {tuple(x.shape)}.")
