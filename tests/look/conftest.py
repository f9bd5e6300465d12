"""A lab model whose edits are those of two facts, for all parts of the page."""

from __future__ import annotations

import pytest

from mega_pl import EditBank, fit, load
from mega_pl.backbone import Backbone
from mega_pl.look.studio import Studio
from tests.look.capitals import capital


@pytest.fixture(scope="session")
def lab() -> Backbone:
    return load("lab-gpt2")


@pytest.fixture(scope="session")
def bank(lab: Backbone) -> EditBank:
    return fit(lab, [capital("France", "Paris", "Berlin"), capital("Norway", "Oslo", "Stockholm")])


@pytest.fixture
def studio(lab: Backbone, bank: EditBank) -> Studio:
    return Studio(lab, bank)
