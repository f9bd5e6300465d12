"""The measures of EasyEdit (arXiv:2308.07269): agreement of tokens under teacher forcing, one class a measure.

Each answer token is predicted after the right ones before it, which makes answers of several tokens look easier than
they are to a model that writes on its own. All are macro means as fractions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from mega_pl.errors import MegaValueError
from mega_pl.metrics.means import MacroMean


def token_agreement(predicted: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> Tensor:
    """Share of an answer's places at which two token ids agree.

    >>> token_agreement([[5, 6, 7], [8]], [[5, 6, 9], [8]])
    tensor([0.6667, 1.0000], dtype=torch.float64)

    Args:
        predicted: for each of N answers the most probable id at each place.
        expected: for each the ids to compare with, as many.

    Returns:
        (N,) float64.

    Raises:
        ValueError: if the numbers of answers or of places differ, or an answer has no place.
    """
    if len(predicted) != len(expected):
        raise MegaValueError(
            f"`predicted` and `expected` must be equally long, but got {len(predicted)} and {len(expected)}."
        )
    for i, (ids, others) in enumerate(zip(predicted, expected, strict=True)):
        if len(ids) != len(others) or not len(ids):
            raise MegaValueError(
                f"an answer must have as many ids in `predicted` as in `expected`, at least one, "
                f"but answer {i} has {len(ids)} and {len(others)}."
            )
    pairs = zip(predicted, expected, strict=True)
    shares = [sum(a == b for a, b in zip(ids, others, strict=True)) / len(ids) for ids, others in pairs]
    return torch.tensor(shares, dtype=torch.float64)


class TokenAgreement(MacroMean):
    """Mean over edits of the share of places at which predictions agree with the ids to compare with."""

    def update(
        self, predicted: Sequence[Sequence[int]], expected: Sequence[Sequence[int]], edits: Sequence[str]
    ) -> None:
        """Count a batch.

        Args:
            predicted: for each of N answers the edited model's most probable id at each place.
            expected: the ids to compare with.
            edits: N edit ids; all tests of an edit together.

        Raises:
            ValueError: if lengths differ or an answer has no place.
        """
        self._add(token_agreement(predicted, expected), edits)


class RewriteAcc(TokenAgreement):
    """The edit prompt is answered with the new object's ids."""


class RephraseAcc(TokenAgreement):
    """Paraphrases of the edit prompt are answered with the new object's ids."""


class SubjectAliasingAcc(TokenAgreement):
    """The edit prompt under another name of the subject is answered with the ids of the right answer."""


class ReasoningAcc(TokenAgreement):
    """Two-hop questions that start or end with the edited fact are answered with the ids of the right answer."""


class LogicalGeneralizationAcc(TokenAgreement):
    """What follows from the edit by the logic of its relation is answered with the ids of the right answer."""


class PortabilityAcc(TokenAgreement):
    """EasyEdit's one-hop question, subject aliasing, reasoning and logical generalization together."""


class RelationSpecificityAcc(TokenAgreement):
    """Questions about other facts of the subject get the bare model's predictions."""


class ForgetfulnessAcc(TokenAgreement):
    """Questions for the objects that there were before, beside the new one, get the bare model's predictions."""


class LocalityAcc(TokenAgreement):
    """Questions that the edit must leave alone get the bare model's predictions, be they right or wrong."""


EASYEDIT_METRICS: dict[str, type[TokenAgreement]] = {
    "rewrite_acc": RewriteAcc,
    "rephrase_acc": RephraseAcc,
    "subject_aliasing_acc": SubjectAliasingAcc,
    "reasoning_acc": ReasoningAcc,
    "logical_generalization_acc": LogicalGeneralizationAcc,
    "portability_acc": PortabilityAcc,
    "relation_specificity_acc": RelationSpecificityAcc,
    "forgetfulness_acc": ForgetfulnessAcc,
    "locality_acc": LocalityAcc,
}
"""The protocol's measures under the keys of `metrics.json`."""


def easyedit_metrics() -> MetricCollection:
    """The measures, to be updated one by one under their keys."""
    return MetricCollection({name: metric() for name, metric in EASYEDIT_METRICS.items()}, compute_groups=False)
