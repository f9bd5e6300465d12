"""Where the text comes from over which keys are averaged: a data set, a file, or the model itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mega_pl.asking import position_limit, sample
from mega_pl.backbone import Backbone
from mega_pl.errors import MegaValueError

LOADERS = {".txt": "text", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
"""Builders of `datasets` by the suffix of a local file."""

OWN_TOKENS, OWN_GROUP = 256, 64
"""The most tokens of a text that the model writes itself, and how many it writes together."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Some text.

    Args:
        source: A data set of `datasets`, or a local .txt (a document a line), .jsonl or .parquet file; None lets the
            model write the text itself. Where texts are given from elsewhere, it names them.
        subset: Name of the data set's configuration.
        split: Split of a data set.
        column: Column that holds the text.
        documents: The most documents, drawn at random where there are more.
        context: The most tokens of a document; None for as many as the model reads, or 256 of its own.
        seed: Seed of the draws.
    """

    source: str | None = None
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    documents: int = 1000
    context: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("documents", 1), ("context", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise MegaValueError(f"`{name}` must be at least {least}, but got {value}.")


def read_texts(backbone: Backbone, config: TextConfig, skip: int = 0) -> Iterator[str]:
    """Read some text, document by document.

    Args:
        backbone: The bare model, which writes the text where there is no source.
        config: Which text.
        skip: Documents to leave out from the front.

    Raises:
        ValueError: If the source cannot be read, or lacks the column.
    """
    if config.source is None:
        yield from _own_texts(backbone, config, skip)
        return
    import datasets  # takes a second, and only this needs it

    path = Path(config.source)
    if path.is_file() and path.suffix not in LOADERS:
        raise MegaValueError(
            f"`source` must end in one of {', '.join(LOADERS)} if it is a file, but got {config.source!r}."
        )
    try:
        if path.is_file():
            table = datasets.load_dataset(LOADERS[path.suffix], data_files=str(path), split="train")
        else:
            table = datasets.load_dataset(config.source, config.subset, split=config.split)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise MegaValueError(
            f"`source` must be a data set or a file of text, but got {config.source!r}: {reason}"
        ) from error
    if config.column not in table.column_names:
        names = ", ".join(table.column_names)
        raise MegaValueError(f"`column` must be one of {names} in {config.source!r}, but got {config.column!r}.")
    if len(table) > config.documents:
        table = table.shuffle(seed=config.seed).select(range(config.documents))
    for row in table.select(range(min(skip, len(table)), len(table))):
        yield row[config.column]


def _own_texts(backbone: Backbone, config: TextConfig, skip: int) -> Iterator[str]:
    """Texts from the beginning-of-sequence token on, each group with a seed of its own."""
    tokenizer = backbone.tokenizer
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    tokens = min(config.context or OWN_TOKENS, position_limit(backbone) or OWN_TOKENS)
    for start in range(skip - skip % OWN_GROUP, config.documents, OWN_GROUP):
        ids = torch.full((min(OWN_GROUP, config.documents - start), 1), first, device=backbone.device)
        texts = sample(backbone, ids, torch.ones_like(ids), tokens - 1, config.seed + start)
        yield from texts[max(0, skip - start) :]
