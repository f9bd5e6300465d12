"""``export`` by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mega_pl.cli import main
from mega_pl.edits.export import INDEX


def refused(args: list[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(args)
    message = str(exit_.value.code)
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("form", "rest", "suffix"),
    [
        ("affine", [], "safetensors"),
        ("affine", ["--edits", "curie"], "safetensors"),
        ("easysteer", ["--lossy", "--edits", "[curie]"], "json"),
        ("gguf", ["--lossy=true"], "gguf"),
    ],
)
def test_every_format_is_written(
    form: str, rest: list[str], suffix: str, bank_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if form == "gguf":
        pytest.importorskip("gguf")
    out = tmp_path / "out"
    main(["export", "--bank", str(bank_folder), "--output", str(out), "--format", form, *rest])
    assert sorted(path.name for path in out.iterdir()) == [f"edit-0000.{suffix}", INDEX]
    (entry,) = json.loads((out / INDEX).read_text("utf-8"))["edits"]
    assert (entry["edit_id"], entry["prompt"]) == ("curie", "Marie Curie was born in")
    told = capsys.readouterr().out
    assert f"1 edit as {form}" in told
    assert ("lost: " in told) == bool(rest and "lossy" in rest[0])


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        (["--format", "gguf"], "a control vector must be asked for with --lossy"),
        (["--format", "easysteer"], "fit at resid_post, or pass --lossy"),
        (["--format", "affine", "--edits", "nobody"], "`edits` must name edits of the bank, curie, but got 'nobody'"),
        (["--format", "affine", "--edits", "[12, b]"], "`edits` must name edits of the bank, curie, but got '12', 'b'"),
        (["--format", "affine", "--bank", "./nowhere"], "a bank must be a folder or a repository on the hub"),
        (["--format", "affine", "--max_gib", "0.0001"], "`max_gib` must be at least 0.00 for 1 edit as"),
        (["--format", "affine", "--output", "file/x"], "'file/x' must be a place to read from or write to"),
        (["--format", "affine", "--output", "file"], "`output` must be a new or an empty folder"),
    ],
)
def test_a_mistake_ends_in_one_line(
    changes: list[str], rule: str, bank_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    assert rule in refused(["export", "--bank", str(bank_folder), "--output", "out", *changes])
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]
