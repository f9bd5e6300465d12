"""Second moments of activations, accumulated as they come."""

import torch
from torch import Tensor

from mega_pl.errors import MegaValueError


class SecondMoment:
    """Uncentred second moment of vectors, ``M = (1/N) sum_n x_n x_n^T``, from batches of any size.

    Products of a batch are taken in float32 at least and added up in float64, so that neither the length of the stream
    nor the cuts between batches matter beyond the rounding of one batch.

    Args:
        width: F, the length of the vectors.
        device: Where to add up.

    Attributes:
        sums: (F, F) float64, the sum of the outer products so far.
        count: How many vectors it is of.
    """

    def __init__(self, width: int, device: torch.device | str | None = None) -> None:
        if width < 1:
            raise MegaValueError(f"`width` must be at least 1, but got {width}.")
        self.sums = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.count = 0

    def update(self, vectors: Tensor) -> None:
        """Add vectors (N, F) of any floating dtype; N may be 0.

        Raises:
            ValueError: If they have another shape, or one is not finite.
        """
        if vectors.dim() != 2 or vectors.shape[1] != len(self.sums):
            raise MegaValueError(f"`vectors` must have shape (N, {len(self.sums)}), but got {tuple(vectors.shape)}.")
        wide = vectors.to(self.sums.device, torch.promote_types(vectors.dtype, torch.float32))
        product = wide.T @ wide
        if not product.diagonal().isfinite().all():
            raise MegaValueError("`vectors` must be finite, but at least one is not, or its square is not.")
        self.sums += product
        self.count += len(vectors)

    def compute(self) -> Tensor:
        """The moment (F, F), float64.

        Raises:
            ValueError: If there was no vector.
        """
        if self.count == 0:
            raise MegaValueError("a second moment must be of at least one vector, but there was none.")
        return self.sums / self.count
