"""MEGA as an editor: maps of residual activations at several sites, routed by content."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from mega_pl.asking import Edited
from mega_pl.backbone import Backbone
from mega_pl.editors.protocol import Editor, Routed
from mega_pl.edits import EditRequest
from mega_pl.fitting import FitConfig, fit


@dataclass(frozen=True, eq=False)
class Mega(Editor):
    """Fits a bank of the edits and applies it; `fit` and `EditBank` say how."""

    name: ClassVar[str] = "mega"
    config: FitConfig = field(default_factory=FitConfig)

    @contextmanager
    def edit(self, backbone: Backbone, requests: Sequence[EditRequest]) -> Iterator[Edited]:
        """Put edits into force; see `Editor`.

        Raises:
            ValueError: If the requests do not go together, or there is no such site.
        """
        with fit(backbone, requests, self.config).apply(backbone) as use:
            yield Routed(use)
