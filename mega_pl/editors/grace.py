"""GRACE: a code book of prompts beside one MLP, whose output near a key becomes a trained value (arXiv:2211.11031)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from mega_pl.asking import Edited
from mega_pl.asking.batches import encoded_ids
from mega_pl.backbone import Backbone, Site, each_pass, until
from mega_pl.editors.protocol import Editor, Routed
from mega_pl.editors.store import Store, of_model
from mega_pl.editors.values import answer_log_probabilities
from mega_pl.editors.weights import Projection
from mega_pl.edits import NO_EDIT, EditRequest, Route, RoutedEdits, check_requests
from mega_pl.edits.routing import Prompts
from mega_pl.edits.routing.runtime import Steer
from mega_pl.errors import MegaNumericError, MegaValueError


@dataclass(frozen=True, kw_only=True)
class GraceConfig:
    """Settings of GRACE.

    Args:
        layer: 0-based block whose MLP projection has the code book.
        eps: Deferral radius of a new key, in units of the projection's input.
        n_iter: Steps in which a value is trained.
        edit_lr: Of Adam.
        seed: Of the values that training starts from.
    """

    layer: int
    eps: float = 1.0
    n_iter: int = 50
    edit_lr: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("eps", "edit_lr"):
            if not getattr(self, name) > 0:
                raise MegaValueError(f"`{name}` must be above 0, but got {getattr(self, name)}.")
        if self.n_iter < 1:
            raise MegaValueError(f"`n_iter` must be at least 1, but got {self.n_iter}.")


@dataclass(frozen=True, eq=False)
class Grace(Editor):
    """Puts a value in the place of a projection's output at a prompt's last token, where its input lies near a key.

    A key is the input at an edit prompt's last token; its value is trained to make the model write the new object.
    Edits whose prompts lie near each other share a key if they have one object, and halve the distance between them if
    not (algorithm 1 of arXiv:2211.11031).

    Args:
        config: Settings.
        folder: Where values are kept, for what needs the same.
    """

    name: ClassVar[str] = "grace"
    config: GraceConfig
    folder: str | None = field(default=None, repr=False)

    @contextmanager
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Iterator[Edited]:
        """Put edits into force; see `Editor`.

        Raises:
            ValueError: If the requests do not go together, or there is no such block.
            FloatingPointError: If a value would not be finite.
        """
        check_requests(requests)
        projection = Projection.of(backbone, self.config.layer)
        book = CodeBook(backbone, self.config.layer, self.config.eps)
        own = [edit for edit, request in enumerate(requests) if book.add(edit, request)]
        of = ["grace", *of_model(backbone), asdict(self.config)]
        found = Store(self.folder).each(
            [[*of, asdict(requests[edit])] for edit in own],
            lambda i: ({"value": train_value(backbone, projection, requests[own[i]], self.config)}, None),
            "values",
        )
        values = torch.zeros(len(requests), projection.outputs)
        values[own] = torch.stack([tensors["value"].cpu() for tensors, _ in found])
        use = RoutedEdits(backbone, [request.edit_id for request in requests], book, _steer(projection, values))
        with each_pass(backbone.model, use.read):
            yield Routed(use)


@dataclass(eq=False)
class CodeBook:
    """Keys with deferral radii, each of an edit; what a prompt lies nearest to answers it, if it lies near enough.

    Args:
        backbone: The bare model.
        layer: 0-based block whose projection's inputs at last tokens are compared, by Euclidean distance.
        eps: Radius of a new key.
        keys: (K, F) float32.
        radii: (K,).
        edits: The edit of each key.
        objects: The new object of each key.
    """

    backbone: Backbone
    layer: int
    eps: float
    keys: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    radii: Tensor = field(default_factory=lambda: torch.empty(0))
    edits: list[int] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)

    def add(self, edit: int, request: EditRequest) -> bool:
        """Take in an edit; tell whether it got a key of its own."""
        encoded = self.backbone.encode([request.filled])
        key = self._read(Prompts(self.backbone, encoded.inputs, encoded.last))
        if self.edits:
            distances = _distances(key, self.keys)[0]
            distance, nearest = float(distances.min()), int(distances.argmin())
            if distance <= self.eps + float(self.radii[nearest]):
                if self.objects[nearest] == request.target_new:
                    self.radii[nearest] = max(distance, float(self.radii[nearest]))
                    return False
                self.radii[nearest] = distance / 2 * (1 - 1e-5)  # the middle is the new key's
                self._append(key, distance / 2, edit, request)
                return True
        self._append(key, self.eps, edit, request)
        return True

    def route(self, prompts: Prompts, *, forced: bool = False) -> list[Route]:
        """Choose an edit for each prompt; ``forced`` leaves no choice to stay silent."""
        nearest, index = _distances(self._read(prompts), self.keys).min(1)
        near = (nearest <= self.radii[index]).tolist()
        return [
            Route(self.edits[i] if fires or forced else NO_EDIT, confidence=float(fires or forced))
            for i, fires in zip(index.tolist(), near, strict=True)
        ]

    def _append(self, key: Tensor, radius: float, edit: int, request: EditRequest) -> None:
        self.keys = torch.cat([self.keys.reshape(-1, key.shape[1]), key])
        self.radii = torch.cat([self.radii, torch.tensor([radius])])
        self.edits.append(edit)
        self.objects.append(request.target_new)

    @torch.no_grad()
    def _read(self, prompts: Prompts) -> Tensor:
        """The projection's inputs (B, F) at the prompts' last tokens in the bare model, float32 on the CPU."""
        tokens = (torch.arange(len(prompts)), prompts.last.cpu())
        projection, end = Projection.of(self.backbone, self.layer), Site(self.layer, "resid_post")
        with projection.record(tokens) as seen, until(self.backbone.model, end):
            self.backbone.model.base_model(**prompts.inputs, use_cache=False)
        return seen.keys.float().cpu()


def train_value(backbone: Backbone, projection: Projection, request: EditRequest, config: GraceConfig) -> Tensor:
    """Train the output (D,) of a projection at the prompt's last token that makes a model write the new object.

    The loss is the mean negative log-probability, in nats, of the object's tokens, each after those before it.

    Raises:
        FloatingPointError: If the value is not finite.
    """
    with torch.inference_mode(False), torch.enable_grad():
        prompt = encoded_ids(backbone, [request.filled])[0]
        answer = backbone.answer_ids(request.filled, request.target_new)
        encoded, lengths = backbone.pad([[*prompt, *answer]]), torch.tensor([len(answer)])
        row, position = torch.tensor([0]), torch.tensor([len(prompt) - 1])
        start = torch.rand(projection.outputs, generator=torch.Generator().manual_seed(config.seed))
        value = start.to(backbone.device).requires_grad_()
        adam = torch.optim.Adam([value], lr=config.edit_lr)
        for _ in range(config.n_iter):
            with projection.replaced(row, position, value[None]):
                logits = backbone.model(**encoded.inputs, use_cache=False, logits_to_keep=len(answer) + 1).logits
            loss = -answer_log_probabilities(logits, encoded.input_ids, lengths).mean()
            adam.zero_grad()
            torch.autograd.backward(loss, inputs=[value])
            adam.step()
    found = value.detach()
    if not found.isfinite().all():
        raise MegaNumericError(
            f"a value of GRACE must be finite, but that of {request.edit_id!r} is not; use a smaller `edit_lr`."
        )
    return found


def _distances(queries: Tensor, keys: Tensor) -> Tensor:
    return torch.cdist(queries, keys, compute_mode="donot_use_mm_for_euclid_dist")


def _steer(projection: Projection, values: Tensor) -> Steer:
    """What puts the values of some edits in the place of the projection's output at the last tokens of some rows."""

    def steering(rows: Tensor, columns: Tensor, edits: Tensor, _: Tensor) -> AbstractContextManager[None]:
        return projection.replaced(rows, columns, values[edits.cpu()])

    return steering
