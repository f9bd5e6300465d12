"""Bare and edited answers side by side: what is changed, what is not, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mega_pl import EditBank
from mega_pl.backbone import Backbone
from mega_pl.commands.predict import why
from mega_pl.edits import NO_EDIT, Route
from mega_pl.edits.prediction import Prediction, predict
from mega_pl.edits.routing import CentreRouter

BORN = "Marie Curie was born in"
OTHERS = ["The capital of France is", "Oslo is the capital of"]


@pytest.fixture(scope="module")
def bank(bank_folder: Path) -> EditBank:
    return EditBank.from_pretrained(bank_folder)


def test_an_edit_shows_and_tells_why(lab_backbone: Backbone, bank: EditBank) -> None:
    first, edited, last = predict(lab_backbone, bank, [OTHERS[0], BORN, OTHERS[1]], 4)
    assert (edited.bare.strip().rstrip("."), edited.edited.strip()[:4]) == ("Warsaw", "Rome")
    assert edited.fired == "curie"
    assert why(edited).startswith("subject 'Marie Curie', relation place of birth")
    assert edited.to_json()["evidence"] == dict(edited.route.evidence)
    for other in (first, last):
        assert other.fired is None
        assert other.edited == other.bare
        assert why(other) == "no edit is near"


@pytest.mark.parametrize("tokens", [1, 20, 4096])
def test_batches_change_nothing_and_keep_the_order(tokens: int, lab_backbone: Backbone, bank: EditBank) -> None:
    prompts = [*OTHERS, BORN, "In Paris, " + OTHERS[0], BORN]
    found = predict(lab_backbone, bank, prompts, 4, tokens_per_batch=tokens)
    assert [prediction.prompt for prediction in found] == prompts
    alone = [predict(lab_backbone, bank, [prompt], 4)[0] for prompt in prompts]
    assert [(p.bare, p.edited, p.fired) for p in found] == [(p.bare, p.edited, p.fired) for p in alone]


def test_no_prompts_no_predictions(lab_backbone: Backbone, bank: EditBank) -> None:
    assert predict(lab_backbone, bank, []) == []


def test_no_token_is_refused(lab_backbone: Backbone, bank: EditBank) -> None:
    with pytest.raises(ValueError, match="`max_new_tokens` must be 1 or more, but got 0"):
        predict(lab_backbone, bank, [BORN], 0)


def test_a_router_that_names_nothing_says_how_sure_it_is(lab_backbone: Backbone, bank: EditBank) -> None:
    nearest = CentreRouter(torch.zeros(1, lab_backbone.width), torch.full((1,), 1e9), layer=0)
    (found,) = predict(lab_backbone, replace(bank, router=nearest), [OTHERS[0]], 1)
    assert (found.fired, why(found)) == ("curie", "confidence 1.00")


def test_a_near_miss_names_what_it_saw() -> None:
    route = Route(NO_EDIT, confidence=0.2, subject="Marie Curie", relation="P19 or X")
    told = "subject 'Marie Curie', relation place of birth or X, confidence 0.20"
    assert why(Prediction("a", "b", "b", None, route)) == told
