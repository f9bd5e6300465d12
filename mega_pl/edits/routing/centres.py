"""SAKE's router: the nearest mean of an edit's own prompts, if a prompt is as near to it as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mega_pl.backbone import Backbone
from mega_pl.edits.request import EditRequest
from mega_pl.edits.routing.router import NO_EDIT, Prompts, Route, Router, rest
from mega_pl.edits.routing.vectors import encoder_of
from mega_pl.edits.values import Json, Tensors, member, tensor
from mega_pl.errors import MegaValueError
from mega_pl.functional.discriminant import class_means


@dataclass(frozen=True, eq=False)
class CentreRouter:
    """Fires for the nearest centre, by Euclidean distance, of those within whose threshold a prompt lies.

    Args:
        centres: (E, K) means of the edits' prompts.
        thresholds: (E,) the farthest prompts that they answer.
        layer: 0-based block whose output at the last token is compared; a negative one counts from the end.
        encoder: Folder or hub name of a sentence encoder that reads the prompts instead, or None.
    """

    kind: ClassVar[str] = "centre"

    centres: Tensor
    thresholds: Tensor
    layer: int = -2
    encoder: str | None = None

    @classmethod
    def fit(
        cls, prompts: Sequence[Prompts], edits: Tensor, *, layer: int, encoder: str | None, recall: float, margin: float
    ) -> CentreRouter:
        """Take the means, and as the threshold a quantile of the prompts' distances from the mean of the others.

        The quantile is of all edits' prompts together; an edit whose own prompts lie farther out still answers the
        first of them.

        Args:
            prompts: Batches of N prompts together, two or more of each edit; the first of each edit is the edit prompt.
            edits: (N,) long, the edit of each.
            layer: See above.
            encoder: See above.
            recall: The quantile, a share of the prompts.
            margin: Multiple of the quantile.
        """
        unfitted = cls(torch.empty(0), torch.empty(0), layer, encoder)
        vectors = torch.cat([unfitted.read(batch) for batch in prompts])
        counts = torch.bincount(edits)[:, None]
        centres = class_means(vectors, edits)
        others = (centres[edits] * counts[edits] - vectors) / (counts[edits] - 1)
        threshold = margin * (vectors - others).norm(dim=1).quantile(recall)
        first = torch.stack([(edits == edit).nonzero()[0, 0] for edit in range(len(centres))])
        own = (vectors[first] - centres).norm(dim=1)
        thresholds = torch.maximum(threshold, own * (1 + 1e-4))  # rounding must not shut an edit out
        return replace(unfitted, centres=centres, thresholds=thresholds)

    def read(self, prompts: Prompts) -> Tensor:
        """What is compared: states of the bare model (B, K), or sentence vectors, on the CPU."""
        if self.encoder is None:
            return prompts.last_states(self.layer).cpu()
        return encoder_of(self.encoder, normalized=False)([" ".join(filter(None, turns)) for turns in prompts.turns])

    def route(self, prompts: Prompts, *, forced: bool = False) -> list[Route]:
        """Choose an edit for each prompt; ``forced`` leaves no choice to stay silent."""
        distances = torch.cdist(self.read(prompts), self.centres, compute_mode="donot_use_mm_for_euclid_dist")
        if not forced:
            distances = distances.masked_fill(distances > self.thresholds, torch.inf)
        nearest, edits = distances.min(1)
        fired = nearest.isfinite().tolist()
        return [Route(e if f else NO_EDIT, confidence=float(f)) for e, f in zip(edits.tolist(), fired, strict=True)]

    def add(self, backbone: Backbone, requests: Sequence[EditRequest]) -> CentreRouter:
        """Refused: the threshold is one of all edits together.

        Raises:
            ValueError: Always.
        """
        raise MegaValueError("SAKE's router must be fitted on all edits together, but got more; fit them all again.")

    def remove(self, *edits: int) -> CentreRouter:
        """The router that forgets edits; later ones move up."""
        return self.select(rest(len(self.centres), edits))

    def select(self, edits: Sequence[int]) -> CentreRouter:
        """The router that knows some of the edits alone, in that order."""
        index = torch.tensor(edits, dtype=torch.long)
        return replace(self, centres=self.centres[index], thresholds=self.thresholds[index])

    def merge(self, other: Router) -> CentreRouter:
        """The router that knows another's edits besides, each with its own threshold."""
        if not isinstance(other, CentreRouter) or (self.layer, self.encoder) != (other.layer, other.encoder):
            raise MegaValueError("routers must be of one kind, layer and encoder to be merged, but these are not.")
        centres, thresholds = [self.centres, other.centres], [self.thresholds, other.thresholds]
        return replace(self, centres=torch.cat(centres), thresholds=torch.cat(thresholds))

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is to be stored, for JSON and for safetensors."""
        return {"layer": self.layer, "encoder": self.encoder}, {
            "centres": self.centres,
            "thresholds": self.thresholds,
        }

    @classmethod
    def check_state(cls, state: Json, tensors: Tensors, count: int, vocab: int) -> set[str]:
        """Refuse a centre router that does not fit its edits; give the names of its tensors."""
        member(state, "layer", int)
        member(state, "encoder", str | None)
        tensor(tensors, "router.centres", count, None)
        tensor(tensors, "router.thresholds", count)
        return {"router.centres", "router.thresholds"}

    @classmethod
    def from_state(
        cls, requests: Sequence[EditRequest], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> CentreRouter:
        """The router again."""
        return cls(tensors["centres"], tensors["thresholds"], config["layer"], config["encoder"])
