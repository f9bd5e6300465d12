"""SAKE's gate: the nearest mean of an edit's own prompts, if a prompt is as near to it as they are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mega_pl.edits import NO_EDIT
from mega_pl.functional.discriminant import class_means


@dataclass(frozen=True, eq=False)
class CentreGate:
    """Fires for the nearest centre, by Euclidean distance, of those within whose threshold a prompt lies.

    Args:
        centres: (E, K) means of the edits' prompts.
        thresholds: (E,) the farthest prompts that they answer.
    """

    centres: Tensor
    thresholds: Tensor

    @classmethod
    def fit(cls, vectors: Tensor, edits: Tensor, *, recall: float, margin: float) -> "CentreGate":
        """Take the means, and as the threshold a quantile of the prompts' distances from the mean of the others.

        The quantile is of all edits' prompts together; an edit whose own prompts lie farther out still answers the
        first of them.

        Args:
            vectors: (N, K) of prompts, two or more of each edit; the first of each edit is the edit prompt.
            edits: (N,) long, the edit of each.
            recall: The quantile, a share of the prompts.
            margin: Multiple of the quantile.
        """
        counts = torch.bincount(edits)[:, None]
        centres = class_means(vectors, edits)
        others = (centres[edits] * counts[edits] - vectors) / (counts[edits] - 1)
        threshold = margin * (vectors - others).norm(dim=1).quantile(recall)
        first = torch.stack([(edits == edit).nonzero()[0, 0] for edit in range(len(centres))])
        own = (vectors[first] - centres).norm(dim=1)
        return cls(centres, torch.maximum(threshold, own * (1 + 1e-4)))  # rounding must not shut an edit out

    def route(self, vectors: Tensor, *, forced: bool = False) -> Tensor:
        """Choose an edit, or `NO_EDIT`, for each prompt (B, K); ``forced`` leaves no choice to stay silent."""
        distances = torch.cdist(vectors, self.centres, compute_mode="donot_use_mm_for_euclid_dist")
        if not forced:
            distances = distances.masked_fill(distances > self.thresholds, torch.inf)
        nearest, edit = distances.min(1)
        return edit.where(nearest.isfinite(), NO_EDIT)
