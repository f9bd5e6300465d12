"""Fine-tuning of one or more MLP projections on the edits alone, with or without a bound on every weight's move."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mega_pl.asking import Edited
from mega_pl.backbone import Backbone
from mega_pl.editors.protocol import Editor
from mega_pl.editors.values import answer_log_probabilities
from mega_pl.editors.weights import Projection, assign, restored
from mega_pl.edits import EditRequest, check_requests
from mega_pl.errors import MegaValueError

FtObjective = Literal["last_prompt", "teacher_forced"]


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig:
    """Settings of fine-tuning.

    Args:
        layers: 0-based blocks whose MLP projections, weight and bias, are trained.
        objective: ``last_prompt`` asks for all tokens of the new object right after the prompt (FT-L of EasyEdit);
            ``teacher_forced`` for each after those before it (FT-M).
        steps: The most passes over the edits.
        learning_rate: Of Adam.
        weight_decay: Of Adam.
        clamp: The most that a weight may move; None for no bound.
        batch: Edits a step.
        stop: Loss in nats below which a batch makes no step, and a pass with as low a mean is the last.
    """

    layers: tuple[int, ...]
    objective: FtObjective = "last_prompt"
    steps: int = 25
    learning_rate: float = 5e-4
    weight_decay: float = 0.0
    clamp: float | None = None
    batch: int = 1
    stop: float = 0.01

    def __post_init__(self) -> None:
        if self.objective not in get_args(FtObjective):
            names = ", ".join(get_args(FtObjective))
            raise MegaValueError(f"`objective` must be one of {names}, but got {self.objective!r}.")
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise MegaValueError(f"`layers` must be one or more different blocks, but got {self.layers}.")
        for name, least in (("steps", 1), ("batch", 1), ("weight_decay", 0), ("stop", 0)):
            if not getattr(self, name) >= least:
                raise MegaValueError(f"`{name}` must be at least {least}, but got {getattr(self, name)}.")
        for name in ("learning_rate", "clamp"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise MegaValueError(f"`{name}` must be above 0, but got {value}.")


@dataclass(frozen=True, eq=False)
class FineTuning(Editor):
    """Adam on copies in float32, which the model's own weights become, rounded to their dtype, when it is done."""

    config: FineTuningConfig

    @property
    def name(self) -> str:
        """``ft-l`` or ``ft-m``, by the objective."""
        return "ft-l" if self.config.objective == "last_prompt" else "ft-m"

    @contextmanager
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Iterator[Edited]:
        """Put edits into force; see `Editor`.

        Raises:
            ValueError: If the requests do not go together, or there is no such block.
            FloatingPointError: If a weight would not be finite.
        """
        check_requests(requests)
        modules = [Projection.of(backbone, layer).module for layer in self.config.layers]
        chosen = {id(parameter) for module in modules for parameter in module.parameters()}
        trained = {name: p for name, p in backbone.model.named_parameters() if id(p) in chosen}
        with restored(trained.values()):
            for name, value in _fit(backbone, trained, requests, self.config).items():
                assign(trained[name], value)
            yield Edited()


def _fit(
    backbone: Backbone, trained: Mapping[str, nn.Parameter], requests: Sequence[EditRequest], config: FineTuningConfig
) -> dict[str, Tensor]:
    """Train copies of some parameters and leave the model alone."""
    batches = [requests[i : i + config.batch] for i in range(0, len(requests), config.batch)]
    with torch.inference_mode(False), torch.enable_grad():
        copies = {name: p.detach().clone().float().requires_grad_() for name, p in trained.items()}
        bounds = {name: copy.detach().clone() for name, copy in copies.items()}
        adam = torch.optim.Adam(copies.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
        for _ in range(config.steps):
            losses = []
            for batch in batches:
                rounded = {name: copy.to(trained[name].dtype) for name, copy in copies.items()}
                loss = _LOSSES[config.objective](backbone, rounded, batch)
                losses.append(float(loss.detach()))
                if not losses[-1] < config.stop:  # a loss that is no number must show in the weights
                    adam.zero_grad()
                    torch.autograd.backward(loss, inputs=list(copies.values()))
                    adam.step()
                    _clamp(copies, bounds, config.clamp)
            if sum(losses) / len(losses) < config.stop:
                break
    return copies


@torch.no_grad()
def _clamp(copies: Mapping[str, Tensor], start: Mapping[str, Tensor], most: float | None) -> None:
    if most is not None:
        for name, copy in copies.items():
            copy.clamp_(start[name] - most, start[name] + most)


def _last_prompt(backbone: Backbone, parameters: dict[str, Tensor], requests: Sequence[EditRequest]) -> Tensor:
    """Mean over edits of that over the new object's tokens of their loss in nats, all read after the prompt."""
    encoded = backbone.encode([request.filled for request in requests])
    output = functional_call(
        backbone.model, parameters, kwargs={**encoded.inputs, "use_cache": False, "logits_to_keep": 1}
    )
    chances = output.logits[:, -1].float().log_softmax(-1)
    answers = [backbone.answer_ids(request.filled, request.target_new) for request in requests]
    return -torch.stack([row[ids].mean() for row, ids in zip(chances, answers, strict=True)]).mean()


def _teacher_forced(backbone: Backbone, parameters: dict[str, Tensor], requests: Sequence[EditRequest]) -> Tensor:
    """The same, each token read after those before it."""
    answers = torch.tensor([len(backbone.answer_ids(request.filled, request.target_new)) for request in requests])
    encoded = backbone.encode([f"{request.filled} {request.target_new}" for request in requests])
    kept = int(answers.max()) + 1
    output = functional_call(
        backbone.model, parameters, kwargs={**encoded.inputs, "use_cache": False, "logits_to_keep": kept}
    )
    return -answer_log_probabilities(output.logits, encoded.input_ids, answers).mean()


_LOSSES = {"last_prompt": _last_prompt, "teacher_forced": _teacher_forced}
