"""Banks on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, snapshot_download

from mega_pl.edits.card import CARD, card, may_write
from mega_pl.errors import MegaValueError

if TYPE_CHECKING:
    from mega_pl.edits.bank import EditBank

Token = str | bool | None
"""An access token; None takes the one that `hf auth login` has stored, and False none."""


def download(
    name: str, files: Sequence[str], *, revision: str | None, token: Token, cache_dir: str | Path | None
) -> Path:
    """Fetch files of a repository into the cache, and tell where they are.

    Raises:
        ValueError: If there is no such repository or revision, or it cannot be reached.
    """
    try:
        return Path(
            snapshot_download(name, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=list(files))
        )
    except (OSError, ValueError) as error:
        raise MegaValueError(
            f"a bank must be a folder or a repository on the hub, but there is no {name!r}: {error}"
        ) from error


def upload(
    bank: EditBank,
    name: str,
    *,
    private: bool | None,
    revision: str | None,
    token: Token,
    commit_message: str,
    create_pr: bool,
) -> str:
    """Save a bank in a repository of the hub, in one commit; a card that somebody wrote there is left alone.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        ValueError: If the repository cannot be written to.
    """
    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(name, branch=revision, exist_ok=True)
        with TemporaryDirectory() as folder:
            saved = bank.save_pretrained(folder)
            (saved / CARD).write_text(card(bank, name), "utf-8")
            commit = api.upload_folder(
                repo_id=name,
                folder_path=saved,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                ignore_patterns=None if _card_is_ours(api, name, revision) else [CARD],
            )
    except (OSError, ValueError) as error:
        raise MegaValueError(
            f"a bank must be pushed to a repository that you may write to, but {name!r} refuses: {error}; log in with "
            "`hf auth login`, or pass a `token` that may write."
        ) from error
    return str(commit.pr_url or commit.commit_url)


def _card_is_ours(api: HfApi, name: str, revision: str | None) -> bool:
    """Whether the repository's card is one as it was written here, or there is none."""
    if not api.file_exists(name, CARD, revision=revision):
        return True
    return may_write(Path(api.hf_hub_download(name, CARD, revision=revision)))
