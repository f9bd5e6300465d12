"""Sentence encoders, which are optional."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Encode = Callable[[Sequence[str]], Tensor]
"""Texts to vectors (N, K)."""


def sentence_encoder(name: str, *, normalized: bool) -> Encode:
    """Load a model of sentence-transformers.

    Args:
        name: Name on the hub, or a folder.
        normalized: Whether to make vectors of length 1.

    Raises:
        ValueError: If sentence-transformers is not installed.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ValueError(
            f"`encoder` {name!r} must be loaded by sentence-transformers, but it is not installed; "
            "install mega-pl[encoder], or leave `encoder` out."
        ) from error
    model = SentenceTransformer(name)

    def encode(texts: Sequence[str]) -> Tensor:
        vectors = model.encode(list(texts), normalize_embeddings=normalized, show_progress_bar=False)
        return torch.as_tensor(vectors, dtype=torch.float32)

    return encode
