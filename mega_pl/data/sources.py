"""Where published benchmarks are, fetched through `datasets` and `huggingface_hub` into their caches.

Revisions and checksums are written only where they are known; checksums are those on which independent users of the
files agree. A file without one is taken as it comes. Files of new facts, RippleEdits' and KnowEdit's Recent, are not
listed: their records name no object to be replaced, so that reading one takes a model, which `read_rippleedits` and
`read_knowedit` are given in Python.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download

from mega_pl.data.counterfact import read_counterfact
from mega_pl.data.easyedit import read_easyedit
from mega_pl.data.knowedit import read_knowedit
from mega_pl.data.mquake import read_mquake
from mega_pl.data.records import Reader
from mega_pl.data.rippleedits import read_rippleedits
from mega_pl.data.zsre import read_zsre
from mega_pl.errors import MegaValueError


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of a published benchmark.

    Args:
        read: Its reader.
        file: Path in a data set on the Hugging Face hub, or a URL if ``repo`` is empty.
        repo: Name of the data set on the hub.
        revision: Commit of the data set, or of the repository that the URL is in; None if it cannot be pinned.
        sha256: Checksum of the file; None if unknown.
    """

    read: Reader
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


_ROME = "https://rome.baulab.info/data/dsets"
_KNOWEDIT = "zjunlp/KnowEdit"
_KNOWEDIT_COMMIT = "c3a6bccb5fc37a59dea3197ac36526d44606acd0"
_RIPPLEEDITS_COMMIT = "21182d13b6ddaa50f023052d13ff59e279deec05"
_RIPPLEEDITS = f"https://github.com/edenbiran/RippleEdits/raw/{_RIPPLEEDITS_COMMIT}/data/benchmark"
_MQUAKE_COMMIT = "b87ee8ec4b62493e9e57c6f4ad42653db8dde452"
_MQUAKE = f"https://raw.githubusercontent.com/princeton-nlp/MQuAKE/{_MQUAKE_COMMIT}/datasets"
_EASYEDIT_COMMIT = "51d7402617c2e52bde0dc11b76e400c3725a181a"
_EASYEDIT = f"https://raw.githubusercontent.com/Jometeorie/KnowledgeSpread/{_EASYEDIT_COMMIT}/data/counterfact"

SOURCES: dict[str, Source] = {
    "counterfact": Source(
        read=read_counterfact,
        file=f"{_ROME}/counterfact.json",
        sha256="d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f",
    ),
    "counterfact_easyedit": Source(
        read=read_easyedit,
        file=f"{_EASYEDIT}/counterfact-edit.json",
        revision=_EASYEDIT_COMMIT,
    ),
    "popular": Source(
        read=read_rippleedits,
        file=f"{_RIPPLEEDITS}/popular.json",
        revision=_RIPPLEEDITS_COMMIT,
    ),
    "random": Source(
        read=read_rippleedits,
        file=f"{_RIPPLEEDITS}/random.json",
        revision=_RIPPLEEDITS_COMMIT,
    ),
    "knowedit_counterfact": Source(
        read=read_knowedit,
        file="benchmark/wiki_counterfact/test_cf.json",
        repo=_KNOWEDIT,
        revision=_KNOWEDIT_COMMIT,
        sha256="efc01ba398dfe04975939f729aab45523addb3c6b3cf41d7429ba5de1d45225b",
    ),
    "knowedit_zsre": Source(
        read=read_knowedit,
        file="benchmark/ZsRE/ZsRE-test-all.json",
        repo=_KNOWEDIT,
        revision=_KNOWEDIT_COMMIT,
        sha256="0e0214dda853a906ef02bef58c7ce2978af5a962e91fc4a10827e0125459905c",
    ),
    "zsre": Source(
        read=read_zsre,
        file=f"{_ROME}/zsre_mend_eval.json",
        sha256="8a371d512f8a6ab175db4ef672181d5c0e52da23298cb51e5a2eeea2f89aa9cd",
    ),
    "mquake": Source(
        read=read_mquake,
        file=f"{_MQUAKE}/MQuAKE-CF-3k.json",
        revision=_MQUAKE_COMMIT,
        sha256="ce27a39c39f2983512b9b5578fadea5fbe352e5368f49d64f38d37ce304edc80",
    ),
}
"""The published sources by name."""


def fetch(name: str, *, cache_dir: str | Path | None = None) -> Path:
    """Download a source once, check it, and give its place in the cache.

    A broken download from the hub goes on where it stopped; one from a URL starts anew.

    Args:
        name: A key of `SOURCES`.
        cache_dir: The cache; None for that of `huggingface_hub` or `datasets`.

    Raises:
        ValueError: If the name is unknown, the file is neither cached nor within reach, or it is not the known one.
    """
    if name not in SOURCES:
        raise MegaValueError(f"`name` must be one of {', '.join(SOURCES)}, but got {name!r}.")
    source = SOURCES[name]
    try:
        path = Path(_download(source, cache_dir))
    except (OSError, ValueError) as error:  # hub, file system and HTTP client each have their own of these
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise MegaValueError(
            f"source {name!r} must be in the cache or within reach, but got {reason}; download {source.address} "
            f"elsewhere and give the path of that file instead."
        ) from error
    _check(name, source, path)
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


def _check(name: str, source: Source, path: Path) -> None:
    if source.sha256 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        raise MegaValueError(
            f"source {name!r} must have the SHA-256 {source.sha256}, but {path} has {found}; delete that file and "
            f"fetch again, or give the path of a file that you trust instead."
        )
