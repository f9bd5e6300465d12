"""SAKE: an optimal transport map of the state before the output layer, for prompts near an edit (arXiv:2503.01751)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mega_pl.asking import Edited, final_states
from mega_pl.backbone import Backbone, Call, each_pass, visited
from mega_pl.editors.protocol import Editor, Routed
from mega_pl.editors.store import Store, of_model
from mega_pl.edits import EditRequest, RoutedEdits, check_requests
from mega_pl.edits.routing import CentreRouter, Prompts
from mega_pl.edits.routing.runtime import Steer
from mega_pl.errors import MegaValueError
from mega_pl.fitting.prompts import PromptConfig, expand, phrasings
from mega_pl.functional import Transport, Transports, fit_transport, stack


@dataclass(frozen=True, kw_only=True)
class SakeConfig:
    """Settings of SAKE.

    Args:
        regularization: Added to the diagonals of both moments, in squared units of the state.
        implications: Pairs of prompts about consequences to keep, those that move most as the fact itself does.
        copies: Noisy copies to add of each of these.
        noise: Standard deviation of the noise.
        seed: Seed of the noise.
        prompts: How prompts are multiplied.
        router_layer: 0-based block whose output at the last token the router compares; negative: from the end.
        encoder: Sentence encoder that the router reads prompts with instead, a folder or a hub name (the authors' is
            ``sentence-transformers/paraphrase-MiniLM-L6-v2``).
        recall: Share of the edits' own prompts whose distance the router takes for near.
        margin: Multiple of that distance up to which it fires.
    """

    regularization: float = 1e-2
    implications: int = 10
    copies: int = 4
    noise: float = 0.1
    seed: int = 0
    prompts: PromptConfig = field(default_factory=lambda: PromptConfig(bare_implications=False, chat=False))
    router_layer: int = -2
    encoder: str | None = None
    recall: float = 0.95
    margin: float = 1.1

    def __post_init__(self) -> None:
        for name in ("implications", "copies", "noise"):
            if not getattr(self, name) >= 0:
                raise MegaValueError(f"`{name}` must be at least 0, but got {getattr(self, name)}.")
        for name in ("regularization", "margin"):
            if not getattr(self, name) > 0:
                raise MegaValueError(f"`{name}` must be above 0, but got {getattr(self, name)}.")
        if not 0 < self.recall <= 1:
            raise MegaValueError(f"`recall` must lie in (0, 1], but got {self.recall}.")
        if self.prompts.bare_implications:
            raise MegaValueError("`prompts.bare_implications` must be false for SAKE, but got True.")


@dataclass(frozen=True, eq=False)
class Sake(Editor):
    """Moves the output of the final norm at the prompt's last token by the map of the edit that its router chooses.

    Args:
        config: Settings.
        folder: Where maps are kept, for what needs the same.
    """

    name: ClassVar[str] = "sake"
    config: SakeConfig = field(default_factory=SakeConfig)
    folder: str | None = field(default=None, repr=False)

    @contextmanager
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Iterator[Edited]:
        """Put edits into force; see `Editor`.

        Raises:
            ValueError: If the requests do not go together, or an edit has only one phrasing.
        """
        check_requests(requests)
        router = _fit_router(backbone, requests, self.config)
        of = ["sake", *(part.name for part in fields(Transport)), *of_model(backbone), asdict(self.config)]
        found = Store(self.folder).each(
            [[*of, asdict(request)] for request in requests],
            lambda i: (vars(fit_map(backbone, requests[i], self.config)), None),
            "maps",
        )
        maps = stack([Transport(**tensors) for tensors, _ in found]).cast(device=backbone.device)
        use = RoutedEdits(backbone, [request.edit_id for request in requests], router, _steer(backbone, maps))
        with each_pass(backbone.model, use.read):
            yield Routed(use)


def _steer(backbone: Backbone, maps: Transports) -> Steer:
    """What moves the output of the final norm at the last tokens of some rows."""
    norm = backbone.model.get_submodule(backbone.layout.final_norm)

    def steering(rows: Tensor, columns: Tensor, edits: Tensor, _: Tensor) -> AbstractContextManager[None]:
        def move(call: Call) -> Tensor:
            output = call.leaving
            index = (rows.to(output.device), columns.to(output.device))
            return output.index_put(index, maps.apply(output[index], edits.to(output.device)))

        return visited(norm, move)

    return steering


def _fit_router(backbone: Backbone, requests: Sequence[EditRequest], config: SakeConfig) -> CentreRouter:
    own = [phrasings(request, config.prompts) for request in requests]
    lonely = next((request for request, prompts in zip(requests, own, strict=True) if len(prompts) < 2), None)
    if lonely is not None:
        raise MegaValueError(
            f"an edit must have 2 phrasings or more for SAKE's router, but {lonely.edit_id!r} has 1; "
            "set `prompts.prefixes`."
        )
    encoded = [backbone.encode(prompts) for prompts in own]
    return CentreRouter.fit(
        [Prompts(backbone, of_edit.inputs, of_edit.last) for of_edit in encoded],
        torch.tensor([e for e, prompts in enumerate(own) for _ in prompts]),
        layer=config.router_layer,
        encoder=config.encoder,
        recall=config.recall,
        margin=config.margin,
    )


def fit_map(backbone: Backbone, request: EditRequest, config: SakeConfig) -> Transport:
    """Fit an edit's map from source and forced source states to target states, and those of its consequences.

    Args:
        backbone: The bare model.
        request: The edit.
        config: Settings.

    Returns:
        The map, in float32 on the CPU.
    """
    prompts = expand(request, config.prompts)
    source, target = (final_states(backbone, texts) for texts in (prompts.source, prompts.target))
    about = prompts.answers.count("")  # consequences come last in both
    plain = source[: len(source) - about], target[: len(target) - about]
    more = _consequences(source[len(plain[0]) :], target[len(plain[1]) :], plain[1].mean(0) - plain[0].mean(0), config)
    samples = [torch.cat(pair) for pair in zip(plain, more, strict=True)]
    fitted = fit_transport(*samples, rank=None, regularization=config.regularization, relative=False)
    return fitted.cast(torch.float32)


def _consequences(source: Tensor, target: Tensor, move: Tensor, config: SakeConfig) -> tuple[Tensor, Tensor]:
    """Of pairs (M, D) those whose difference has the highest cosine with ``move`` (D,), and noisy copies of each."""
    alike = F.cosine_similarity(target - source, move[None], dim=1)
    kept = alike.argsort(descending=True, stable=True)[: config.implications]
    draw = torch.Generator().manual_seed(config.seed)

    def repeated(states: Tensor) -> Tensor:
        copies = states[kept].repeat(config.copies, 1)
        return torch.cat([states[kept], copies + config.noise * torch.randn(copies.shape, generator=draw)])

    return repeated(source), repeated(target)
