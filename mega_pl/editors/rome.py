"""ROME: one association written into one MLP projection (arXiv:2202.05262)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from mega_pl.backbone import Backbone
from mega_pl.editors.contexts import Wordings, sample_contexts, subject_positions
from mega_pl.editors.mom2 import FactoredMoment, Mom2Config, factored_moments
from mega_pl.editors.protocol import WeightEditor, Writing
from mega_pl.editors.store import Store
from mega_pl.editors.values import ValueConfig, stored_shifts
from mega_pl.editors.weights import Projection
from mega_pl.edits import EditRequest


@dataclass(frozen=True, kw_only=True)
class RomeConfig:
    """Settings of ROME.

    Args:
        layer: 0-based block whose MLP projection is edited.
        value: How the new value is found.
        mom2: The inputs that the edit should spare; None lets it act along the subject's own key (EasyEdit).
    """

    layer: int
    value: ValueConfig = field(default_factory=ValueConfig)
    mom2: Mom2Config | None = None


@dataclass(frozen=True, eq=False)
class Rome(WeightEditor):
    """Writes one fact after another into the projection W of one block, each on the weights that the last one left.

    With C the second moment of the projection's inputs, k the mean over contexts of its input at the subject's last
    token, and k0 and v0 its input and output there in the bare prompt (Eq. 2 of arXiv:2202.05262):

        u = C^{-1} k / |C^{-1} k|,    W <- W + d u^T / (k0 . u),

    d the shift that makes the model say the new object. In the bare prompt the output is then v0 + d.

    Args:
        config: Settings.
        folder: Where shifts are kept, for what needs the same.
    """

    name: ClassVar[str] = "rome"
    config: RomeConfig
    folder: str | None = field(default=None, repr=False)
    _known: "WeakKeyDictionary[Backbone, _Known]" = field(default_factory=WeakKeyDictionary, init=False, repr=False)

    def writing(self, backbone: Backbone) -> Writing:
        """One projection's weight; see `WeightEditor`."""
        projection, store = Projection.of(backbone, self.config.layer), Store(self.folder)
        if backbone not in self._known:
            self._known[backbone] = _Known.of(backbone, self.config)

        def write(requests: Sequence[EditRequest]) -> None:
            for request in requests:
                _insert(backbone, projection, request, self._known[backbone], self.config.value, store)

        return Writing([projection.weight], write)


@dataclass(frozen=True)
class _Known:
    """What is the same for all edits of a backbone."""

    contexts: tuple[str, ...]
    mom2: FactoredMoment | None

    @classmethod
    def of(cls, backbone: Backbone, config: RomeConfig) -> "_Known":
        contexts = sample_contexts(backbone, config.value.context_template_length_params, config.value.seed)
        if config.mom2 is None:
            return cls(contexts, None)
        return cls(contexts, factored_moments(backbone, [config.layer], config.mom2)[config.layer])


def _insert(
    backbone: Backbone,
    projection: Projection,
    request: EditRequest,
    known: _Known,
    config: ValueConfig,
    store: Store,
) -> None:
    keys, values = at_subject(backbone, projection, Wordings.of(request, known.contexts))
    (shift,) = stored_shifts(
        store,
        "projection",
        [projection.weight],
        backbone,
        [request],
        known.contexts,
        config,
        values[:1],
        projection.shifted,
    )
    direction = key_direction(keys, known.mom2)
    projection.add(torch.outer(shift.double() / (keys[0].double() @ direction), direction))


def key_direction(keys: Tensor, mom2: FactoredMoment | None) -> Tensor:
    """The unit vector u (F,), float64, along ``C^{-1} k`` with k the mean of keys (C, F); without C along k itself."""
    mean = keys.double().mean(0)
    return F.normalize(mean if mom2 is None else mom2.solve(mean[:, None])[:, 0], dim=0)


@torch.no_grad()
def at_subject(backbone: Backbone, projection: Projection, wordings: Wordings) -> tuple[Tensor, Tensor]:
    """Inputs (C, F) and outputs (C, D) of a projection at the subject's last token."""
    encoded = backbone.encode(wordings.texts)
    positions = subject_positions(backbone, wordings.texts, wordings.subject_ends)
    with projection.record((torch.arange(len(positions)), positions)) as seen:
        backbone.model.base_model(**encoded.inputs, use_cache=False)
    return seen.keys, seen.values
