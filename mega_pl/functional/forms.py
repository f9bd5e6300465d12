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
    """Write a map as a dense one: W = I + α B M Bᵀ and b = α (δ − B M c).

    Args:
        transport: The map T(x) = x + α (δ + B M (Bᵀ x − c)).
        strength: Its α.
    """
    wide = transport.cast(torch.float64)
    inside = strength * wide.basis @ wide.matrix
    bias = strength * wide.shift - inside @ wide.center
    return Affine((torch.eye(len(bias)).to(inside) + inside @ wide.basis.T).float(), bias.float())


def reft(transport: Transport) -> Reft:
    """Write a map as LoReFT does, exactly and with D · K numbers: its strength α is LoReFT's scale s.

    With B = Q S, Q having orthonormal columns (B's own are, but for their rounding), R holds Q and, where δ is not in
    its span, one direction more; with S M padded by zeros, W = Rᵀ + S M Sᵀ Rᵀ and b = Rᵀ δ − S M c. A map that moves
    nothing has K = 0.

    Args:
        transport: The map T(x) = x + α (δ + B M (Bᵀ x − c)).
    """
    wide = transport.cast(torch.float64)
    basis, mixing = torch.linalg.qr(wide.basis)
    outside = wide.shift - basis @ (basis.T @ wide.shift)
    beyond = bool(outside.norm() > ROUNDING * wide.shift.norm())
    extra = (outside / outside.norm())[:, None] if beyond else outside[:, None][:, :0]
    rotation = torch.cat([basis, extra], 1)
    inside = rotation.new_zeros(rotation.shape[1], wide.rank)
    inside[: wide.rank] = mixing @ wide.matrix
    weight = rotation.T + inside @ wide.basis.T
    bias = rotation.T @ wide.shift - inside @ wide.center
    return Reft(rotation.float(), weight.float(), bias.float())
