"""Fine-tuning of one or more MLP projections on the edits alone, with or without a bound on every weight's move."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mega_pl.asking.batches import encoded_ids
from mega_pl.backbone import Backbone
from mega_pl.editors.protocol import WeightEditor, Writing
from mega_pl.editors.values import answer_log_probabilities
from mega_pl.editors.weights import Projection, assign
from mega_pl.edits import EditRequest
from mega_pl.errors import MegaValueError

FtObjective = Literal["prompt_last", "target_new"]


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig:
    """Settings of fine-tuning.

    Args:
        layers: 0-based blocks whose MLP projections, weight and bias, are trained.
        objective_optimization: ``prompt_last`` asks for all tokens of the new object right after the prompt (FT-L
            of EasyEdit); ``target_new`` for each after those before it (FT-M).
        num_steps: The most passes over the edits.
        lr: Of Adam.
        weight_decay: Of Adam.
        norm_constraint: The most that a weight may move; None for no bound.
        batch_size: Edits a step.
        append_eos: Whether the end token is asked for after the new object, as LocFT does (arXiv:2509.22072), so that
            what is written stops there; with ``target_new`` alone.
        early_stop_loss: Loss in nats below which a batch makes no step, and a pass with as low a mean is the last.
    """

    layers: tuple[int, ...]
    objective_optimization: FtObjective = "prompt_last"
    num_steps: int = 25
    lr: float = 5e-4
    weight_decay: float = 0.0
    norm_constraint: float | None = None
    batch_size: int = 1
    append_eos: bool = False
    early_stop_loss: float = 0.01

    def __post_init__(self) -> None:
        if self.objective_optimization not in get_args(FtObjective):
            names = ", ".join(get_args(FtObjective))
            raise MegaValueError(
                f"`objective_optimization` must be one of {names}, but got {self.objective_optimization!r}."
            )
        if self.append_eos and self.objective_optimization != "target_new":
            raise MegaValueError(
                "`append_eos` must be given with `objective_optimization` target_new, but got "
                f"{self.objective_optimization}."
            )
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise MegaValueError(f"`layers` must be one or more different blocks, but got {self.layers}.")
        for name, least in (("num_steps", 1), ("batch_size", 1), ("weight_decay", 0), ("early_stop_loss", 0)):
            if not getattr(self, name) >= least:
                raise MegaValueError(f"`{name}` must be at least {least}, but got {getattr(self, name)}.")
        for name in ("lr", "norm_constraint"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise MegaValueError(f"`{name}` must be above 0, but got {value}.")


@dataclass(frozen=True, eq=False)
class FineTuning(WeightEditor):
    """Adam on copies in float32, which the model's own weights become, rounded to their dtype, when it is done."""

    config: FineTuningConfig

    @property
    def name(self) -> str:
        """``ft-l``, ``ft-m`` or ``locft``, by what is asked for."""
        if self.config.append_eos:
            return "locft"
        return "ft-l" if self.config.objective_optimization == "prompt_last" else "ft-m"

    def writing(self, backbone: Backbone) -> Writing:
        """Weights and biases of some projections; see `WeightEditor`."""
        modules = [Projection.of(backbone, layer).module for layer in self.config.layers]
        chosen = {id(parameter) for module in modules for parameter in module.parameters()}
        trained = {name: p for name, p in backbone.model.named_parameters() if id(p) in chosen}

        def write(requests: Sequence[EditRequest]) -> None:
            for name, value in _fit(backbone, trained, requests, self.config).items():
                assign(trained[name], value)

        return Writing(list(trained.values()), write)


def _fit(
    backbone: Backbone, trained: Mapping[str, nn.Parameter], requests: Sequence[EditRequest], config: FineTuningConfig
) -> dict[str, Tensor]:
    """Train copies of some parameters and leave the model alone."""
    batches = [requests[i : i + config.batch_size] for i in range(0, len(requests), config.batch_size)]
    with torch.inference_mode(False), torch.enable_grad():
        copies = {name: p.detach().clone().float().requires_grad_() for name, p in trained.items()}
        bounds = {name: copy.detach().clone() for name, copy in copies.items()}
        adam = torch.optim.Adam(copies.values(), lr=config.lr, weight_decay=config.weight_decay)
        for _ in range(config.num_steps):
            losses = []
            for batch in batches:
                rounded = {name: copy.to(trained[name].dtype) for name, copy in copies.items()}
                loss = _LOSSES[config.objective_optimization](backbone, rounded, batch, config.append_eos)
                losses.append(float(loss.detach()))
                if not losses[-1] < config.early_stop_loss:  # a loss that is no number must show in the weights
                    adam.zero_grad()
                    torch.autograd.backward(loss, inputs=list(copies.values()))
                    adam.step()
                    _clamp(copies, bounds, config.norm_constraint)
            if sum(losses) / len(losses) < config.early_stop_loss:
                break
    return copies


@torch.no_grad()
def _clamp(copies: Mapping[str, Tensor], start: Mapping[str, Tensor], most: float | None) -> None:
    if most is not None:
        for name, copy in copies.items():
            copy.clamp_(start[name] - most, start[name] + most)


def _prompt_last(backbone: Backbone, parameters: dict[str, Tensor], requests: Sequence[EditRequest], _: bool) -> Tensor:
    """Mean over edits of that over the new object's tokens of their loss in nats, all read after the prompt."""
    encoded = backbone.encode([request.filled for request in requests])
    output = functional_call(
        backbone.model, parameters, kwargs={**encoded.inputs, "use_cache": False, "logits_to_keep": 1}
    )
    chances = output.logits[:, -1].float().log_softmax(-1)
    answers = [backbone.answer_ids(request.filled, request.target_new) for request in requests]
    return -torch.stack([row[ids].mean() for row, ids in zip(chances, answers, strict=True)]).mean()


def _target_new(
    backbone: Backbone, parameters: dict[str, Tensor], requests: Sequence[EditRequest], append_eos: bool
) -> Tensor:
    """The same, each token read after those before it, and the end token after the last."""
    end = [int(backbone.tokenizer.eos_token_id)] if append_eos else []
    prompts = encoded_ids(backbone, [request.filled for request in requests])
    answers = [[*backbone.answer_ids(request.filled, request.target_new), *end] for request in requests]
    encoded = backbone.pad([[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)])
    lengths = torch.tensor(list(map(len, answers)))
    kept = int(lengths.max()) + 1
    output = functional_call(
        backbone.model, parameters, kwargs={**encoded.inputs, "use_cache": False, "logits_to_keep": kept}
    )
    return -answer_log_probabilities(output.logits, encoded.input_ids, lengths).mean()


_LOSSES = {"prompt_last": _prompt_last, "target_new": _target_new}
