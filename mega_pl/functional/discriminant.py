"""A linear space in which samples of one class lie close together and everything else is far."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mega_pl.errors import MegaValueError

CHUNK = 4096
"""Samples that are in float64 at a time."""


@dataclass(frozen=True)
class Discriminant:
    """A fitted projection onto the unit sphere, ``z = (x - mean) W / |(x - mean) W|``.

    Args:
        mean: (F,) mean of the samples.
        projection: (F, K) whitening ``W`` of the scatter within classes.
    """

    mean: Tensor
    projection: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Project (..., F) to unit vectors (..., K)."""
        return F.normalize((x.to(self.mean.dtype) - self.mean) @ self.projection, dim=-1)


def fit_discriminant(samples: Tensor, classes: Tensor, *, shrinkage: float = 0.1, max_rank: int = 512) -> Discriminant:
    r"""Whiten the scatter within classes, as linear discriminant analysis does before it ranks directions.

    With ``S`` the covariance of the samples around their class means, shrunk towards its mean eigenvalue ``s``
    (Ledoit and Wolf, 2004), in the span of the leading ``max_rank`` principal directions ``P`` of all samples:

        W = P V D^{-1/2},   (1 - shrinkage) P^T S P + shrinkage * s * I = V D V^T.

    Cosines in this space weigh a direction by how little it varies between phrasings of one question.

    Args:
        samples: (N, F), solved in float64.
        classes: (N,) long, in [0, C).
        shrinkage: In (0, 1].
        max_rank: The most directions to keep.

    Raises:
        ValueError: If a setting is out of range, shapes differ, or no class has two samples.
    """
    if not 0 < shrinkage <= 1:
        raise MegaValueError(f"`shrinkage` must lie in (0, 1], but got {shrinkage}.")
    if samples.dim() != 2 or classes.shape != samples.shape[:1]:
        raise MegaValueError(
            f"`samples` must be (N, F) with N `classes`, but got {tuple(samples.shape)} and {tuple(classes.shape)}."
        )
    if int(torch.bincount(classes).max()) < 2:
        raise MegaValueError("`classes` must hold one with at least 2 samples, but every sample is alone.")
    mean = torch.stack([part.double().sum(0) for part in torch.split(samples, CHUNK)]).sum(0) / len(samples)
    principal = _principal(samples, mean, max_rank)
    reduced = torch.cat([(part.double() - mean) @ principal for part in torch.split(samples, CHUNK)])
    within = reduced - class_means(reduced, classes)[classes]
    scatter = within.T @ within / len(within)
    size = len(scatter)
    scatter = (1 - shrinkage) * scatter + shrinkage * scatter.diagonal().mean() * torch.eye(size, dtype=scatter.dtype)
    values, vectors = torch.linalg.eigh(scatter)
    return Discriminant(mean.float(), (principal @ (vectors * values.rsqrt())).float())


def class_means(samples: Tensor, classes: Tensor) -> Tensor:
    """Mean (C, F) of the samples (N, F) of each class; a class without samples gets zeros."""
    count = int(classes.max()) + 1
    sums = samples.new_zeros(count, samples.shape[1]).index_add_(0, classes, samples)
    return sums / torch.bincount(classes, minlength=count).clamp(min=1)[:, None]


def _principal(samples: Tensor, mean: Tensor, max_rank: int) -> Tensor:
    """Leading principal directions (F, K) of samples (N, F) with a variance that is not rounding."""
    if samples.shape[0] >= samples.shape[1]:
        scatter = mean.new_zeros(len(mean), len(mean))
        for part in torch.split(samples, CHUNK):
            centred = part.double() - mean
            scatter.addmm_(centred.T, centred)
        values, vectors = torch.linalg.eigh(scatter)
    else:
        centred = samples.double() - mean
        values, left = torch.linalg.eigh(centred @ centred.T)
        vectors = centred.T @ left / values.clamp(min=1e-300).sqrt()
    keep = values > 1e-10 * values[-1]
    leading: Tensor = vectors[:, keep].flip(1)[:, :max_rank]
    return leading
