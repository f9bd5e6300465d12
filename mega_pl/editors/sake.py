"""SAKE: an optimal transport map of the state before the output layer, for prompts near an edit (arXiv:2503.01751)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mega_pl.backbone import Backbone, each_prompt
from mega_pl.data.prompts import PromptConfig, expand, phrasings
from mega_pl.editors.centres import CentreGate
from mega_pl.editors.encoders import sentence_encoder
from mega_pl.editors.protocol import Edited, Editor, check_requests
from mega_pl.edits import NO_EDIT, EditRequest
from mega_pl.edits.gate import evidence
from mega_pl.functional import Transport, Transports, fit_transport, stack

GateReader = Callable[[dict[str, Tensor], Tensor], Tensor]
"""From a batch's ids, mask and positions, by name, and each row's last token (B,), to vectors (B, K)."""

BATCH = 128
"""Prompts a forward pass."""


@dataclass(frozen=True, kw_only=True)
class SakeConfig:
    """Settings of SAKE.

    Args:
        regularization: Added to the diagonals of both covariances, in squared units of the state.
        implications: Pairs of prompts about consequences to keep, those that move most as the fact itself does.
        copies: Noisy copies to add of each of these.
        noise: Standard deviation of the noise.
        seed: Seed of the noise.
        prompts: How prompts are multiplied.
        gate_layer: 0-based block whose output at the last token the gate compares; a negative one counts from the end.
        encoder: Model of sentence-transformers that the gate reads prompts with instead (the authors' is
            ``paraphrase-MiniLM-L6-v2``).
        recall: Share of the edits' own prompts whose distance the gate takes for near.
        margin: Multiple of that distance up to which it fires.
    """

    regularization: float = 1e-2
    implications: int = 10
    copies: int = 4
    noise: float = 0.1
    seed: int = 0
    prompts: PromptConfig = field(default_factory=lambda: PromptConfig(bare_implications=False))
    gate_layer: int = -2
    encoder: str | None = None
    recall: float = 0.95
    margin: float = 1.1

    def __post_init__(self) -> None:
        for name in ("implications", "copies", "noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be at least 0, but got {getattr(self, name)}.")
        for name in ("regularization", "margin"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, but got {getattr(self, name)}.")
        if not 0 < self.recall <= 1:
            raise ValueError(f"`recall` must lie in (0, 1], but got {self.recall}.")
        if self.prompts.bare_implications:
            raise ValueError("`prompts.bare_implications` must be false for SAKE, but got True.")


@dataclass(frozen=True, eq=False)
class Sake(Editor):
    """Moves the output of the final norm at the prompt's last token by the map of the edit that its gate chooses."""

    name: ClassVar[str] = "sake"
    config: SakeConfig = field(default_factory=SakeConfig)

    @contextmanager
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Iterator[Edited]:
        """Put edits into force; see `Editor`.

        Raises:
            ValueError: If the requests do not go together, or an edit has only one phrasing.
        """
        check_requests(requests)
        read = gate_reader(backbone, self.config)
        gate = _fit_gate(backbone, requests, self.config, read)
        maps = stack([fit_map(backbone, request, self.config) for request in requests]).cast(device=backbone.device)
        mapped = Mapped(backbone, [request.edit_id for request in requests], maps, gate, read)
        with each_prompt(backbone.model, mapped.steered):
            yield mapped


@dataclass(eq=False)
class Mapped(Edited):
    """A backbone with SAKE's maps in force.

    Args:
        backbone: The edited model.
        ids: The edits' names.
        maps: Their maps.
        gate: Chooses among them.
        read: What the gate compares.
        fixed: For each row the index of its edit, instead of the gate's choice.
        forced: Whether the gate must choose an edit.
        routes: (B,) what the prompts of the last batch got.
    """

    backbone: Backbone
    ids: list[str]
    maps: Transports
    gate: CentreGate
    read: GateReader
    fixed: list[int] | None = None
    forced: bool = False
    routes: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @property
    def fired(self) -> list[str | None]:
        """The edit that each prompt of the last batch got, or None."""
        return [None if route == NO_EDIT else self.ids[route] for route in self.routes.tolist()]

    def route(self, edits: Sequence[str | None] | None = None, *, forced: bool = False) -> None:
        """Decide which edit each row gets; see `Edited`."""
        unknown = {edit for edit in edits or () if edit is not None} - set(self.ids)
        if unknown:
            raise KeyError(f"`edits` must name edits in force, but got {', '.join(map(repr, sorted(unknown)))}.")
        self.fixed = None if edits is None else [NO_EDIT if e is None else self.ids.index(e) for e in edits]
        self.forced = forced

    @contextmanager
    def steered(self, inputs: dict[str, Tensor], last: Tensor) -> Iterator[None]:
        """Route the prompts of a forward pass and move their last states in it."""
        self.routes = self._routes(inputs, last)
        rows = (self.routes != NO_EDIT).nonzero()[:, 0]

        def move(_: nn.Module, __: object, output: Tensor) -> Tensor:
            index = (rows.to(output.device), last[rows].to(output.device))
            moved = self.maps.apply(output[index], self.routes[rows].to(output.device))
            return output.index_put(index, moved)

        handle = self.backbone.model.get_submodule(self.backbone.layout.final_norm).register_forward_hook(move)
        try:
            yield
        finally:
            handle.remove()

    def _routes(self, inputs: dict[str, Tensor], last: Tensor) -> Tensor:
        if self.fixed is None:
            return self.gate.route(self.read(inputs, last), forced=self.forced)
        if len(self.fixed) != len(last):
            raise ValueError(
                f"`edits` must name one edit a row, but got {len(self.fixed)} for {len(last)} rows; "
                "with beams, repeat each name."
            )
        return torch.tensor(self.fixed, device=last.device)


def gate_reader(backbone: Backbone, config: SakeConfig) -> GateReader:
    """What SAKE's gate compares: states of the bare model, or its prompts' sentence vectors."""
    if config.encoder is not None:
        encode, tokenizer = sentence_encoder(config.encoder, normalized=False), backbone.tokenizer
        return lambda inputs, last: encode(tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True))

    def states(inputs: dict[str, Tensor], last: Tensor) -> Tensor:
        seen = evidence(backbone, inputs, [config.gate_layer])
        return seen[torch.arange(len(last), device=seen.device), last.to(seen.device)]

    return states


def _fit_gate(backbone: Backbone, requests: Sequence[EditRequest], config: SakeConfig, read: GateReader) -> CentreGate:
    own = [(e, prompt) for e, request in enumerate(requests) for prompt in phrasings(request, config.prompts)]
    vectors = []
    for start in range(0, len(own), BATCH):
        encoded = backbone.encode([prompt for _, prompt in own[start : start + BATCH]])
        vectors.append(read(encoded.inputs, encoded.last))
    of_edits, found = torch.tensor([e for e, _ in own]), torch.cat(vectors)
    lonely = next((e for e in range(len(requests)) if int((of_edits == e).sum()) < 2), None)
    if lonely is not None:
        raise ValueError(
            f"an edit must have 2 phrasings or more for SAKE's gate, but {requests[lonely].edit_id!r} has 1; "
            "set `prompts.prefixes`."
        )
    return CentreGate.fit(found, of_edits.to(found.device), recall=config.recall, margin=config.margin)


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
    source, target = (final_states(backbone, some) for some in (prompts.source, prompts.target))
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


@torch.no_grad()
def final_states(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    """Output (N, D) of the final norm at each prompt's last token, in float32 on the CPU."""
    states = torch.empty(len(prompts), backbone.width)
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(prompts), BATCH):
        rows = by_length[start : start + BATCH]
        encoded = backbone.encode([prompts[i] for i in rows])
        states[rows] = (
            backbone.model.base_model(**encoded.inputs, use_cache=False).last_hidden_state[:, -1].float().cpu()
        )
    return states
