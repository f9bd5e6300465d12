"""Retrieval in context: the fact that a prompt asks for is told, and no other."""

import pytest
import torch

from mega_pl.editors import InContext, InContextConfig
from tests.editors.conftest import DARRIEUX, FRANCE, GERMANY, last_logits

TOLD = "New Fact: The capital of France is Rome\nPrompt: "


@pytest.mark.parametrize("retriever", ["router", "similarity"])
def test_the_fact_that_is_asked_for_is_told_and_no_other(backbone, retriever):
    with InContext(InContextConfig(retriever=retriever)).edit(backbone, [DARRIEUX, FRANCE]) as edited:
        assert edited.prompt(FRANCE.filled) == TOLD + FRANCE.filled
        assert "English or Spanish" in edited.prompt(DARRIEUX.filled)
        assert edited.prompt("A recipe for bread begins with") == "A recipe for bread begins with"
        assert edited.fired is None  # nothing acts inside the model


def test_the_router_hears_the_question_and_not_the_words(backbone):
    """Another subject in the same words is left alone, which words alone do not tell."""
    with InContext().edit(backbone, [FRANCE]) as edited:
        assert edited.prompt(GERMANY.filled) == GERMANY.filled
    with InContext(InContextConfig(retriever="similarity")).edit(backbone, [FRANCE]) as edited:
        assert edited.prompt(GERMANY.filled) == TOLD + GERMANY.filled


@pytest.mark.parametrize(("threshold", "told"), [(-1.0, True), (1.0, False)])
def test_the_threshold_is_a_cosine(backbone, threshold, told):
    config = InContextConfig(retriever="similarity", threshold=threshold)
    with InContext(config).edit(backbone, [FRANCE]) as edited:
        assert (edited.prompt("Bread") != "Bread") == told


def test_the_model_reads_what_is_told_and_nothing_else_changes(backbone):
    with InContext().edit(backbone, [FRANCE]) as edited:
        inside = last_logits(backbone, edited.prompt(FRANCE.filled))
        assert torch.equal(inside, last_logits(backbone, TOLD + FRANCE.filled))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retriever": "bm25"}, "`retriever` must be one of router, similarity, but got 'bm25'"),
        ({"threshold": 1.5}, r"`threshold` must lie in \[-1, 1\], but got 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InContextConfig(**settings)
