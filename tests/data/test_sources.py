"""Published sources: what the table says, and fetching from a file, from a server and from nowhere."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets.config
import pytest
from huggingface_hub import constants

from mega_pl.data import read, sources
from mega_pl.data.readers import READERS, SOURCES
from mega_pl.data.sources import Source, fetch

TEXT = '{"edit_id": "a", "prompt": "{} is in", "subject": "Rome", "target_new": "Peru", "target_true": "Italy"}\n'
DIGEST = hashlib.sha256(TEXT.encode()).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One edit in a file of a folder of its own."""
    folder = tmp_path / "served"
    folder.mkdir()
    path = folder / "edits.jsonl"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_addressed_and_pinned_as_far_as_it_can_be(name: str) -> None:
    format, source = SOURCES[name]
    assert source.name == name
    assert source in READERS[format].SOURCES
    assert source.address.startswith("https://")
    assert source.address.endswith(".json")
    assert source.sha256 is None or re.fullmatch("[0-9a-f]{64}", source.sha256)
    assert source.revision is None or re.fullmatch("[0-9a-f]{40}", source.revision)
    assert source.revision is None or source.revision in source.address
    assert source.revision or source.sha256


def test_no_name_is_published_twice() -> None:
    assert len(SOURCES) == sum(len(getattr(reader, "SOURCES", ())) for reader in READERS.values())


def test_checksums_belong_to_one_file_each() -> None:
    known = [source.sha256 for _, source in SOURCES.values() if source.sha256]
    assert len(known) == len(set(known)) >= 5


@pytest.mark.parametrize("sha256", [DIGEST, None])
def test_a_local_file_is_its_own_cache(monkeypatch: pytest.MonkeyPatch, file: Path, sha256: str | None) -> None:
    source = Source(name="mine", file=file.as_uri(), sha256=sha256)
    assert fetch(source) == file
    monkeypatch.setitem(SOURCES, "mine", ("jsonl", source))
    assert read("mine")[0].request.edit_id == "a"


def test_another_file_than_the_known_one_is_refused(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    source = Source(name="mine", file=file.as_uri(), sha256="0" * 64)
    with pytest.raises(ValueError, match=f"source 'mine' must have the SHA-256 0+, but .* has {DIGEST}; delete that"):
        fetch(source)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, file: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server on this machine that hands out the folder, and what it was asked for."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    asked: list[str] = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(str(args[0]))

    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(file.parent)))
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}", asked
    served.shutdown()
    thread.join()
    served.server_close()


def test_a_url_is_downloaded_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    address, asked = server
    source = Source(name="mine", file=f"{address}/edits.jsonl", sha256=DIGEST)
    first = fetch(source, cache_dir=tmp_path / "cache")
    assert first.read_text("utf-8") == TEXT
    assert first.is_relative_to(tmp_path / "cache")
    requests = len(asked)
    assert requests > 0
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert fetch(source, cache_dir=tmp_path / "cache") == first
    assert len(asked) == requests


def test_a_missing_url_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    source = Source(name="mine", file=f"{server[0]}/none.jsonl")
    with pytest.raises(
        ValueError, match=r"source 'mine' .* download http://.*/none\.jsonl elsewhere and give"
    ) as caught:
        fetch(source, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["counterfact", "knowedit_counterfact"])
def test_offline_the_way_out_is_a_local_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"source '{name}' must be in the cache or within reach, but got ") as caught:
        fetch(SOURCES[name][1], cache_dir=tmp_path)
    assert str(caught.value).endswith(
        f"; download {SOURCES[name][1].address} elsewhere and give the path of that file instead."
    )
    assert "\n" not in str(caught.value)


def test_a_hub_file_is_asked_for_at_its_revision(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    asked: list[object] = []

    def download(*args: object, **options: object) -> str:
        asked.extend([args, options])
        return str(file)

    monkeypatch.setattr(sources, "hf_hub_download", download)
    source = Source(name="mine", repo="me/edits", file="edits.jsonl", revision="1" * 40, sha256=DIGEST)
    assert fetch(source) == file
    assert asked == [("me/edits", "edits.jsonl"), {"repo_type": "dataset", "revision": "1" * 40, "cache_dir": None}]
    assert source.address == f"https://huggingface.co/datasets/me/edits/resolve/{'1' * 40}/edits.jsonl"
