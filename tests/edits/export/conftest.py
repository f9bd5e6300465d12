"""Banks of three random edits with steps along their objects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mega_pl.backbone import Backbone, Site
from mega_pl.edits import EditBank, EditRequest
from mega_pl.edits.routing import CentreRouter
from mega_pl.functional import Transport, Transports, stack

OBJECTS = ((7, 11), (), (13,))
SUBJECTS = ("France", "Peru/Lima", "Chad")


def random_maps(width: int, count: int, draw: torch.Generator) -> Transports:
    maps = []
    for rank in range(1, count + 1):
        basis = torch.linalg.qr(torch.randn(width, rank, generator=draw))[0]
        half = torch.randn(rank, rank, generator=draw)
        mean, shift = torch.randn(2, width, generator=draw)
        maps.append(Transport(shift, basis, (half + half.T) / 2, mean @ basis))
    return stack(maps)


def make_bank(backbone: Backbone, *sites: Site, strength: float = 0.75) -> EditBank:
    draw = torch.Generator().manual_seed(0)
    return EditBank(
        requests=tuple(
            EditRequest(
                edit_id=name, prompt="The capital of {} is", subject=name, target_new="Rome", target_true="Paris"
            )
            for name in SUBJECTS
        ),
        maps={site: random_maps(backbone.width, sum(len(ids) + 1 for ids in OBJECTS), draw) for site in sites},
        objects=OBJECTS,
        router=CentreRouter(torch.zeros(3, backbone.width), torch.full((3,), 1e-2), layer=0),
        strength=strength,
        backbone={"name": backbone.name, "revision": backbone.revision, **backbone.fingerprint},
        settings={"seed": 0},
    )


@pytest.fixture
def stepped_bank() -> Callable[..., EditBank]:
    """`stepped_bank(backbone, *sites, strength=0.75)` makes a bank whose first edit has two steps, the second none."""
    return make_bank
