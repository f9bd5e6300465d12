"""The prompts on which keys and values are measured: an edit's prompt after texts that the model writes itself."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mega_pl.asking import sample
from mega_pl.backbone import Backbone
from mega_pl.edits import EditRequest
from mega_pl.edits.request import SLOT
from mega_pl.errors import MegaValueError

STARTS = ("The", "Therefore", "Because", "I", "You")
"""First words of the texts (EasyEdit's); every model has them."""

Lengths = tuple[tuple[int, int], ...]
"""For each group of texts how many tokens a text has, and how many texts there are."""


@dataclass(frozen=True)
class Wordings:
    """A prompt about a subject after several contexts.

    Args:
        texts: C texts that end as the prompt does.
        subject_ends: Where the subject ends in each, in characters.
    """

    texts: tuple[str, ...]
    subject_ends: tuple[int, ...]

    @classmethod
    def of(cls, request: EditRequest, contexts: Sequence[str] = ("",)) -> "Wordings":
        """An edit's prompt after contexts, which bring their own space."""
        end = request.prompt.index(SLOT) + len(request.subject)
        return cls(
            texts=tuple(context + request.filled for context in contexts),
            subject_ends=tuple(len(context) + end for context in contexts),
        )


def subject_positions(backbone: Backbone, texts: Sequence[str], ends: Sequence[int]) -> Tensor:
    """Where the last token of each text's subject stands in the batch that ``Backbone.encode`` makes of the texts.

    The token is looked up in the encoding of the whole text, because tokens depend on what follows.

    Args:
        backbone: The model with its tokenizer.
        texts: B texts.
        ends: For each the number of characters up to the end of its subject.

    Returns:
        (B,) long on the CPU, counted with the padding on the left.

    Raises:
        ValueError: If the tokenizer does not tell which characters a token is of.
    """
    if not backbone.tokenizer.is_fast:
        raise MegaValueError(
            f"the tokenizer must tell which characters a token is of, but {type(backbone.tokenizer).__name__} does "
            "not; load a fast one."
        )
    spans = backbone.tokenizer(list(texts), return_offsets_mapping=True)["offset_mapping"]
    width = max(len(of_text) for of_text in spans)
    last = [
        width - len(of_text) + max(i for i, (start, stop) in enumerate(of_text) if start < min(end, stop))
        for of_text, end in zip(spans, ends, strict=True)
    ]
    return torch.tensor(last)


def sample_contexts(backbone: Backbone, lengths: Lengths, seed: int) -> tuple[str, ...]:
    """Let the model write texts to put before a prompt, from its 5 likeliest tokens at temperature 1.

    Args:
        backbone: The bare model.
        lengths: How long and how many; the first words take turns.
        seed: Seed of the sampling.

    Returns:
        The empty context, then the texts, each with a full stop and a space.
    """
    contexts = [""]
    for tokens, count in lengths:
        encoded = backbone.encode([STARTS[i % len(STARTS)] for i in range(count)])
        for text in sample(backbone, encoded.input_ids, encoded.attention_mask, tokens - 1, seed, top_k=5):
            words = re.sub(r"[\s{}\ufffd]+", " ", text).strip()
            contexts.append(f"{words}. ")
    return tuple(contexts)
