"""Tensors and facts about them in one file, for what is kept so that it need not be computed again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mega_pl.edits.storage import replacing, write_tensors
from mega_pl.errors import MegaValueError


def write_tensor_file(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """Write a file, which appears complete or not at all, and its folder.

    Args:
        path: The file.
        tensors: By name; they are written from the CPU.
        facts: By name, whatever JSON can hold.

    Raises:
        OSError: If there is no room, or no right to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as beside:
        write_tensors(kept, beside, {name: json.dumps(fact, ensure_ascii=False) for name, fact in facts.items()})


def read_tensor_file(path: Path, content: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file; tensors are read when used.

    Args:
        path: The file.
        content: What it holds, for a message.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = {name: json.loads(fact) for name, fact in (file.metadata() or {}).items()}
        return load_file(path), facts
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, content, error) from error


def damaged(path: Path, content: str, error: Exception) -> MegaValueError:
    """What to raise for a file that does not hold what it should."""
    reason = " ".join(str(error).split())
    return MegaValueError(f"{path} must hold {content}, but {reason}; delete it, and it is made again.")
