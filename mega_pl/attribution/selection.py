"""Choosing where to steer: the contrast of some editors on edits of their own, cached by backbone, and its ranking."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mega_pl.attribution.contrast import Changes, Contrast, Criterion, changes_by, contrast_of
from mega_pl.attribution.figures import draw_contrast
from mega_pl.attribution.ranking import layer_scores, pick_layers
from mega_pl.backbone import Backbone, Site, SiteKind
from mega_pl.backbone.anatomy import check_read_out
from mega_pl.editors.protocol import Editor
from mega_pl.edits import EditCase
from mega_pl.edits.storage import write_text

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How layers are chosen.

    Args:
        number: Layers to take.
        window: Fractions of the depth between which they lie.
        spacing: Least distance of two of them.
        suppression: Weight of holding the true object back, beside promoting the new one.
        kind: Which activation of a chosen block is steered; by default the residual after attention, or after the
            block where the model has no such site.
        criterion: When an edit took.
        least: Successes and failures that an editor must have to be contrasted.
        seed: Seed of the bootstrap.
    """

    number: int = 4
    window: tuple[float, float] = (0.4, 1.0)
    spacing: int = 1
    suppression: float = 1.0
    kind: SiteKind | None = None
    criterion: Criterion = "argmax"
    least: int = 20
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Selection:
    """The chosen layers, and why.

    Args:
        contrast: Successes against failures.
        scores: (L,) score of each block, nats.
        sites: Where to steer, in the order of a forward pass.
        config: How they were chosen.
    """

    contrast: Contrast
    scores: Tensor
    sites: tuple[Site, ...]
    config: SelectionConfig

    def table(self) -> str:
        """Score, contrast and choice by block, in Markdown."""
        (new, true), chosen = self.contrast.mean, {site.layer for site in self.sites}
        lines = [
            "| block | score | attention, new | attention, true | MLP, new | MLP, true | |",
            "| --- |" + " --- |" * 6,
        ]
        columns = zip(self.scores, new[0], true[0], new[1], true[1], strict=True)
        for layer, values in enumerate(columns):
            shown = " | ".join(f"{float(value):+.3f}" for value in values)
            lines.append(f"| {layer} | {shown} | {'steered' if layer in chosen else ''} |")
        groups = [f"{name} {won} and {lost}" for name, (won, lost) in self.contrast.counts.items()]
        return "\n".join([*lines, "", f"Successes and failures: {', '.join(groups)}."]) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``attribution.json``, ``attribution.md`` and ``figures/contrast.png``."""
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        fields = {
            "format_version": FORMAT_VERSION,
            "sites": [str(site) for site in self.sites],
            "scores": self.scores.tolist(),
            "config": asdict(self.config),
            "contrast": self.contrast.to_json(),
        }
        write_text(folder / "attribution.json", json.dumps(fields, indent=1) + "\n")
        write_text(folder / "attribution.md", self.table())
        figure = draw_contrast(self.contrast, [site.layer for site in self.sites])
        figure.savefig(folder / "figures" / "contrast.png", dpi=150)


def select(
    backbone: Backbone,
    editors: Sequence[Editor],
    cases: Sequence[EditCase],
    config: SelectionConfig,
    *,
    cache: Path | None = None,
) -> Selection:
    """Contrast the editors' edits and take the blocks whose attention makes the difference.

    Args:
        backbone: The bare model.
        editors: Whose edits are contrasted; they are asked one edit at a time.
        cases: Edits for the contrast alone: those that are later judged must not be among them.
        config: How to choose.
        cache: Folder where changes are kept by backbone, editor and edits; None stands for `default_cache`.

    Raises:
        ValueError: If no editor has enough successes and failures, the window is too small, or the model has no site
            of the kind or no read-out.
    """
    # What cannot be is refused before hours of edits.
    kind = config.kind or backbone.layout.default_kind
    backbone.check_sites([Site(0, kind)])
    check_read_out(backbone.model)
    pick_layers(torch.zeros(backbone.n_layers), config.number, window=config.window, spacing=config.spacing)
    folder = default_cache() if cache is None else cache
    of_editors = [_cached(backbone, editor, cases, config.criterion, folder) for editor in editors]
    found = contrast_of(of_editors, criterion=config.criterion, least=config.least, seed=config.seed)
    scores = layer_scores(found, suppression=config.suppression)
    layers = pick_layers(scores, config.number, window=config.window, spacing=config.spacing)
    return Selection(found, scores, tuple(Site(layer, kind) for layer in layers), config)


def default_cache() -> Path:
    """Where changes are kept: ``$MEGA_PL_CACHE/attribution``, by default under ``~/.cache/mega_pl``."""
    return Path(os.environ.get("MEGA_PL_CACHE", "~/.cache/mega_pl")).expanduser() / "attribution"


def _cached(
    backbone: Backbone, editor: Editor, cases: Sequence[EditCase], criterion: Criterion, folder: Path
) -> Changes:
    """The changes by an editor, read where they have been computed before."""
    key = {
        "version": FORMAT_VERSION,
        "backbone": backbone.fingerprint,
        "dtype": str(backbone.dtype),
        "editor": repr(editor),
        "edits": [[asdict(case.request), case.paraphrase_prompts] for case in cases],
        "criterion": criterion,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = folder / f"{editor.name}-{digest[:16]}.json"
    if path.is_file():
        return _changes_from(json.loads(path.read_text("utf-8")))
    found = changes_by(backbone, editor, cases, criterion=criterion)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(found, name).tolist() for name in ("success", "layers", "total", "readout")}
    write_text(path, json.dumps({"editor": found.editor, "edits": found.edits, **tensors}) + "\n")
    return found


def _changes_from(fields: dict[str, Any]) -> Changes:
    tensors = {name: torch.tensor(fields[name]) for name in ("success", "layers", "total", "readout")}
    return Changes(editor=fields["editor"], edits=tuple(fields["edits"]), **tensors)
