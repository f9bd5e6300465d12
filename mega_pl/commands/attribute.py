"""``train.py attribute``: the contrast of some editors by itself, for people and for later fits."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from mega_pl.asking import answer_ids, batches, token_counts
from mega_pl.attribution.figures import draw_heads
from mega_pl.attribution.heads import head_importance
from mega_pl.attribution.selection import SelectionConfig, select
from mega_pl.backbone import Backbone, load
from mega_pl.backbone.anatomy import has_components
from mega_pl.backbone.backbone import Dtype
from mega_pl.data.datamodule import EditDataModule
from mega_pl.editors import Editor

TOKENS = 512
"""Tokens of a batch whose heads are scored; each head at each prompt is read out over the vocabulary."""


def attribute(
    model_name_or_path: str,
    data: EditDataModule,
    editors: list[Editor],
    folder: str,
    selection: SelectionConfig | None = None,
    dtype: Dtype = "float32",
    revision: str | None = None,
    device_map: str | None = None,
    cache: str | None = None,
) -> None:
    """Contrast successful with failed edits, and rank the layers by it.

    Writes ``attribution.json``, ``attribution.md``, ``figures/contrast.png`` and, where heads write straight into the
    stream, ``figures/heads.png``: what each head of the bare model does for the true objects. The changes of every
    editor stay in the cache, where a fit with `AttributionLayerSelection` finds them.

    Args:
        model_name_or_path: What `load` loads: a lab model, a name on the Hugging Face hub, a folder or a GGUF file.
        data: The edits of the contrast; later evaluations must use others.
        editors: Whose edits are contrasted.
        folder: Where the results are written.
        selection: How layers are chosen.
        dtype: Of the backbone's weights.
        revision: Branch, tag or commit on the hub.
        device_map: Where Accelerate puts the weights.
        cache: Folder of the cache; by default ``$MEGA_PL_CACHE`` or ``~/.cache/mega_pl``.
    """
    data.setup("fit")
    backbone = load(model_name_or_path, revision=revision, dtype=dtype, device_map=device_map)
    found = select(
        backbone, editors, data.cases, selection or SelectionConfig(), cache=None if cache is None else Path(cache)
    )
    found.save(Path(folder))
    if has_components(backbone.model):
        _draw_heads(backbone, data).savefig(Path(folder) / "figures" / "heads.png", dpi=150)
    print(f"\n{found.table()}\nWritten to {folder}: attribution.json, attribution.md, figures")


def _draw_heads(backbone: Backbone, data: EditDataModule) -> Figure:
    """Mean importance of each head for the true object at the edits' prompts."""
    prompts = [request.filled for request in data.requests]
    targets = [ids[0] for ids in answer_ids(backbone, prompts, [r.target_true for r in data.requests])[0]]
    scores = [
        head_importance(backbone, [prompts[i] for i in rows], [targets[i] for i in rows]).heads[:, 0]
        for rows in batches(token_counts(backbone, prompts), TOKENS)
    ]
    return draw_heads(torch.cat(scores).mean(0), f"{backbone.name}: heads for the true object")
