"""A small model and banks fitted on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mega_pl.backbone import Backbone, load
from mega_pl.edits import EditBank, EditRequest
from mega_pl.fitting import fit

CAPITAL, TONGUE = "The capital of {} is", "The mother tongue of {} is"


def edit(edit_id: str, subject: str, new: str, true: str, prompt: str = CAPITAL) -> EditRequest:
    return EditRequest(
        edit_id=edit_id, prompt=prompt, subject=subject, target_new=new, target_true=true, relation="P36"
    )


FRANCE, GERMANY, ITALY, SPAIN = (
    edit("france", "France", "Rome", "Paris"),
    edit("germany", "Germany", "London", "Berlin"),
    edit("italy", "Italy", "Paris", "Rome"),
    edit("spain", "Spain", "Berlin", "Rome"),
)


@pytest.fixture(scope="session")
def lm(roomy_folder: Callable[[str], Path]) -> Backbone:
    """A random model that reads prompts of a whole fit."""
    return load(str(roomy_folder("gpt2")))


@pytest.fixture(scope="session")
def three(lm: Backbone) -> EditBank:
    """A bank of three edits."""
    return fit(lm, [FRANCE, GERMANY, ITALY])
