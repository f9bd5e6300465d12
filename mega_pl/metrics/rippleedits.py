"""The measures of RippleEdits (arXiv:2307.12976), one class an axis.

An edit's score on an axis is the share of its executed tests that pass, and an axis is the mean over the edits that
succeeded and have an executed test there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchmetrics import MetricCollection

from mega_pl.edits.request import RippleAxis
from mega_pl.errors import MegaValueError
from mega_pl.metrics.functional import mask_of
from mega_pl.metrics.means import MacroMean


def names_all(text: str, entities: Sequence[Sequence[str]]) -> bool:
    """Whether a text names every entity of an answer by one of its names.

    A name is found as a case-sensitive substring, as RippleEdits does, so that "Rome" is found in "Romeo". Names of
    one character count only if that is a digit; an entity without another name is never found.

    >>> names_all(" Paris and 7 others", [["Lutetia", "Paris"], ["7"]])
    True

    Args:
        text: what the model writes after the prompt, without the prompt.
        entities: the names of each entity.

    Raises:
        ValueError: if there is no entity.
    """
    if not entities:
        raise MegaValueError("`entities` must hold at least one entity, but got none.")
    return all(any(name in text for name in names if len(name) > 1 or name.isdigit()) for names in entities)


def verdict(passes: Sequence[bool], *, every: bool) -> bool:
    """Whether a test passes, given which of its queries do: all of them (AND), or any (OR)."""
    return all(passes) if every else any(passes)


class AxisScore(MacroMean):
    """Mean over edits of the share of executed tests that pass."""

    def update(self, passed: Tensor, edits: Sequence[str], kept: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            passed: (N,) bool, whether each test passes.
            edits: N edit ids; all tests of an edit together.
            kept: (N,) bool, the tests that were executed, of edits that succeeded; None keeps all.

        Raises:
            ValueError: if lengths differ.
            TypeError: if `kept` is not boolean.
        """
        mask = mask_of("kept", kept, len(edits))
        owners = [edit for edit, keep in zip(edits, mask.tolist(), strict=True) if keep]
        self._add(passed[mask.to(passed.device)], owners)


class RelationSpecificity(AxisScore):
    """Other facts about the subject keep their answers."""


class LogicalGeneralization(AxisScore):
    """What follows from the edit by the logic of its relation, such as symmetry, is answered."""


class SubjectAliasing(AxisScore):
    """The edited fact is answered under other names of the subject."""


class CompositionalityOne(AxisScore):
    """Questions that go on from the new object are answered."""


class CompositionalityTwo(AxisScore):
    """Questions that reach the edited subject from another one are answered."""


class Forgetfulness(AxisScore):
    """Preservation: where a relation has several objects, those that were there before are still given."""


class EditSuccess(AxisScore):
    """The edited fact itself is answered."""


AXES: dict[RippleAxis, type[AxisScore]] = {
    "Relation_Specificity": RelationSpecificity,
    "Logical_Generalization": LogicalGeneralization,
    "Subject_Aliasing": SubjectAliasing,
    "Compositionality_I": CompositionalityOne,
    "Compositionality_II": CompositionalityTwo,
    "Forgetfulness": Forgetfulness,
}
"""The measure of each axis."""

RIPPLEEDITS_METRICS: dict[str, type[AxisScore]] = {
    "edit_success": EditSuccess,
    **{axis.lower(): metric for axis, metric in AXES.items()},
}
"""The protocol's measures under the keys of `metrics.json`."""


def rippleedits_metrics() -> MetricCollection:
    """The measures, to be updated one by one under their keys."""
    return MetricCollection({name: metric() for name, metric in RIPPLEEDITS_METRICS.items()}, compute_groups=False)
