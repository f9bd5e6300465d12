"""The forms in which other runtimes know affine maps: a dense one, and LoReFT's of low rank.

Both are a `Transport` written differently. They are worked out in float64 and given in float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mega_pl.functional.transport import Transport

ROUNDING = 1e-6
"""Of a float32 vector what is left of it outside a basis that holds it."""


@dataclass(frozen=True, eq=False)
class Affine:
    """The map h → W h + b.

    Args:
        weight: W, (D, D) float32.
        bias: b, (D,) float32.
    """

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class Reft:
    """The map h → h + s R (W h + b − Rᵀ h) of LoReFT (Eq. 3 of arXiv:2404.03592), with s a scale of its runtime's.

    Args:
        rotation: R, orthonormal columns, (D, K) float32.
        weight: W, (K, D) float32.
        bias: b, (K,) float32.
    """

    rotation: Tensor
    weight: Tensor
    bias: Tensor


def affine(transport: Transport, strength: float = 1.0) -> Affine:
    """Write a map as a dense one: W = I + α B M Bᵀ and b = α (δ − B M Bᵀ μ).

    Args:
        transport: The map T(x) = x + α (δ + B M Bᵀ (x − μ)).
        strength: Its α.
    """
    wide = transport.cast(torch.float64)
    moved = strength * wide.basis @ wide.matrix @ wide.basis.T
    bias = strength * wide.shift - moved @ wide.mean
    return Affine((torch.eye(len(bias)).to(moved) + moved).float(), bias.float())


def reft(transport: Transport) -> Reft:
    """Write a map as LoReFT does, exactly and with D · K numbers: its strength α is LoReFT's scale s.

    R holds B and, where δ is not in its span, one direction more; with M padded by zeros, W = (I + M) Rᵀ and
    b = Rᵀ δ − M Rᵀ μ. A map that moves nothing has K = 0.

    Args:
        transport: The map T(x) = x + α (δ + B M Bᵀ (x − μ)).
    """
    wide = transport.cast(torch.float64)
    outside = wide.shift - wide.basis @ (wide.basis.T @ wide.shift)
    beyond = bool(outside.norm() > ROUNDING * wide.shift.norm())
    extra = (outside / outside.norm())[:, None] if beyond else outside[:, None][:, :0]
    rotation = torch.cat([wide.basis, extra], 1)
    count = rotation.shape[1]
    matrix = rotation.new_zeros(count, count)
    matrix[: wide.rank, : wide.rank] = wide.matrix
    weight = (torch.eye(count).to(matrix) + matrix) @ rotation.T
    bias = rotation.T @ wide.shift - matrix @ rotation.T @ wide.mean
    return Reft(rotation.float(), weight.float(), bias.float())
