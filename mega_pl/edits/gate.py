"""The gate: which edit of a bank, if any, a prompt is about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mega_pl.backbone import Backbone, Site, record
from mega_pl.functional.discriminant import CHUNK, Discriminant, class_means, fit_discriminant

NO_EDIT = -1
"""Owner of a question that no edit may answer, and the route of a prompt that is left alone."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """How scopes are told apart.

    Args:
        layers: 0-based blocks whose outputs are the evidence; negative ones count from the end.
        shrinkage: Of the scatter within questions towards a sphere, in (0, 1].
        max_rank: The most directions that the evidence keeps.
        recall: Share of the edits' own prompts, each held out from its question, that the threshold lets through.
        false_alarms: Share of other subjects' questions, as if they were unknown, that it may let through. The
            threshold lies half-way between the two quantiles.
    """

    layers: tuple[int, ...] = (-3, -1)
    shrinkage: float = 0.1
    max_rank: int = 512
    recall: float = 0.98
    false_alarms: float = 0.02

    def __post_init__(self) -> None:
        for name in ("recall", "false_alarms"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in (0, 1), but got {getattr(self, name)}.")
        if not self.layers:
            raise ValueError("`layers` must name at least one block, but got none.")

    def check_layers(self, count: int) -> None:
        """Refuse layers that a model of so many blocks does not have.

        Raises:
            ValueError: Naming the layer.
        """
        for layer in self.layers:
            if not -count <= layer < count:
                raise ValueError(f"`gate.layers` must lie in [{-count}, {count - 1}] for this model, but got {layer}.")


@dataclass(frozen=True)
class Gate:
    """Nearest question, in a space where phrasings of one question coincide.

    A question is remembered as the mean of its phrasings' evidence, the states of some blocks at the last token; an
    owned one as each phrasing besides, so that an edit always answers what it was fitted on.
    A prompt is compared at every token, so that a question keeps its scope inside a longer text, and goes to the
    owner of the nearest question, or to none if that is a question nobody owns or the cosine is below the threshold.

    Args:
        space: The projection.
        questions: (Q, K) unit vectors: means of questions and phrasings of owned ones.
        owners: (Q,) long, indices of edits or `NO_EDIT`.
        threshold: Cosine below which no edit answers.
    """

    space: Discriminant
    questions: Tensor
    owners: Tensor
    threshold: float

    @classmethod
    def fit(
        cls, evidence: Tensor, questions: Tensor, owners: Tensor, subjects: Sequence[str], config: GateConfig
    ) -> "Gate":
        """Learn the space, the questions and the threshold.

        Args:
            evidence: (N, F) last-token evidence of prompts.
            questions: (N,) long, the question that each prompt asks.
            owners: (Q,) long, the edit that each question belongs to, or `NO_EDIT`.
            subjects: Q names of what each question is about, which tells whose questions are foreign to an edit.
            config: Settings.

        Raises:
            ValueError: If no owned question has two phrasings.
        """
        space = fit_discriminant(evidence, questions, shrinkage=config.shrinkage, max_rank=config.max_rank)
        points = torch.cat([space(part) for part in torch.split(evidence, CHUNK)])
        means = F.normalize(class_means(points, questions), dim=-1)
        repeated = torch.bincount(questions)[questions] > 1  # a lone phrasing cannot be held out
        own = _left_out_cosines(points, questions)[repeated & (owners[questions] != NO_EDIT)]
        if not len(own):
            raise ValueError("an edit must own a question in 2 phrasings or more, but every owned phrasing is alone.")
        foreign = _foreign_cosines(points, questions, means, owners, subjects)
        low = float(own.quantile(1 - config.recall))
        high = float(foreign.quantile(1 - config.false_alarms)) if len(foreign) else low
        owned = owners[questions] != NO_EDIT
        remembered = torch.cat([means, points[owned]]), torch.cat([owners, owners[questions[owned]]])
        # A remembered phrasing must pass whatever its rounding, even where all questions look alike.
        return cls(space, *remembered, min((low + high) / 2, 0.999))

    def route(self, evidence: Tensor, mask: Tensor, *, forced: bool = False) -> tuple[Tensor, Tensor]:
        """Choose an edit for each prompt.

        Args:
            evidence: (B, T, F) evidence at every token.
            mask: (B, T), non-zero at real tokens.
            forced: Whether the nearest edit answers whatever the threshold and the questions that nobody owns.

        Returns:
            (B,) long, indices of edits or `NO_EDIT`, and (B,) the cosines of the nearest questions.
        """
        cosines = (self.space(evidence) @ self.questions.T).masked_fill(~mask.bool()[..., None], -1.0).amax(1)
        if forced:
            cosines = cosines.masked_fill(self.owners == NO_EDIT, -2.0)
        best, question = cosines.max(1)
        routes = self.owners[question]
        return (routes if forced else routes.where(best >= self.threshold, NO_EDIT)), best

    def without(self, edit: int) -> "Gate":
        """The gate of a bank that forgets an edit; later edits move up by one."""
        kept = self.owners != edit
        owners = self.owners[kept]
        return Gate(self.space, self.questions[kept], owners - (owners > edit).long(), self.threshold)

    def to(self, device: torch.device) -> "Gate":
        """The gate on another device."""
        space = Discriminant(self.space.mean.to(device), self.space.projection.to(device))
        return Gate(space, self.questions.to(device), self.owners.to(device), self.threshold)


@torch.no_grad()
def evidence(backbone: Backbone, inputs: Mapping[str, Tensor], layers: Sequence[int]) -> Tensor:
    """What the bare model makes of a prompt: the outputs of some blocks, side by side.

    Args:
        backbone: The model, with no edit in force.
        inputs: Arguments of its forward pass, by name.
        layers: 0-based blocks; negative ones count from the end.

    Returns:
        (B, T, F) float32 with F the width times the number of layers.
    """
    sites = [Site(layer % backbone.n_layers, "resid_post") for layer in layers]
    with record(backbone.model, sites) as states:
        backbone.model.base_model(**inputs, use_cache=False)
    return torch.cat([states[site].float() for site in sites], dim=-1)


def _left_out_cosines(points: Tensor, questions: Tensor) -> Tensor:
    """Cosine (N,) of each point with the mean of the other points of its question."""
    counts = torch.bincount(questions)[questions][:, None]
    others = class_means(points, questions)[questions] * counts - points
    return (points * F.normalize(others, dim=-1)).sum(-1)


def _foreign_cosines(
    points: Tensor, questions: Tensor, means: Tensor, owners: Tensor, subjects: Sequence[str]
) -> Tensor:
    """Cosine of each point with the nearest owned question about another subject; points without one are left out."""
    names = {name: i for i, name in enumerate(dict.fromkeys(subjects))}
    about = torch.tensor([names[name] for name in subjects])
    owned = (owners != NO_EDIT).nonzero()[:, 0]
    same = about[questions][:, None] == about[owned][None]
    return (points @ means[owned].T).masked_fill(same, -1.0).amax(1)[~same.all(1)]
