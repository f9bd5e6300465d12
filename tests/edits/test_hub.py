"""Banks on a hub that is a folder on this machine."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi

from mega_pl.backbone import Backbone, Site
from mega_pl.edits import EditBank, EditRequest, hub
from mega_pl.edits.card import card as card_of
from mega_pl.edits.routing import CentreRouter
from mega_pl.functional import mean_shift, stack


@dataclass
class Commit:
    commit_url: str
    pr_url: str | None = None


@dataclass
class FakeHub:
    """A hub in a folder: a branch of a repository is a folder in it."""

    root: Path
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    token: object = None

    def __call__(self, token: object = None) -> FakeHub:
        self.token = token
        return self

    def branch(self, name: str, revision: str | None) -> Path:
        return self.root / name / (revision or "main")

    def create_repo(self, name: str, *, private: bool | None, exist_ok: bool) -> None:
        if name.startswith("locked/"):
            raise OSError("403 Forbidden\nsecond line")
        self.calls.append(("create_repo", {"private": private}))
        self.branch(name, None).mkdir(parents=True, exist_ok=exist_ok)

    def create_branch(self, name: str, *, branch: str, exist_ok: bool) -> None:
        self.branch(name, branch).mkdir(parents=True, exist_ok=exist_ok)

    def file_exists(self, name: str, file: str, *, revision: str | None) -> bool:
        return (self.branch(name, revision) / file).exists()

    def hf_hub_download(self, name: str, file: str, *, revision: str | None) -> str:
        return str(self.branch(name, revision) / file)

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: Path,
        commit_message: str,
        revision: str | None,
        create_pr: bool,
        ignore_patterns: list[str] | None,
    ) -> Commit:
        self.calls.append(("upload_folder", {"commit_message": commit_message}))
        if create_pr:
            return Commit("hub/commit", "hub/pull/1")
        ignored = shutil.ignore_patterns(*ignore_patterns or [])
        shutil.copytree(folder_path, self.branch(repo_id, revision), dirs_exist_ok=True, ignore=ignored)
        return Commit("hub/commit")

    def snapshot_download(
        self, name: str, *, revision: str | None, token: object, cache_dir: object, allow_patterns: list[str]
    ) -> str:
        self.calls.append(("snapshot_download", {"token": token, "cache_dir": cache_dir}))
        if not self.branch(name, revision).is_dir():
            raise OSError("404")
        return str(self.branch(name, revision))


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", fake)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot_download)
    return fake


@pytest.fixture
def bank(tiny_backbone: Callable[[str], Backbone]) -> EditBank:
    backbone = tiny_backbone("gpt2")
    draw = torch.Generator().manual_seed(0)
    request = EditRequest(edit_id="a", prompt="{} is in", subject="Rome", target_new="Spain", target_true="Italy")
    clouds = torch.randn(2, 5, backbone.width, generator=draw)
    return EditBank(
        requests=(request,),
        maps={Site(2, "resid_mid"): stack([mean_shift(*clouds)]).cast(torch.float32)},
        objects=((),),
        router=CentreRouter(torch.zeros(1, backbone.width), torch.ones(1), layer=0),
        strength=1.0,
        backbone={"name": "gpt2", "revision": None, **backbone.fingerprint},
        settings={},
    )


def test_a_pushed_bank_comes_back(bank: EditBank, fake_hub: FakeHub) -> None:
    assert bank.push_to_hub("me/capitals", private=True, token="mine", commit_message="Two") == "hub/commit"
    assert fake_hub.token == "mine"
    assert fake_hub.calls == [("create_repo", {"private": True}), ("upload_folder", {"commit_message": "Two"})]
    found = EditBank.from_pretrained("me/capitals", token="yours", cache_dir="cache")
    assert fake_hub.calls[-1] == ("snapshot_download", {"token": "yours", "cache_dir": "cache"})
    assert found.ids == bank.ids
    (site,) = bank.maps
    assert torch.equal(found.maps[site].shift, bank.maps[site].shift)
    assert 'EditBank.from_pretrained("me/capitals")' in (fake_hub.branch("me/capitals", None) / "README.md").read_text()


def test_a_branch_and_a_pull_request(bank: EditBank, fake_hub: FakeHub) -> None:
    bank.push_to_hub("me/capitals", revision="v2")
    assert EditBank.from_pretrained("me/capitals", revision="v2").ids == ("a",)
    assert not list(fake_hub.branch("me/capitals", None).iterdir())
    assert bank.push_to_hub("me/capitals", create_pr=True) == "hub/pull/1"


def test_a_card_of_somebodys_own_stays_and_one_of_ours_is_renewed(bank: EditBank, fake_hub: FakeHub) -> None:
    bank.push_to_hub("me/capitals")
    card = fake_hub.branch("me/capitals", None) / "README.md"
    fresh = card.read_text("utf-8")
    card.write_text(card_of(bank, "somewhere/else"), "utf-8")
    bank.push_to_hub("me/capitals")
    assert card.read_text("utf-8") == fresh
    for own in ("# my thesis", fresh.replace("# 1 edit", "# 1 beautiful edit")):
        card.write_text(own, "utf-8")
        bank.push_to_hub("me/capitals")
        assert card.read_text("utf-8") == own
    assert EditBank.from_pretrained("me/capitals").ids == ("a",)


def test_a_hub_that_refuses_says_the_way_out(bank: EditBank, fake_hub: FakeHub) -> None:
    with pytest.raises(
        ValueError,
        match=r"may write to, but 'locked/x' refuses: 403 Forbidden second line; log in with `hf auth login`",
    ):
        bank.push_to_hub("locked/x")
    with pytest.raises(ValueError, match="a repository on the hub, but there is no 'me/nothing': 404"):
        EditBank.from_pretrained("me/nothing")


@pytest.mark.parametrize(
    "name", ["create_repo", "create_branch", "file_exists", "hf_hub_download", "upload_folder", "snapshot_download"]
)
def test_the_real_hub_takes_what_the_folder_takes(name: str) -> None:
    real = inspect.signature(getattr(HfApi, name)).parameters
    own = [parameter.name for parameter in inspect.signature(getattr(FakeHub, name)).parameters.values()]
    assert {"name": "repo_id", "file": "filename"}.keys() >= set(own) - set(real)
    assert list(real)[:2] == ["self", "repo_id"]
