"""How much a vector in the stream raises the log-probability of a token: exact scores, bounds and certified lists.

Neuron-level knowledge attribution (arXiv:2312.12141) reads everything through the final norm with one fixed scale σ, so
that logits are linear in the stream, z(u) = U (γ ⊙ C u / σ) with C the centring of a layer norm or the identity. With
LP(x) the log-probability of token w at x, p = softmax(z(x)) and a = z(u), the importance of u at x is

    I = LP(x + u) − LP(x) = a_w − log Σ_v p_v exp(a_v) = F − log(1 + Σ_v p_v h(a_v − ā)),

    ā = Σ_v p_v a_v,    F = a_w − ā,    h(t) = exp(t) − 1 − t ≥ 0.

F is linear in u, one product with a gradient of the stream's width, and never below I. The last form keeps the digits
of small importances, which a difference of two log-probabilities loses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mega_pl.errors import MegaValueError

_TILE = 2**18
"""Logits that are held at a time, in numbers; small enough to stay in the cache of a processor."""

_LIKELY = 64
"""Tokens whose part in a lower bound is computed exactly."""


@dataclass(frozen=True, eq=False)
class ReadOut:
    """The map from the stream to the logits with the scale of the final norm held fixed.

    Args:
        unembedding: (V, D) U, any floating dtype; a half-precision one is widened piece by piece.
        gain: (D,) γ, float32 or float64; everything is computed in its dtype.
        scale: () σ.
        centred: whether vectors are centred first.
        bias: (D,) what the final norm adds, or None to leave it out.
        cap: c of families whose logits are c · tanh(z / c), or None.
    """

    unembedding: Tensor
    gain: Tensor
    scale: Tensor
    centred: bool
    bias: Tensor | None = None
    cap: float | None = None

    def read(self, vectors: Tensor) -> Tensor:
        """Return γ ⊙ C u / σ for vectors u (..., D)."""
        vectors = vectors.to(self.gain)
        if self.centred:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        return vectors * (self.gain / self.scale)

    def pull_back(self, reads: Tensor) -> Tensor:
        """Return the transpose of `read`, applied to (..., D)."""
        vectors = reads * (self.gain / self.scale)
        return vectors - vectors.mean(-1, keepdim=True) if self.centred else vectors

    def logits(self, stream: Tensor) -> Tensor:
        """Return the logits (N, V) at points (N, D) of the stream."""
        reads = self.read(stream)
        if self.bias is not None:
            reads = reads + self.bias.to(reads)
        logits = reads.new_empty(len(reads), len(self.unembedding))
        for columns, tile in self.tiles(len(reads)):
            torch.mm(reads, tile.T, out=logits[:, columns])
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def tiles(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the vocabulary and their rows of U, so that `rows` vectors fill a tile of logits."""
        size = max(256, _TILE // max(1, rows))
        for start in range(0, len(self.unembedding), size):
            columns = slice(start, start + size)
            yield columns, self.unembedding[columns].to(self.gain)


def log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the log-probabilities (N, W), in nats, of tokens (W,) from logits (N, V)."""
    return logits[:, targets] - logits.logsumexp(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Expansion:
    """The log-probabilities of W tokens around G points of the stream, ready to score what is added there.

    Args:
        read_out: the linear map, without a cap.
        targets: (W,) long.
        probabilities: (G, V) p.
        mean: (G, D) Σ_v p_v U_v.
        gradient: (G, W, D) by the stream; F of u is its product with u.
    """

    read_out: ReadOut
    targets: Tensor
    probabilities: Tensor
    mean: Tensor
    gradient: Tensor

    @classmethod
    def at(cls, read_out: ReadOut, points: Tensor, targets: Tensor) -> Expansion:
        """Expand around points (G, D).

        Raises:
            ValueError: if the logits are capped and hence not linear in the stream.
        """
        return cls.of(read_out, read_out.logits(points), targets)

    @classmethod
    def of(cls, read_out: ReadOut, logits: Tensor, targets: Tensor) -> Expansion:
        """Expand around points whose logits (G, V) are known.

        Raises:
            ValueError: if the logits are capped and hence not linear in the stream.
        """
        if read_out.cap is not None:
            raise MegaValueError(f"`read_out` must be linear, but got a cap of {read_out.cap}; use the layer level.")
        probabilities = logits.softmax(-1)
        mean = read_out.gain.new_zeros(len(logits), len(read_out.gain))
        for columns, tile in read_out.tiles(len(logits)):
            mean.addmm_(probabilities[:, columns], tile)
        gradient = read_out.pull_back(read_out.unembedding[targets].to(mean) - mean[:, None])
        return cls(read_out, targets, probabilities, mean, gradient)

    def increase(self, components: Tensor, points: Tensor | None = None) -> Tensor:
        """Return the importance of each component at its point, exactly.

        Args:
            components: (N, M, D) M vectors for each of N points.
            points: (N,) long, indices of the points; None takes all in order.

        Returns:
            (N, M, W), in nats.
        """
        if not components.any():
            return components.new_zeros(*components.shape[:2], len(self.targets)).to(self.mean)
        points = torch.arange(len(self.mean), device=self.mean.device) if points is None else points
        reads = self.read_out.read(components)
        first = reads @ (self.read_out.unembedding[self.targets].to(reads) - self.mean[points, None]).mT
        curvature = self._curvature(reads, points)
        overflow = ~curvature.isfinite().all(-1)
        if overflow.any():  # some logit moves by more than 88 nats, the limit of float32
            curvature = curvature.double()
            curvature[overflow] = self._curvature(reads[overflow].double(), points[overflow])
        return first - curvature.log1p().to(first).unsqueeze(-1)

    def _curvature(self, reads: Tensor, points: Tensor) -> Tensor:
        """Return Σ_v p_v h(a_v − ā), (N, M), without Σ_v p_v (a_v − ā), which is 0."""
        flat = reads.flatten(0, 1)
        mean = (reads @ self.mean[points, :, None].to(reads)).view(-1, 1)
        total = reads.new_zeros(reads.shape[:2])
        for columns, tile in self.read_out.tiles(len(flat)):
            moved = torch.addmm(mean, flat, tile.T.to(flat), beta=-1).expm1_().view(*reads.shape[:2], -1)
            total += (moved @ self.probabilities[:, columns][points].unsqueeze(-1).to(moved)).squeeze(-1)
        return total


@dataclass(frozen=True, eq=False)
class Spread:
    """How far the rows of an unembedding lie from their mean Ū in any direction, bounded from above.

    Σ_v ((U_v − Ū) · y)² ≤ floor |y|² + Σ_j excess_j (direction_j · y)², from the leading eigenvectors of the scatter.

    Args:
        count: V.
        mean: (D,) Ū.
        radius: largest |U_v − Ū|.
        floor: the largest eigenvalue that is left out.
        excess: (R,) leading eigenvalues minus the floor.
        directions: (D, R) their eigenvectors.
    """

    count: int
    mean: Tensor
    radius: float
    floor: float
    excess: Tensor
    directions: Tensor

    @classmethod
    def of(cls, read_out: ReadOut, rank: int = 64) -> Spread:
        """Measure an unembedding; it takes V D² operations and holds for every prompt."""
        count, width = read_out.unembedding.shape
        mean = sum((tile.sum(0) for _, tile in read_out.tiles(width)), start=read_out.gain.new_zeros(width)) / count
        scatter, radius = mean.new_zeros(width, width), 0.0
        for _, tile in read_out.tiles(width):
            around = tile - mean
            scatter.addmm_(around.T, around)
            radius = max(radius, float(around.norm(dim=1).max()))
        values, vectors = torch.linalg.eigh(scatter)
        kept = min(rank, width - 1)
        floor = float(values[-kept - 1].clamp(min=0))
        return cls(count, mean, radius, floor, values[-kept:] - floor, vectors[:, -kept:])


def lower_bounds(expansion: Expansion, spread: Spread, point: int, rows: Tensor, activations: Tensor) -> Tensor:
    """Bound the importances of rank-one components m · row from below, without their logits.

    With S the likeliest tokens, q the largest probability outside S, b ≥ max_v (a_v − ā), and h(t) / t² increasing
    (Bennett's inequality),

        I ≥ F − log(1 + Σ_(v∈S) p_v h(a_v − ā) + q h(b) / b² Σ_v (a_v − ā)²).

    Args:
        expansion: around the points.
        spread: of the same unembedding; it bounds the last sum.
        point: index of the point that the components are added to.
        rows: (N, D).
        activations: (K, N) factors m.

    Returns:
        (K, N, W), in nats.
    """
    read_out, mean = expansion.read_out, expansion.mean[point]
    likely = expansion.probabilities[point].topk(min(_LIKELY + 1, spread.count))
    reads, drift = read_out.read(rows), spread.mean - mean
    length = reads.norm(dim=-1)
    square = spread.floor * length.square() + (reads @ spread.directions).square() @ spread.excess
    square += spread.count * (reads @ drift).square()
    moved = reads @ (read_out.unembedding[likely.indices[:-1]].to(reads) - mean).T
    reach = length * (spread.radius + drift.norm())
    first = rows.to(reads) @ expansion.gradient[point].T
    bounds = []
    for factor in activations:
        near = _h(factor[:, None] * moved) @ likely.values[:-1]
        limit = factor.abs() * reach
        bend = (_h(limit) / limit.square()).nan_to_num(posinf=torch.inf).clamp(min=0.5)
        far = likely.values[-1] * bend * factor.square() * square
        bounds.append(factor[:, None] * first - (near + far).log1p()[:, None])
    return torch.stack(bounds)


def _h(values: Tensor) -> Tensor:
    return (values.expm1() - values).clamp(min=0)


@dataclass(frozen=True, eq=False)
class Certified:
    """The largest of many scores, proven from bounds.

    Args:
        values: (K,) scores, largest first.
        indices: (K,) long, whose they are.
        evaluated: how many scores were computed for it.
    """

    values: Tensor
    indices: Tensor
    evaluated: int


def certified_top(bounds: Tensor, score: Callable[[Tensor], Tensor], count: int, step: int = 64) -> Certified:
    """Find the largest scores by computing them in the order of their upper bounds until no other can be larger.

    Args:
        bounds: (N,) upper bounds of the scores.
        score: gives the exact scores of indices (M,) long.
        count: K, how many to find, in [1, N].
        step: the most scores to compute at a time.

    Raises:
        ValueError: if `count` is out of range.
    """
    if not 1 <= count <= len(bounds):
        raise MegaValueError(f"`count` must lie in [1, {len(bounds)}], but got {count}.")
    ranked, order = bounds.sort(descending=True)
    values = torch.cat([score(part) for part in torch.split(order[:count], step)])
    while True:
        done, best = len(values), values.topk(count)
        unproven = int((ranked[done : done + step] > best.values[-1]).sum())
        if unproven == 0:
            return Certified(best.values, order[best.indices], done)
        values = torch.cat([values, score(order[done : done + unproven])])
