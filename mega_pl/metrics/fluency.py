"""What ROME measures of texts that a model writes: how varied they are, and whether they fit the new object."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mega_pl.errors import MegaValueError
from mega_pl.functional.text import Tfidf, generation_entropy
from mega_pl.metrics.means import MacroMean


class Fluency(MacroMean):
    """Generation entropy GE of texts that go on from prompts about the subject, in bits (`generation_entropy`)."""

    def update(self, texts: Sequence[str], edits: Sequence[str]) -> None:
        """Count a batch.

        Args:
            texts: N texts, each the prompt and what was made of it.
            edits: N edit ids; all texts of an edit together.

        Raises:
            ValueError: if the lengths differ.
        """
        self._add(self.outcomes(texts), edits)

    @staticmethod
    def outcomes(texts: Sequence[str]) -> Tensor:
        """The entropy of each text, (N,) float64."""
        return torch.tensor([generation_entropy(text) for text in texts], dtype=torch.float64)


class ReferenceScore(MacroMean):
    """Consistency: TF-IDF cosine of an edit's texts with reference texts about subjects whose object is o*.

    ROME's paper calls it RS, which is not the relation specificity of the other protocols.

    Args:
        tfidf: fitted on all reference texts.
    """

    def __init__(self, tfidf: Tfidf) -> None:
        super().__init__()
        self.tfidf = tfidf

    def update(self, texts: Sequence[str], references: Sequence[str], edits: Sequence[str]) -> None:
        """Count a batch.

        Args:
            texts: for each of E edits all its texts, joined.
            references: for each edit all its reference texts, joined.
            edits: E edit ids.

        Raises:
            ValueError: if the lengths differ.
        """
        self._add(self.outcomes(texts, references), edits)

    def outcomes(self, texts: Sequence[str], references: Sequence[str]) -> Tensor:
        """The cosine of each edit, (E,) float64."""
        if len(texts) != len(references):
            raise MegaValueError(
                f"`texts` and `references` must be equally long, but got {len(texts)} and {len(references)}."
            )
        pairs = zip(texts, references, strict=True)
        return torch.tensor([self.tfidf.cosine(text, other) for text, other in pairs], dtype=torch.float64)
