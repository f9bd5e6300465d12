"""Finding the texts that are most like another: by their words, or by a sentence encoder."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mega_pl.edits.routing.vectors import encoder_of
from mega_pl.functional.text import Tfidf


class Similarity(Protocol):
    """Cosines between some texts and others."""

    def __call__(self, query: str) -> Tensor:
        """The cosine (N,) of each of the N texts with ``query``, float32 on the CPU."""


class WordSimilarity:
    """Cosines of TF-IDF vectors, all texts at once.

    Args:
        texts: N texts; the frequencies are those in them.

    Raises:
        ValueError: If there is no text.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.tfidf = Tfidf.fit(texts)
        self._columns = {term: i for i, term in enumerate(self.tfidf.idf)}
        rows = [self._unit(text) for text in texts]
        places = [(i, column) for i, row in enumerate(rows) for column in row]
        self._texts = torch.sparse_coo_tensor(
            torch.tensor(places, dtype=torch.long).reshape(-1, 2).T,
            torch.tensor([weight for row in rows for weight in row.values()]),
            (len(texts), len(self._columns)),
            check_invariants=True,
        )

    def __call__(self, query: str) -> Tensor:
        """See `Similarity`."""
        vector = torch.zeros(len(self._columns), 1)
        for column, weight in self._unit(query).items():
            vector[column] = weight
        cosines: Tensor = torch.sparse.mm(self._texts, vector)[:, 0]
        return cosines

    def _unit(self, text: str) -> dict[int, float]:
        weights = self.tfidf.weights(text)
        length = math.hypot(*weights.values())
        return {self._columns[term]: weight / length for term, weight in weights.items()}


class SentenceSimilarity:
    """Cosines of a sentence encoder's vectors.

    Args:
        texts: N texts.
        encoder: Folder or hub name, such as ``sentence-transformers/all-MiniLM-L6-v2``.
    """

    def __init__(self, texts: Sequence[str], encoder: str) -> None:
        self._encoder = encoder_of(encoder)
        self._texts = self._encoder(texts)

    def __call__(self, query: str) -> Tensor:
        """See `Similarity`."""
        return self._texts @ self._encoder([query])[0]


def similarity(texts: Sequence[str], encoder: str | None) -> Similarity:
    """Cosines with some texts, by a sentence encoder or, without one, by their words."""
    return WordSimilarity(texts) if encoder is None else SentenceSimilarity(texts, encoder)
