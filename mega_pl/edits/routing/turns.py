"""Reading a prompt's ids back as the turns of a conversation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from transformers import PreTrainedTokenizerBase

_ROLE = re.compile(r"\s*(?:system|user|assistant|model|human|ai|developer|tool|ipython)\s*(?:\n|$)", re.IGNORECASE)
"""What chat templates write between special tokens to say who speaks."""

_BRACKETS = re.compile(r"\[/?INST\]|<</?SYS>>|<\|?[a-z_]*\|?>(?=\s*$)")
"""Marks of turns that some tokenizers spell out in plain tokens."""


def turns_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """Split a prompt at its special tokens; what only names a speaker is left out, and so are empty turns.

    The last one stays though it is empty: it says that the turn before has ended and waits for an answer.

    Args:
        tokenizer: The model's.
        ids: The prompt without padding.
    """
    special = set(tokenizer.all_special_ids)
    pieces = [list(group) for inside, group in groupby(ids, key=lambda i: i in special) if not inside]
    texts = [str(tokenizer.decode(piece, clean_up_tokenization_spaces=False)) for piece in pieces]
    if len(texts) > 1 or (ids and ids[0] in special and _ROLE.match(texts[0] if texts else "")):
        texts = [_ROLE.sub("", text, count=1) if _ROLE.match(text) else text for text in texts]
    turns = [part.strip() for text in texts for part in _BRACKETS.split(text)]
    found = tuple(turn for turn in turns if turn)
    return (*found, "") if found and not turns[-1] else found
