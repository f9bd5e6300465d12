"""Files that are kept so that nothing need be computed again."""

from pathlib import Path

import pytest
import torch

from mega_pl.edits import tensor_files
from mega_pl.edits.tensor_files import read_tensor_file, write_tensor_file

TENSORS = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor([7])}
FACTS = {"names": ["Zoë", "{}"], "count": 3, "nothing": None}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.safetensors"
    write_tensor_file(path, TENSORS, FACTS)
    tensors, facts = read_tensor_file(path, "numbers")
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.safetensors"
    write_tensor_file(path, TENSORS, FACTS)

    def full(_: object, beside: Path, __: object) -> None:
        beside.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensor_file(path, {}, {})
    assert read_tensor_file(path, "numbers")[1] == FACTS
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x02\x00\x00\x00\x00\x00\x00\x00{}xx"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{path.name} must hold numbers, but [^\n]+; delete it, and it is made again\."
    ):
        read_tensor_file(path, "numbers")
