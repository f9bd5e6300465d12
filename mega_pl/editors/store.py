"""What single edits cost most to find, in files, so that rows and runs that need the same find it once."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm.auto import tqdm

from mega_pl.backbone import Backbone
from mega_pl.edits.tensor_files import read_tensor_file, write_tensor_file

Content = tuple[dict[str, Tensor], Any]
"""Tensors by name, and what else JSON can hold."""


@dataclass(frozen=True)
class Store:
    """A folder of files, each of one edit.

    Any number of processes may share it: each makes what nobody has made or is at, and waits for the rest.

    Args:
        folder: Where the files are; None keeps nothing.
    """

    folder: str | None

    def each(self, keys: Sequence[object], make: Callable[[int], Content], description: str) -> list[Content]:
        """Contents by their keys, read where a file holds them and otherwise made and written.

        Args:
            keys: For each edit everything that decides its content, ready for JSON.
            make: Makes the content of the key at a place.
            description: What the progress bar says.

        Raises:
            ValueError: If a file is damaged.
        """
        found: dict[int, Content] = {}
        with tqdm(total=len(keys), desc=description, leave=False, disable=None) as progress:
            for patience in (0, -1):  # at first whatever another process is at is passed over
                for i in (i for i in range(len(keys)) if i not in found):
                    try:
                        found[i] = self._one(keys[i], partial(make, i), patience)
                    except Timeout:
                        continue
                    progress.update()
        return [found[i] for i in range(len(keys))]

    def _one(self, key: object, make: Callable[[], Content], patience: float) -> Content:
        if self.folder is None:
            return make()
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        path, lock = (Path(self.folder) / part for part in (f"{digest}.safetensors", f"locks/{digest}.lock"))
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=patience):
            if not path.is_file():
                tensors, rest = make()
                write_tensor_file(path, tensors, {"rest": rest})
        tensors, facts = read_tensor_file(path, "what an editor has found for an edit")
        return tensors, facts["rest"]


def of_model(backbone: Backbone, parameters: Iterable[Tensor] = ()) -> list[object]:
    """What a key says of a model: which it is, its dtype, and some weights that may have been edited by now."""
    found = hashlib.sha256()
    for parameter in parameters:
        found.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return [backbone.fingerprint, str(backbone.dtype), found.hexdigest()]
