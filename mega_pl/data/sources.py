"""Fetching published files through `datasets` and `huggingface_hub` into their caches.

Revisions and checksums are written only where they are known. The checksum of RippleEdits' Recent is the one in its
repository; the others are those on which independent users of the files agree. A file without one is taken as it comes.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download

from mega_pl.errors import MegaValueError


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of a published benchmark.

    Args:
        name: What it is called here.
        file: Path in a data set on the Hugging Face hub, or a URL if ``repo`` is empty.
        repo: Name of the data set on the hub.
        revision: Commit of the data set, or of the repository that the URL is in; None if it cannot be pinned.
        sha256: Checksum of the file; None if unknown.
    """

    name: str
    file: str
    repo: str = ""
    revision: str | None = None
    sha256: str | None = None

    @property
    def address(self) -> str:
        """Where a person finds the file."""
        if not self.repo:
            return self.file
        return f"https://huggingface.co/datasets/{self.repo}/resolve/{self.revision or 'main'}/{self.file}"


def fetch(source: Source, *, cache_dir: str | Path | None = None) -> Path:
    """Download a source once, check it, and give its place in the cache.

    A broken download from the hub goes on where it stopped; one from a URL starts anew.

    Args:
        source: The file.
        cache_dir: The cache; None for that of `huggingface_hub` or `datasets`.

    Raises:
        ValueError: If the file is neither cached nor within reach, or it is not the known one.
    """
    try:
        path = Path(_download(source, cache_dir))
    except (OSError, ValueError) as error:  # hub, file system and HTTP client each have their own of these
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise MegaValueError(
            f"source {source.name!r} must be in the cache or within reach, but got {reason}; download {source.address} "
            f"elsewhere and give the path of that file instead."
        ) from error
    _check(source, path)
    return path


def _download(source: Source, cache_dir: str | Path | None) -> str:
    if source.repo:
        return hf_hub_download(
            source.repo, source.file, repo_type="dataset", revision=source.revision, cache_dir=cache_dir
        )
    from datasets import DownloadConfig, DownloadManager  # a second of imports that runs on local files do without

    # without the ETag a cached file needs no connection
    config = DownloadConfig(cache_dir=cache_dir, use_etag=False)
    return str(DownloadManager(download_config=config).download(source.file))


def _check(source: Source, path: Path) -> None:
    if source.sha256 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        raise MegaValueError(
            f"source {source.name!r} must have the SHA-256 {source.sha256}, but {path} has {found}; delete that file "
            f"and fetch again, or give the path of a file that you trust instead."
        )
