"""MEMIT: many associations written into the MLP projections of several blocks at once (arXiv:2210.07229)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mega_pl.backbone import Backbone, Site, record, steer
from mega_pl.editors.contexts import Wordings, sample_contexts, subject_positions
from mega_pl.editors.mom2 import FactoredMoment, Mom2Config, factored_moments
from mega_pl.editors.protocol import WeightEditor, Writing
from mega_pl.editors.store import Store
from mega_pl.editors.values import Shifted, ValueConfig, stored_shifts
from mega_pl.editors.weights import Projection
from mega_pl.edits import EditRequest
from mega_pl.errors import MegaValueError


@dataclass(frozen=True, kw_only=True)
class MemitConfig:
    """Settings of MEMIT.

    Args:
        layers: 0-based blocks whose MLP projections are edited, ascending; the output of the last is what is aimed at.
        value: How the aim is found.
        mom2: The inputs that the edits should spare.
        mom2_update_weight: Weight of these inputs against the edits' own, in tokens.
    """

    layers: tuple[int, ...]
    value: ValueConfig = field(
        default_factory=lambda: ValueConfig(clamp_norm_factor=0.75, context_template_length_params=((10, 5),))
    )
    mom2: Mom2Config = field(default_factory=Mom2Config)
    mom2_update_weight: float = 15000.0

    def __post_init__(self) -> None:
        check_layers(self.layers)
        if not self.mom2_update_weight > 0:
            raise MegaValueError(f"`mom2_update_weight` must be above 0, but got {self.mom2_update_weight}.")


@dataclass(frozen=True, eq=False)
class Memit(WeightEditor):
    """Writes all facts together, spread over the projections W of some blocks.

    For each edit the output z of the last block at the subject's last token is found that makes the model say the new
    object. Then, for the i-th of n blocks, with K (F, E) the edits' inputs of its projection, C the second moment of
    inputs, and R (D, E) what is left between z and the output as it is by now (algorithm 1 of arXiv:2210.07229):

        W <- W + R / (n - i) K^T (mom2_update_weight * C + K K^T)^{-1}.

    Args:
        config: Settings.
        folder: Where what is added to outputs is kept, for what needs the same: AlphaEdit's and MEMIT's are one.
    """

    name: ClassVar[str] = "memit"
    config: MemitConfig
    folder: str | None = field(default=None, repr=False)
    _known: "WeakKeyDictionary[Backbone, _Known]" = field(default_factory=WeakKeyDictionary, init=False, repr=False)

    def writing(self, backbone: Backbone) -> Writing:
        """The weights of some projections; see `WeightEditor`.

        Raises:
            ValueError: If there is no such block, or the MLP does not write straight into the stream.
        """
        if backbone not in self._known:
            self._known[backbone] = _Known.of(backbone, self.config.layers, self.config.value, self.config.mom2)
        known, weight = self._known[backbone], self.config.mom2_update_weight

        def solve(layer: int, keys: Tensor) -> Tensor:
            return _adjusted(keys, known.moments[layer], weight)

        return spread_writing(
            backbone, self.config.layers, self.config.value, known.contexts, solve, Store(self.folder)
        )


@dataclass(frozen=True)
class _Known:
    """What is the same for all edits of a backbone.

    Args:
        contexts: Texts that are put before prompts.
        moments: The factored second moments of the inputs of each block's projection.
    """

    contexts: tuple[str, ...]
    moments: dict[int, FactoredMoment]

    @classmethod
    def of(cls, backbone: Backbone, layers: Sequence[int], value: ValueConfig, mom2: Mom2Config) -> "_Known":
        """Sample the contexts and read, or compute, the moments."""
        check_straight(backbone)
        contexts = sample_contexts(backbone, value.context_template_length_params, value.seed)
        return cls(contexts, factored_moments(backbone, layers, mom2))


def check_layers(layers: Sequence[int]) -> None:
    """Refuse blocks that are none, not in order or named twice.

    Raises:
        ValueError: If they are.
    """
    if not layers or list(layers) != sorted(set(layers)):
        raise MegaValueError(f"`layers` must be one or more different blocks in ascending order, but got {layers}.")


def check_straight(backbone: Backbone) -> None:
    """Refuse a model whose MLP does not write straight into the stream.

    Raises:
        ValueError: If it does not.
    """
    if backbone.layout.post_norms or backbone.layout.residual_scale != 1:
        raise MegaValueError(
            f"writing over several blocks must be given a model whose MLP writes straight into the stream, but "
            f"{backbone.name!r} normalises or scales in between; use ROME."
        )


def spread_writing(
    backbone: Backbone,
    layers: Sequence[int],
    value: ValueConfig,
    contexts: tuple[str, ...],
    solve: Callable[[int, Tensor], Tensor],
    store: Store,
) -> Writing:
    """Writing of edits that is spread over the projections of some blocks.

    Args:
        backbone: The bare model.
        layers: 0-based blocks, ascending; the output of the last is what is aimed at.
        value: How the aim is found.
        contexts: Texts to put before prompts.
        solve: From a block and the edits' inputs (E, F) of its projection to what they are multiplied with, (F, E)
            float64: the block's weight moves by ``R / (n - i)`` times its transpose.
        store: Where shifts are kept.
    """
    projections = {layer: Projection.of(backbone, layer) for layer in layers}
    site, weights = Site(layers[-1], "resid_post"), [projection.weight for projection in projections.values()]

    def write(requests: Sequence[EditRequest]) -> None:
        wordings = [Wordings.of(request, contexts) for request in requests]
        _, start = _at_subjects(backbone, projections[site.layer], site, wordings)
        add = stream_shift(backbone, site.layer)
        shifts = stored_shifts(store, str(site), weights, backbone, requests, contexts, value, start, add)
        aim = start.double() + shifts.double()
        for i, (layer, projection) in enumerate(projections.items()):
            keys, now = _at_subjects(backbone, projection, site, wordings)
            residual = (aim - now.double()) / (len(projections) - i)
            projection.add(residual.T @ solve(layer, keys).T)

    return Writing(weights, write)


def stream_shift(backbone: Backbone, layer: int) -> Shifted:
    """Adds a vector to a block's output."""

    def shifted(shift: Tensor, positions: Tensor) -> AbstractContextManager[None]:
        return steer(backbone.model, {Site(layer, "resid_post"): lambda h: h + shift.to(h)}, positions)

    return shifted


def _adjusted(keys: Tensor, mom2: FactoredMoment, mom2_update_weight: float) -> Tensor:
    """``(weight * C + K K^T)^{-1} K`` (F, E) for keys (E, F): by Woodbury's identity one solve is E wide."""
    solved = mom2.solve(keys.T) / mom2_update_weight
    inside = keys.to(solved) @ solved
    adjusted: Tensor = torch.linalg.solve(torch.eye(len(inside)).to(inside) + inside, solved, left=False)
    return adjusted


@torch.no_grad()
def _at_subjects(
    backbone: Backbone, projection: Projection, site: Site, wordings: Sequence[Wordings]
) -> tuple[Tensor, Tensor]:
    """The projection's inputs (E, F) and the site's values (E, D), for each edit at its subject's last token.

    Inputs are half from the bare prompt and half from its mean after the contexts; values are from the bare prompt.
    """
    keys, states = [], []
    for one in wordings:
        encoded = backbone.encode(one.texts)
        positions = subject_positions(backbone, one.texts, one.subject_ends)
        tokens = (torch.arange(len(positions)), positions)
        with projection.record(tokens) as seen, record(backbone.model, [site], positions) as state:
            backbone.model.base_model(**encoded.inputs, use_cache=False)
        bare, after = seen.keys[0].double(), (seen.keys[1:] if len(seen.keys) > 1 else seen.keys).double()
        keys.append((bare + after.mean(0)) / 2)
        states.append(state[site][0])
    return torch.stack(keys), torch.stack(states)
