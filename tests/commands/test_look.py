"""``train.py look``: which model and bank it takes, and what it refuses before anything is served."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mega_pl import EditRequest, fit
from mega_pl.backbone import Backbone
from mega_pl.cli import main
from mega_pl.commands import look

gradio = pytest.importorskip("gradio", reason="Gradio is not installed")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What would have been served, and where."""
    from mega_pl.look import page

    seen: list[tuple[object, ...]] = []

    def serve(_: object, *place: object, **options: object) -> str:
        seen.append((*place, options))
        return "http://here/"

    monkeypatch.setattr(page, "serve", serve)
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda _: None)
    return seen


@pytest.fixture
def folder(lab_backbone: Backbone, tmp_path: Path) -> Path:
    edit = EditRequest(prompt="The capital of {} is", subject="France", target_true="Paris", target_new="Berlin")
    return fit(lab_backbone, [edit]).save_pretrained(tmp_path / "runs" / "lab_gpt2" / "edits")


def test_the_labs_model_comes_with_the_demos_bank_where_there_is_one(
    served: list[tuple[object, ...]],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["look", "--port", "7999", "--browser"])
    assert served == [("127.0.0.1", 7999, {"browser": True})]
    assert capsys.readouterr().out == "lab-gpt2 with 1 edits: http://here/   (Ctrl-C ends)\n"
    main(["look", "--model", "lab-llama"])
    monkeypatch.chdir(folder)
    main(["look"])
    lab_llama, bare = capsys.readouterr().out.splitlines()
    assert lab_llama.startswith("lab-llama with no edits")
    assert bare.startswith("lab-gpt2 with no edits")
    main(["look", "--bank", str(folder)])
    assert capsys.readouterr().out.startswith("lab-gpt2 with 1 edits")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--port", "99999999"], "`port` must lie in [1, 65535], but got 99999999"),
        (["--port", "-1"], "`port` must lie in"),
        (["--bank", "nowhere/at/all"], "nowhere/at/all"),
        (["--model", "lab-llama", "--bank", "FOLDER"], "a bank must be used on the backbone it was fitted on"),
    ],
)
def test_mistakes_are_a_line(options: list[str], reason: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["look", *(str(folder) if word == "FOLDER" else word for word in options)])
    assert reason in str(end.value)
    assert len(str(end.value).splitlines()) == 1


def test_without_gradio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[look.__module__], "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as end:
        main(["look"])
    assert 'pip install "mega-pl[look]"' in str(end.value)


def test_a_port_that_is_taken_is_refused(lab_backbone: Backbone, tmp_path: Path) -> None:
    import socket

    from mega_pl.errors import MegaValueError
    from mega_pl.look.page import make_page, serve
    from mega_pl.look.studio import Studio

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MegaValueError, match="must be free to listen at"):
            serve(make_page(Studio(lab_backbone), tmp_path), port=taken.getsockname()[1])
