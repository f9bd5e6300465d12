import time
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from mega_pl.editors import grace, values
from mega_pl.editors.store import Content, Store
from mega_pl.fitting import EditFitter
from tests.editors.conftest import DARRIEUX, FRANCE, GERMANY, capital, last_logits, make_editors

REQUESTS = [FRANCE, GERMANY, DARRIEUX]
OTHER = capital("spain", "Spain", "London", "Madrid")
STORING = ["rome", "memit", "alphaedit", "grace", "sake"]


def named(folder: Path, name: str, moments: Path) -> Any:
    """The editor of a name, with a store."""
    return replace(next(e for e in make_editors(moments) if e.name == name), folder=str(folder))  # type: ignore[type-var]


def number(i: int):
    return {"x": torch.tensor([float(i)])}, {"i": i}


def test_what_is_there_is_read_and_the_rest_is_made(tmp_path):
    store, made = Store(str(tmp_path)), []

    def make(i):
        made.append(i)
        return number(i)

    store.each(["b"], lambda _: number(1), "numbers")
    found = store.each(["a", "b", "c"], make, "numbers")
    assert made == [0, 2]
    assert [(float(tensors["x"]), rest) for tensors, rest in found] == [(0, {"i": 0}), (1, {"i": 1}), (2, {"i": 2})]
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [".safetensors"] * 3


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made: list[int] = []

    def make(i):
        made.append(i)
        return number(i)

    for _ in range(2):
        Store(None).each(["a"], make, "numbers")
    assert made == [0, 0]
    assert not list(tmp_path.iterdir())


def test_processes_share_the_work(tmp_path):
    made: list[tuple[str, int]] = []

    def work(name):
        def make(i):
            made.append((name, i))
            time.sleep(0.05)
            return number(i)

        results[name] = Store(str(tmp_path)).each(list(range(10)), make, "numbers")

    results: dict[str, list[Content]] = {}
    threads = [Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(i for _, i in made) == list(range(10))  # each once
    assert {name for name, _ in made} == {"a", "b"}
    assert [rest for _, rest in results["a"]] == [rest for _, rest in results["b"]] == [{"i": i} for i in range(10)]


def test_a_damaged_file_is_named(tmp_path):
    store = Store(str(tmp_path))
    store.each(["a"], number, "numbers")
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=rf"{path.name} must hold what an editor has found .*; delete it, and it"):
        store.each(["a"], number, "numbers")


def test_a_make_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        Store(str(tmp_path)).each(["a"], lambda i: number(1 // i), "numbers")
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("editor", STORING, indirect=True)
def test_an_editor_does_the_same_with_and_without_its_store(backbone, editor, tmp_path):
    storing = replace(editor, folder=str(tmp_path))
    assert repr(storing) == repr(editor)
    prompts, logits = [request.filled for request in REQUESTS], []
    for one in (editor, storing, storing):
        with one.edit(backbone, REQUESTS):
            logits.append(last_logits(backbone, *prompts))
    assert len(list(tmp_path.glob("*.safetensors"))) == len(REQUESTS)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-4)
    assert torch.equal(logits[2], logits[1])


@pytest.mark.parametrize(
    ("editor", "function"),
    [("rome", "find_shift"), ("memit", "find_shift"), ("alphaedit", "find_shift"), ("grace", "train_value")],
    indirect=["editor"],
)
def test_what_is_stored_is_not_found_again(backbone, editor, function, tmp_path, monkeypatch):
    storing = replace(editor, folder=str(tmp_path))
    with storing.edit(backbone, REQUESTS):
        pass
    for module in (values, grace):
        monkeypatch.setattr(module, function, lambda *_: pytest.fail("found again"), raising=False)
    with storing.edit(backbone, REQUESTS):
        pass
    with pytest.raises(pytest.fail.Exception, match="found again"), storing.edit(backbone, [OTHER]):  # control
        pass


def test_memit_and_alphaedit_share_what_they_aim_at(backbone, moments, tmp_path):
    for name in ("memit", "alphaedit"):
        with named(tmp_path, name, moments).edit(backbone, REQUESTS):
            pass
    assert len(list(tmp_path.glob("*.safetensors"))) == len(REQUESTS)


def test_edited_weights_are_another_model(backbone, moments, tmp_path):
    """In a sequence each shift is for the weights that the edits before have left."""
    memit = named(tmp_path, "memit", moments)
    for requests in (REQUESTS[:2], REQUESTS[1:2]):
        for _ in memit.sequence(backbone, requests, [len(requests)]):
            pass
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_a_growing_bank_fits_each_edit_once(backbone, tmp_path, monkeypatch):
    editor = named(tmp_path, "mega", tmp_path)
    fitted: list[str] = []
    update = EditFitter.update

    def counted(fitter, requests):
        fitted.extend(request.edit_id for request in requests)
        return update(fitter, requests)

    monkeypatch.setattr(EditFitter, "update", counted)
    for number_of_edits in (1, 2, 3):
        with editor.edit(backbone, REQUESTS[:number_of_edits]) as edited:
            last_logits(backbone, *(request.filled for request in REQUESTS[:number_of_edits]))
            assert edited.fired == [request.edit_id for request in REQUESTS[:number_of_edits]]
    assert fitted == ["france", "germany", "darrieux"]
