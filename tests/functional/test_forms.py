"""A map in the forms of other runtimes moves activations as the map itself does."""

import pytest
import torch

from mega_pl.functional import Transport, affine, fit_transport, mean_shift, reft, shifting

DRAW = torch.Generator().manual_seed(0)
D, N = 24, 7


def clouds() -> tuple[torch.Tensor, torch.Tensor]:
    """Two clouds far from the origin, as activations are."""
    far = 50 * torch.randn(D, generator=DRAW)
    return torch.randn(9, D, generator=DRAW) + far, 2 * torch.randn(8, D, generator=DRAW) + far + 3


def maps() -> dict[str, Transport]:
    source, target = clouds()
    fitted = fit_transport(source, target)
    basis = torch.linalg.qr(torch.randn(D, 4, generator=DRAW))[0]
    half = torch.randn(4, 4, generator=DRAW)
    mean, shift = torch.randn(2, D, generator=DRAW)
    return {
        "fitted": fitted,
        "float32": fitted.cast(torch.float32),
        "shift beside the basis": Transport(shift, basis, half + half.T, mean @ basis),
        "no shift": Transport(torch.zeros(D), basis, half + half.T, mean @ basis),
        "only a shift": mean_shift(source, target),
        "nothing": shifting(torch.zeros(D)),
        "in bytes": fitted.rounded("int8", source.double().mean(0)),
    }


MAPS = maps()


def assert_near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("strength", [1.0, 0.5, 1.5])
def test_both_forms_are_the_map(name: str, strength: float) -> None:
    transport = MAPS[name]
    x = clouds()[0][:N].to(torch.float32)
    dense, low = affine(transport, strength), reft(transport)
    assert_near(x @ dense.weight.T + dense.bias, transport(x, strength))
    moved = x + strength * ((x @ low.weight.T + low.bias - x @ low.rotation) @ low.rotation.T)
    assert_near(moved, transport(x, strength))


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("fitted", 0),
        ("float32", 0),
        ("shift beside the basis", 1),
        ("no shift", 0),
        ("only a shift", 1),
        ("nothing", 0),
    ],
)
def test_only_a_shift_beside_the_basis_takes_a_direction_more(name: str, extra: int) -> None:
    rotation = reft(MAPS[name]).rotation
    assert rotation.shape == (D, MAPS[name].rank + extra)
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(rotation.shape[1]), atol=1e-6, rtol=0)
