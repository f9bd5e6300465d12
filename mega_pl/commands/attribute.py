"""``train.py attribute``: the contrast of some editors by itself, for people and for later fits."""

from pathlib import Path

from mega_pl.attribution.selection import SelectionConfig, select
from mega_pl.backbone import Backbone
from mega_pl.backbone.backbone import Dtype
from mega_pl.data.datamodule import EditDataModule
from mega_pl.editors import Editor
from mega_pl.lab import model_path


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

    Writes ``attribution.json``, ``attribution.md`` and ``figures/contrast.png``, and leaves the changes of every editor
    in the cache, where a fit with `AttributionLayerSelection` finds them.

    Args:
        model_name_or_path: ``lab-gpt2``, ``lab-llama``, a folder, or a name on the Hugging Face hub.
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
    backbone = Backbone.from_pretrained(
        model_path(model_name_or_path), revision=revision, dtype=dtype, device_map=device_map
    )
    found = select(
        backbone, editors, data.cases, selection or SelectionConfig(), cache=None if cache is None else Path(cache)
    )
    found.save(Path(folder))
    print(f"\n{found.table()}\nWritten to {folder}: attribution.json, attribution.md, figures/contrast.png")
