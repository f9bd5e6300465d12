"""Implications that a model follows."""

from dataclasses import replace

import pytest

from mega_pl.asking import argmax_tokens
from mega_pl.data.relations import implications, second_hops
from mega_pl.edits import EditRequest
from mega_pl.fitting.implications import with_followed_implications
from mega_pl.fitting.prompts import PRETEND

BORN = EditRequest(
    prompt="{} was born in",
    subject="Marie Curie",
    target_new="Rome",
    target_true="Warsaw",
    relation="P19",
    implications=implications("P19"),
)


@pytest.fixture(scope="module")
def followed(lab_backbone):
    return with_followed_implications(lab_backbone, [BORN])[0]


def test_those_are_kept_whose_answer_is_that_of_the_new_object_and_not_of_the_true_one(lab_backbone, followed):
    kept = {template for group in followed.implications for template in group}
    for (template,) in BORN.implications:
        alone = second_hops("P19")[template]
        supposed = PRETEND.format(p=BORN.filled, new="Rome", c=template.replace("{}", "Marie Curie"))
        said, new, true = argmax_tokens(
            lab_backbone, [supposed, alone.replace("{}", "Rome"), alone.replace("{}", "Warsaw")]
        )
        assert (template in kept) == (said == new != true)
    assert 0 < len(kept) < len(BORN.implications)  # control


def test_what_its_author_says_stays_whatever_the_model_answers(lab_backbone):
    own = replace(BORN, implications=(("The country of {} is",),))
    assert with_followed_implications(lab_backbone, [own]) == [own]


@pytest.mark.parametrize("follows", [True, False])
def test_a_supposed_fact_must_lead_where_the_new_object_leads(lab_backbone, monkeypatch, follows):
    def says(_, prompts):
        return [(2 if follows else 1) if p.startswith("Pretend") else 2 if "Rome" in p else 3 for p in prompts]

    monkeypatch.setattr("mega_pl.fitting.implications.argmax_tokens", says)
    kept = with_followed_implications(lab_backbone, [BORN])[0].implications
    assert kept == (BORN.implications if follows else ())


def test_a_model_that_says_the_same_whatever_is_supposed_follows_nothing(lab_backbone, monkeypatch):
    monkeypatch.setattr("mega_pl.fitting.implications.argmax_tokens", lambda backbone, prompts: [7] * len(prompts))
    assert with_followed_implications(lab_backbone, [BORN])[0].implications == ()


def test_other_edits_stay_as_they_are(lab_backbone):
    plain = replace(BORN, edit_id="plain", implications=())
    unknown = replace(BORN, edit_id="unknown", relation="")
    assert with_followed_implications(lab_backbone, [plain, unknown]) == [plain, unknown]
    assert with_followed_implications(lab_backbone, []) == []
