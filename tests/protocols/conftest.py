"""Backbones, cases with every kind of prompt, and three kinds of editors, for all protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mega_pl.asking import Edited
from mega_pl.backbone import Backbone, load
from mega_pl.data.readers.translations import TranslatedCase, Translation
from mega_pl.edits import EditCase, EditRequest, Probe, Query, RippleTest


class Idle:
    """Changes nothing."""

    name = "idle"

    @contextmanager
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Iterator[Edited]:
        yield Edited()


class Shaken:
    """Shakes a weight of the third block's MLP."""

    name = "shaken"

    @contextmanager
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Iterator[Edited]:
        weight = backbone.model.get_submodule("transformer.h.2.mlp.c_proj").weight
        before = weight.detach().clone()
        weight += 0.5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        try:
            yield Edited()
        finally:
            weight.copy_(before)


class Told(Edited):
    """Prompts with a sentence before them; says which edit it tells for those that name its subject."""

    def __init__(self, requests: Sequence[EditRequest]) -> None:
        self.facts = "".join(f"{r.filled} {r.target_new}. " for r in requests)

    def prompt(self, text: str) -> str:
        return self.facts + text


class InContext:
    """Tells the new facts before each prompt."""

    name = "in-context"

    @contextmanager
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Iterator[Edited]:
        yield Told(requests)


EDITORS = (Idle(), Shaken(), InContext())


@pytest.fixture
def backbone(roomy_folder: Callable[[str], Path]) -> Backbone:
    return load(str(roomy_folder("gpt2")))


def query(prompt: str, *entities: tuple[str, ...]) -> Query:
    return Query(prompt=prompt, answers=entities)


@pytest.fixture
def cases() -> list[EditCase]:
    """A case with everything and one with little."""
    france = EditRequest(
        edit_id="france", prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris"
    )
    darrieux = EditRequest(
        edit_id="darrieux",
        prompt="The mother tongue of {} is",
        subject="Danielle Darrieux",
        target_new="English",
        target_true="French",
    )
    return [
        TranslatedCase(
            request=france,
            translations=(
                Translation(language="de", questions=("Was ist die Hauptstadt?",), new="Rom", true="Paris"),
                Translation(language="zh", questions=("法国的首都是哪里",), new="罗马", true="巴黎"),
            ),
            paraphrase_prompts=("The city that is the capital of France is", "France has its capital in"),
            neighborhood_prompts=("The capital of Spain is", "The capital of Germany is", "The capital of Italy is"),
            attribute_prompts=("The capital of Italy is", "Italy has its capital in"),
            generation_prompts=("France is", "He was born in France and", "France is"),
            relation_specificity=(
                Probe(
                    prompt="The official language of France is",
                    answers=("French",),
                    condition_prompt="The official language of France is",
                    condition_answers=("French",),
                ),
            ),
            compositionality_1=(Probe(prompt="The country of the capital of France is", answers=("Italy",)),),
            compositionality_2=(Probe(prompt="The capital of the country of Paris is", answers=("Rome",)),),
            subject_aliasing=(Probe(prompt="The capital of the French Republic is", answers=("Rome", "Roma", "R")),),
            locality=(Probe(prompt="Berlin is the capital of", answers=("Germany",)),),
            portability=(Probe(prompt="The language of the capital of France is", answers=("Italian",)),),
            ripple=(
                RippleTest(
                    axis="Compositionality_I",
                    queries=(query("The country of the capital of France is", ("Italy", "Italian Republic")),),
                    conditions=(query("The country of Rome is", ("Italy",)),),
                ),
                RippleTest(
                    axis="Logical_Generalization",
                    queries=(query("Rome is the capital of", ("France",)), query("Paris is a city in", ("France",))),
                    every=True,
                ),
                RippleTest(axis="Forgetfulness", queries=(query("A city in France is", ("Paris",)),)),
                RippleTest(
                    axis="Subject_Aliasing",
                    queries=(query("The capital of the French Republic is", ("Rome", "City of Rome")),),
                    filterable=False,
                ),
            ),
        ),
        EditCase(
            request=darrieux,
            paraphrase_prompts=("As a child, Danielle Darrieux spoke",),
            neighborhood_prompts=("The mother tongue of Jean Cocteau is",),
            generation_prompts=("Danielle Darrieux works as",),
        ),
    ]


@pytest.fixture
def editors() -> tuple[Idle, Shaken, InContext]:
    """Editors that change nothing, the weights, and the prompts."""
    return EDITORS
