"""The lab's edits as Lightning data."""

from dataclasses import replace

import pytest

from mega_pl.asking import argmax_tokens
from mega_pl.data.relations import relations, second_hops
from mega_pl.lab import data
from mega_pl.lab.data import LabDataModule


def cases(**settings):
    module = LabDataModule(**settings)
    module.setup("fit")
    return module.cases


@pytest.mark.parametrize("split", ["dev", "test"])
def test_plain_edits_say_what_published_records_do(split):
    full, plain = cases(split=split), cases(split=split, plain=True)
    assert len(full) == len(plain) > 100
    assert any(case.request.implications and case.request.contrasts for case in full)  # control
    for one, bare in zip(full, plain, strict=True):
        made = {"phrasings": bare.request.phrasings, "implications": bare.request.implications}
        request = replace(one.request, **made, contrasts=(), aliases=())
        assert bare == replace(one, request=request)  # what evaluates it is the same
        assert set(bare.request.phrasings) <= set(relations()[bare.request.relation].phrasings)
        assert {t for group in bare.request.implications for t in group} <= second_hops(bare.request.relation).keys()
    assert sum(bool(case.request.phrasings) for case in plain) > 0.9 * len(plain)


def test_edits_are_those_whose_object_a_model_gives(lab_backbone, monkeypatch):
    every = cases(split="dev", plain=True)
    first = [lab_backbone.answer_ids(case.request.filled, case.request.target_true)[0] for case in every]
    assert argmax_tokens(lab_backbone, [case.request.filled for case in every]) == first  # as records are made
    assert cases(split="dev", plain=True, known_by="lab-gpt2") == every
    prompts: list[str] = []

    def knows_every_other(_, batch):
        prompts.extend(batch)
        return [token if i % 2 else -1 for i, token in enumerate(first)]

    monkeypatch.setattr(data, "argmax_tokens", knows_every_other)
    assert cases(split="dev", plain=True, known_by="lab-gpt2") == every[1::2]
    assert prompts == [case.request.filled for case in every]
    assert cases(split="dev", plain=True, known_by="lab-gpt2", limit=5) == every[1:11:2]  # of those known


def test_a_model_that_knows_nothing_leaves_nothing(tiny_folder):
    with pytest.raises(ValueError, match="must be less than the 0 edits read"):
        cases(split="dev", known_by=str(tiny_folder("gpt2")))
