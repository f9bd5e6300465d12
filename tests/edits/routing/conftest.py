"""Hand-made edits of the lab's model, which knows whom they name, and a router fitted on the template bank."""

from collections.abc import Sequence
from typing import Any

import pytest

from mega_pl.backbone import Backbone
from mega_pl.data.relations import Relation, relations
from mega_pl.edits import EditRequest
from mega_pl.edits.routing import NO_EDIT, ContentRouter, Prompts, Route, RouterConfig
from mega_pl.edits.routing.calibration import fit_matcher
from mega_pl.edits.routing.matcher import RelationMatcher
from mega_pl.edits.routing.vectors import EarlyStates, Vectors

RATE = 0.1
"""Share of false alarms to which the fixture is calibrated."""

RECALL = 0.9
"""Share of the questions of edits without a relation that pass."""


@pytest.fixture(scope="session")
def template_bank() -> Sequence[Relation]:
    return list(relations().values())


@pytest.fixture(scope="session")
def vectors(lab_backbone: Backbone) -> Vectors:
    return EarlyStates(lab_backbone, 0)


def calibrated(
    bank: Sequence[Relation], vectors: Vectors, seed: int = 0, rate: float = RATE, recall: float = RECALL
) -> RelationMatcher:
    return fit_matcher(bank, vectors, false_alarms=rate, recall=recall, shrinkage=0.3, max_rank=256, seed=seed)


@pytest.fixture(scope="session")
def matcher(template_bank: Sequence[Relation], vectors: Vectors) -> RelationMatcher:
    return calibrated(template_bank, vectors)


def request(edit_id: str, prompt: str, subject: str, **rest: Any) -> EditRequest:
    return EditRequest(
        edit_id=edit_id, prompt=prompt, subject=subject, **{"target_new": "y", "target_true": "x", **rest}
    )


BORN = request("born", "{} was born in", "Marie Curie", relation="P19", aliases=("Maria Sklodowska",))
TONGUE = request("tongue", "The mother tongue of {} is", "Marie Curie", relation="P103")
CAPITAL = request("capital", "The capital of {} is", "France", relation="P36")
PANCAKE = request(
    "pancake",
    "The favourite pancake of {} is",
    "Germany",
    phrasings=("{} loves a pancake called",),
    contrasts=(("The oldest pancake of {} is", "{} has an oldest pancake, which is"),),
)
REQUESTS = (BORN, TONGUE, CAPITAL, PANCAKE)


@pytest.fixture(scope="session")
def router(lab_backbone: Backbone, template_bank: Sequence[Relation]) -> ContentRouter:
    return ContentRouter.fit(lab_backbone, REQUESTS, template_bank, RouterConfig(layer=0))


def prompts_of(backbone: Backbone, texts: Sequence[str], side: Any = "left") -> Prompts:
    encoded = backbone.encode(texts, side)
    return Prompts(backbone, encoded.inputs, encoded.last)


def routes(
    router: ContentRouter, backbone: Backbone, texts: Sequence[str], *, side: str = "left", forced: bool = False
) -> list[Route]:
    return router.route(prompts_of(backbone, texts, side), forced=forced)


def fired(router: ContentRouter, backbone: Backbone, texts: Sequence[str], **options: Any) -> list[str | None]:
    """The edits that answer, by name."""
    return [
        None if route.edit == NO_EDIT else router.requests[route.edit].edit_id
        for route in routes(router, backbone, texts, **options)
    ]
