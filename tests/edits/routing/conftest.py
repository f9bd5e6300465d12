"""The router's evidence, fitted on the template bank with the lab's model."""

from collections.abc import Sequence

import pytest

from mega_pl.backbone import Backbone
from mega_pl.data.relations import Relation, relations
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
