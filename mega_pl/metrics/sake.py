"""The measures of SAKE's notebooks under MEGA's names, one class a measure.

Each is a micro rate, total successes over total kept tests, so that sums are the only state, batches may be cut
anywhere, and processes add up. Which tests to keep is the caller's knowledge and comes as the mask `kept`, save for
`Spec`, which sees it in its own probabilities. `mega_pl.metrics.scores` applies the protocol's rules to rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from mega_pl.errors import MegaValueError
from mega_pl.metrics.functional import first_token_hits, mask_of, specificity_hits


class SuccessRate(Metric):
    """Successes over kept tests, as a fraction; nan before the first kept test. Higher is better.

    Subclasses decide in `update` what a success is.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    hits: Tensor
    """Successes among the kept tests, () int64."""
    total: Tensor
    """Kept tests, () int64."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    @property
    def n(self) -> int:
        """Number of kept tests that this process has seen."""
        return int(self.total)

    def compute(self) -> Tensor:
        """The rate, () float64 on the CPU, because not every device has float64."""
        return self.hits.cpu().double() / self.total.cpu()

    def _count(self, hits: Tensor, kept: Tensor) -> None:
        self.hits += (hits & kept).sum().to(self.hits.device)
        self.total += kept.sum().to(self.total.device)


class HitRate(SuccessRate):
    """Share of kept tests whose predicted token begins an accepted answer (`first_token_hit`)."""

    def update(self, predictions: Sequence[str], answers: Sequence[Sequence[str]], kept: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            predictions: N decoded argmax tokens at the prompts' last tokens.
            answers: N sequences of accepted answers.
            kept: (N,) bool, the tests that count; None keeps all.

        Raises:
            ValueError: if the lengths differ.
            TypeError: if `kept` is not boolean.
        """
        self._count(first_token_hits(predictions, answers), mask_of("kept", kept, len(predictions)))


class Acc(HitRate):
    """Accuracy: the edit prompt is answered with the new object.

    Args:
        empty_counts: count a prediction of nothing but white space as a success, as SAKE's notebook for Popular does.
    """

    def __init__(self, *, empty_counts: bool = False) -> None:
        super().__init__()
        self.empty_counts = empty_counts

    def update(self, predictions: Sequence[str], answers: Sequence[Sequence[str]], kept: Tensor | None = None) -> None:
        """Count a batch, as `HitRate.update` does."""
        hits = first_token_hits(predictions, answers, empty_counts=self.empty_counts)
        self._count(hits, mask_of("kept", kept, len(predictions)))


class Gen(HitRate):
    """Generalization: paraphrases of the edit prompt are answered with the new object."""


class DI(HitRate):
    """Doubt I: the new object survives a prompt that contradicts it."""


class DII(HitRate):
    """Doubt II: the new object survives a prompt that contradicts it and names the old one."""


class CI(HitRate):
    """Compositionality I: a question that goes on from the new object. Kept: the edit took and the hop is known."""


class CII(HitRate):
    """Compositionality II: a question that reaches the edited subject from another one. Kept as for `CI`."""


class RS(HitRate):
    """Relation specificity: other facts about the subject keep their answers. Kept as for `CI`.

    Args:
        literal: count every silent gate as a success, as SAKE's notebook does, whatever was predicted.
    """

    def __init__(self, *, literal: bool = False) -> None:
        super().__init__()
        self.literal = literal

    def update(
        self,
        predictions: Sequence[str],
        answers: Sequence[Sequence[str]],
        kept: Tensor | None = None,
        silent: Tensor | None = None,
    ) -> None:
        """Count a batch, as `HitRate.update` does.

        Args:
            predictions: N decoded argmax tokens at the prompts' last tokens.
            answers: N sequences of accepted answers.
            kept: (N,) bool, the tests that count; None keeps all.
            silent: (N,) bool, True where no gate opened. Needed by the literal form and only read there.
        """
        hits = _forgive(first_token_hits(predictions, answers), silent, self.literal)
        self._count(hits, mask_of("kept", kept, len(predictions)))


class SA(HitRate):
    """Subject aliasing: the edit prompt under another name of the subject. Kept: the edit took, the alias is known."""


class Spec(SuccessRate):
    """Specificity: a neighbour's true object stays ahead of the new one. Kept: it was not behind before.

    Args:
        literal: count every silent gate as a success, as SAKE's notebook does. It differs only where both objects are
            equally probable, since a silent gate leaves the probabilities as they were.
    """

    def __init__(self, *, literal: bool = False) -> None:
        super().__init__()
        self.literal = literal

    def update(
        self, new: Tensor, true: Tensor, bare_new: Tensor, bare_true: Tensor, silent: Tensor | None = None
    ) -> None:
        """Count a batch.

        Args:
            new: (N,) probability of the new object's first token after the edit, as a fraction.
            true: (N,) the same for the true object.
            bare_new: (N,) probability of the new object's first token in the bare model.
            bare_true: (N,) the same for the true object.
            silent: (N,) bool, True where no gate opened. Needed by the literal form and only read there.

        Raises:
            ValueError: if the shapes differ or a value is not a number.
        """
        hits, kept = specificity_hits(new, true, bare_new, bare_true)
        self._count(_forgive(hits, silent, self.literal), kept)


SAKE_METRICS: dict[str, type[HitRate] | type[Spec]] = {
    "acc": Acc,
    "gen": Gen,
    "spec": Spec,
    "di": DI,
    "dii": DII,
    "ci": CI,
    "cii": CII,
    "rs": RS,
    "sa": SA,
}
"""The protocol's nine measures under the keys of `metrics.json`."""


def sake_metrics() -> MetricCollection:
    """The nine measures, to be updated one by one under their keys."""
    # With compute groups, measures of one class whose first batches agree would silently be merged for good.
    return MetricCollection({name: metric() for name, metric in SAKE_METRICS.items()}, compute_groups=False)


def _forgive(hits: Tensor, silent: Tensor | None, literal: bool) -> Tensor:
    if not literal:
        return hits
    if silent is None:
        raise MegaValueError(
            "`silent` must be given to a literal metric, but got None; pass it, or set `literal=False`."
        )
    return hits | mask_of("silent", silent, len(hits)).to(hits.device)
