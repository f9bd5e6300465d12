"""Vectors of questions, in which questions by one relation lie near each other: the backbone's own, or an encoder's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain, groupby
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from mega_pl.asking import batches, read_states
from mega_pl.asking.batches import TOKENS, encoded_ids
from mega_pl.backbone import Backbone, Site
from mega_pl.errors import MegaValueError


class Vectors(Protocol):
    """Makes a vector of each of some masked questions."""

    def __call__(self, questions: Sequence[str]) -> Tensor:
        """The vectors (N, F), float32 on the CPU."""


class EarlyStates:
    """Mean over a question's tokens of the stream that enters one of the first blocks; 0 reads the embeddings alone.

    The first token is left out where there are others: its state is the same whatever it is. Early states know words
    and their neighbourhood; later ones put questions together that are worded alike (measured on SmolLM2-135M, where
    blocks 8 and later tell relations apart worse than blocks 1 to 6, and block 4 a little better than the embeddings).

    Args:
        backbone: The bare model.
        layer: 0-based block whose input is read.
    """

    def __init__(self, backbone: Backbone, layer: int) -> None:
        self.backbone, self.layer = backbone, layer

    @torch.no_grad()
    def __call__(self, questions: Sequence[str]) -> Tensor:
        """See `Vectors`."""
        ids = encoded_ids(self.backbone, questions)
        vectors = torch.empty(len(ids), self.backbone.width)
        for rows in _neighbours(ids, TOKENS):
            states, places = self._states([ids[i] for i in rows])
            counted = [places[1:] or places for places in places]
            starts = torch.tensor([0, *accumulate(map(len, counted))][:-1])
            vectors[rows] = F.embedding_bag(torch.tensor(list(chain(*counted))), states, starts, mode="mean")
        return vectors

    def _states(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Sequence[Sequence[int]]]:
        """States (P, D), and for each question their places."""
        if self.layer:
            return read_states(self.backbone, ids, Site(self.layer - 1, "resid_post"))
        place = {token: n for n, token in enumerate(dict.fromkeys(chain(*ids)))}
        states = self.backbone.model.get_input_embeddings()(torch.tensor(list(place), device=self.backbone.device))
        return states.float().cpu(), [[place[token] for token in row] for row in ids]


class SentenceEncoder:
    """Mean over the last states of a sentence encoder, as Sentence-BERT makes it (arXiv:1908.10084).

    Args:
        name_or_path: A folder, or a name on the Hugging Face hub, such as sentence-transformers/all-MiniLM-L6-v2.
        normalized: Whether vectors are scaled to length 1.

    Raises:
        ValueError: If it does not load.
    """

    def __init__(self, name_or_path: str, *, normalized: bool = True) -> None:
        try:
            self.normalized = normalized
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name_or_path)
            self.model: nn.Module = AutoModel.from_pretrained(name_or_path).eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise MegaValueError(
                f"`encoder` must be a folder or a hub name of a sentence encoder, but got {name_or_path!r}: {reason}"
            ) from error

    @torch.no_grad()
    def __call__(self, questions: Sequence[str]) -> Tensor:
        """See `Vectors`."""
        lengths = [len(ids) for ids in self.tokenizer(list(questions), truncation=True)["input_ids"]]
        order, parts = [], []
        for rows in batches(lengths, TOKENS):
            texts = [questions[i] for i in rows]
            encoded = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            states = self.model(**encoded).last_hidden_state
            weights = encoded["attention_mask"].to(states)[..., None]
            means = (states * weights).sum(1) / weights.sum(1)
            parts.append(F.normalize(means, dim=-1) if self.normalized else means)
            order += rows
        vectors = torch.cat(parts)
        return vectors[torch.tensor(order).argsort()]


@lru_cache(maxsize=2)
def encoder_of(name_or_path: str, *, normalized: bool = True) -> SentenceEncoder:
    """The encoder of this name, loaded once."""
    return SentenceEncoder(name_or_path, normalized=normalized)


def _neighbours(ids: Sequence[list[int]], tokens: int) -> Iterator[list[int]]:
    """Cut texts into groups of about so many tokens; those that begin alike are together, and so is their cache."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    ends = accumulate(len(ids[i]) for i in order)
    for _, group in groupby(zip(ends, order, strict=True), lambda pair: pair[0] // tokens):
        yield [i for _, i in group]
