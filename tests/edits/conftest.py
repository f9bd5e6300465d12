"""A bank with random maps, whose gate knows its prompts by heart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from mega_pl.backbone import Backbone, Site
from mega_pl.edits import EditBank, EditRequest, Gate
from mega_pl.edits.gate import evidence
from mega_pl.functional import Transport, Transports, stack
from mega_pl.functional.discriminant import Discriminant

TinyBank = Callable[..., EditBank]

REQUESTS = (
    EditRequest(edit_id="a", prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris"),
    EditRequest(edit_id="b", prompt="{} is a city in", subject="Rome", target_new="Spain", target_true="Italy"),
    EditRequest(edit_id="c", prompt="{} works as a", subject="He", target_new="king", target_true="teacher"),
)
SITES = (Site(1, "resid_mid"), Site(2, "mlp_out"), Site(3, "resid_post"))
LAYERS = (0, -1)


def random_maps(width: int, ranks: tuple[int, ...], draw: torch.Generator) -> Transports:
    """Maps that move far, of different ranks."""
    maps = []
    for rank in ranks:
        basis = torch.linalg.qr(torch.randn(width, rank, generator=draw))[0]
        half = torch.randn(rank, rank, generator=draw)
        mean, shift = 3 * torch.randn(2, width, generator=draw)
        maps.append(Transport(mean, shift, basis, (half + half.T) / 2))
    return stack(maps)


def make(backbone: Backbone, ranks: tuple[int, ...] = (2, 9, 4), strength: float = 1.0) -> EditBank:
    draw = torch.Generator().manual_seed(0)
    seen = evidence(backbone, backbone.encode([request.filled for request in REQUESTS]).inputs, LAYERS)[:, -1]
    space = Discriminant(seen.mean(0), torch.eye(seen.shape[1]))
    return EditBank(
        requests=REQUESTS,
        maps={site: random_maps(backbone.width, ranks, draw) for site in SITES},
        gate=Gate(space, F.normalize(space(seen), dim=-1), torch.arange(3), 0.999),
        gate_layers=LAYERS,
        strength=strength,
        backbone={"name": backbone.name, "revision": backbone.revision, **backbone.fingerprint},
        settings={"seed": 0},
    )


@pytest.fixture
def tiny_bank() -> TinyBank:
    """`tiny_bank(backbone, ranks=(2, 9, 4), strength=1.0)` makes a bank of the edits a, b and c."""
    return make
