"""The macro mean that the papers on ROME, EasyEdit and RippleEdits report: every edit counts once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from mega_pl.metrics.functional import edit_means


class MacroMean(Metric):
    """Mean over edits of each edit's mean over its tests; nan before the first edit. Higher is better.

    Subclasses decide in `update` what a test's outcome is. All tests of an edit have to come in one update: sums are
    the only state, so that an edit that comes again counts as another one.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    total: Tensor
    """Sum of the edits' means, () float64."""
    edits: Tensor
    """Number of edits, () int64."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("edits", default=torch.tensor(0), dist_reduce_fx="sum")

    @property
    def n(self) -> int:
        """Number of edits that this process has seen."""
        return int(self.edits)

    def compute(self) -> Tensor:
        """The mean, () float64 on the CPU."""
        return self.total.cpu() / self.edits.cpu()

    def _add(self, outcomes: Tensor, edits: Sequence[str]) -> None:
        means, names = edit_means(outcomes, edits)
        self.total += means.sum().to(self.total.device)
        self.edits += len(names)
