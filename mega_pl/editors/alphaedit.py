"""AlphaEdit: MEMIT within the null space of what else the projections read (arXiv:2410.02355)."""

from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mega_pl.backbone import Backbone
from mega_pl.editors.contexts import sample_contexts
from mega_pl.editors.memit import check_layers, check_straight, spread_writing
from mega_pl.editors.mom2 import Mom2Config, second_moments
from mega_pl.editors.protocol import WeightEditor, Writing
from mega_pl.editors.store import Store
from mega_pl.editors.values import ValueConfig
from mega_pl.errors import MegaValueError


@dataclass(frozen=True, kw_only=True)
class AlphaEditConfig:
    """Settings of AlphaEdit.

    Args:
        layers: 0-based blocks whose MLP projections are edited, ascending; the output of the last is what is aimed at.
        value: How the aim is found.
        mom2: The inputs that edits must leave alone; its ridge is not used.
        nullspace_threshold: Directions count as unused where the second moment's eigenvalue is below it, in squared
            units of the inputs.
        L2: Added to the diagonal of the edits' own moment.
    """

    layers: tuple[int, ...]
    value: ValueConfig = field(
        default_factory=lambda: ValueConfig(clamp_norm_factor=0.75, context_template_length_params=((10, 5),))
    )
    mom2: Mom2Config = field(default_factory=Mom2Config)
    nullspace_threshold: float = 2e-2
    L2: float = 10.0

    def __post_init__(self) -> None:
        check_layers(self.layers)
        for name in ("nullspace_threshold", "L2"):
            if not getattr(self, name) > 0:
                raise MegaValueError(f"`{name}` must be above 0, but got {getattr(self, name)}.")


@dataclass(frozen=True, eq=False)
class AlphaEdit(WeightEditor):
    """Writes facts as MEMIT does, into directions that other inputs of the projections do not use.

    With U (F, N) the eigenvectors of the second moment of a projection's inputs whose eigenvalues are below the
    threshold, P = U U^T, K (F, E) the edits' inputs, K_p (F, M) those of edits that the weight holds already, and R
    (D, E) what is left to write (Eq. 14 of arXiv:2410.02355):

        W <- W + R K^T P (K_p K_p^T P + K K^T P + L2 I)^{-1},

    and so W k stays what it was for every input k that P takes to zero.

    Args:
        config: Settings.
        folder: Where what is added to outputs is kept, for what needs the same: MEMIT's and AlphaEdit's are one.
    """

    name: ClassVar[str] = "alphaedit"
    config: AlphaEditConfig
    folder: str | None = field(default=None, repr=False)
    _known: "WeakKeyDictionary[Backbone, _Known]" = field(default_factory=WeakKeyDictionary, init=False, repr=False)

    def writing(self, backbone: Backbone) -> Writing:
        """The weights of some projections; see `WeightEditor`.

        Raises:
            ValueError: If there is no such block, the MLP does not write straight into the stream, or no direction of
                a projection's inputs is unused.
        """
        if backbone not in self._known:
            self._known[backbone] = _Known.of(backbone, self.config)
        known, earlier = self._known[backbone], {layer: Tensor() for layer in self.config.layers}

        def solve(layer: int, keys: Tensor) -> Tensor:
            free = known.free[layer]
            inside = keys.to(free) @ free  # (E, N), the keys' coordinates in the null space
            everything = torch.cat([inside, earlier[layer].to(inside)]) if len(earlier[layer]) else inside
            earlier[layer] = everything
            return free @ null_space_step(everything, len(keys), self.config.L2)

        return spread_writing(
            backbone, self.config.layers, self.config.value, known.contexts, solve, Store(self.folder)
        )


def null_space_step(keys: Tensor, count: int, ridge: float) -> Tensor:
    """``(K K^T + ridge I)^{-1} K`` for K the transpose of keys (M, N), of its first ``count`` columns: (N, count).

    Where fewer keys than directions are given, the system that is solved is as wide as the keys are many.
    """
    if len(keys) < keys.shape[1]:
        gram = keys @ keys.T + ridge * torch.eye(len(keys)).to(keys)
        identity = torch.eye(len(keys), count).to(keys)
        narrow: Tensor = keys.T @ torch.linalg.solve(gram, identity)
        return narrow
    moment = keys.T @ keys + ridge * torch.eye(keys.shape[1]).to(keys)
    wide: Tensor = torch.linalg.solve(moment, keys[:count].T)
    return wide


@dataclass(frozen=True)
class _Known:
    """What is the same for all edits of a backbone.

    Args:
        contexts: Texts that are put before prompts.
        free: By block the directions (F, N) that its projection's inputs do not use, float64.
    """

    contexts: tuple[str, ...]
    free: dict[int, Tensor]

    @classmethod
    def of(cls, backbone: Backbone, config: AlphaEditConfig) -> "_Known":
        check_straight(backbone)
        contexts = sample_contexts(backbone, config.value.context_template_length_params, config.value.seed)
        moments = second_moments(backbone, config.layers, config.mom2)
        free = {layer: unused(moment, config.nullspace_threshold) for layer, (moment, _) in moments.items()}
        return cls(contexts, {layer: directions.to(backbone.device) for layer, directions in free.items()})


def unused(moment: Tensor, threshold: float) -> Tensor:
    """Eigenvectors (F, N), float64, of a second moment (F, F) whose eigenvalues are below a threshold.

    Raises:
        ValueError: If there is none.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    kept: Tensor = vectors[:, values < threshold]
    if not kept.shape[1]:
        raise MegaValueError(
            "`nullspace_threshold` must be above the least eigenvalue of the inputs' second moment, but got "
            f"{threshold} for {float(values[0]):.3g}; raise it, or take other blocks."
        )
    return kept
