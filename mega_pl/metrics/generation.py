"""What a model says when it answers freely, one class a measure: no token of the answer is given to it.

A continuation is judged as text. An object is named by its name or by an alias, as a whole and in its case
(`find_name`), and within the first sentence if its name begins before that ends (`sentence_end`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from mega_pl.errors import MegaTypeError, MegaValueError
from mega_pl.functional.text import find_name, sentence_end, starts_with_name, without_names
from mega_pl.metrics.sake import SuccessRate


def at_start(texts: Sequence[str], names: Sequence[Sequence[str]]) -> Tensor:
    """Whether each continuation begins with one of the names, white space apart.

    Args:
        texts: N continuations.
        names: the names of each test's object.

    Returns:
        (N,) bool.

    Raises:
        ValueError: if the lengths differ.
    """
    _check(texts, names)
    return torch.tensor([starts_with_name(t, n) for t, n in zip(texts, names, strict=True)], dtype=torch.bool)


def in_first_sentence(texts: Sequence[str], names: Sequence[Sequence[str]]) -> Tensor:
    """Whether one of the names begins in each continuation's first sentence, (N,) bool. As `at_start`."""
    _check(texts, names)
    return torch.tensor([_named_early(t, n) is not None for t, n in zip(texts, names, strict=True)], dtype=torch.bool)


def comes_back(
    texts: Sequence[str], new: Sequence[Sequence[str]], old: Sequence[Sequence[str]]
) -> tuple[Tensor, Tensor]:
    """Whether a continuation that names the new object in its first sentence names the old one after it.

    An old name that is part of a new one, as "York" of "New York", does not count where the whole stands.

    Args:
        texts: N continuations.
        new: the names of each test's new object.
        old: the names of its old object.

    Returns:
        Which come back and which name the new object to begin with, both (N,) bool.

    Raises:
        ValueError: if the lengths differ.
    """
    _check(texts, new)
    _check(texts, old)
    back, kept = [], []
    for text, news, olds in zip(texts, new, old, strict=True):
        end = _named_early(text, news)
        kept.append(end is not None)
        back.append(end is not None and find_name(without_names(text[end:], news), olds) is not None)
    return torch.tensor(back, dtype=torch.bool), torch.tensor(kept, dtype=torch.bool)


class Start(SuccessRate):
    """Share of continuations that begin with the object."""

    def update(self, texts: Sequence[str], names: Sequence[Sequence[str]]) -> None:
        """Count a batch; arguments as for `at_start`."""
        hits = at_start(texts, names)
        self._count(hits, torch.ones_like(hits))


class FirstSentence(SuccessRate):
    """Share of continuations whose first sentence names the object."""

    def update(self, texts: Sequence[str], names: Sequence[Sequence[str]]) -> None:
        """Count a batch; arguments as for `at_start`."""
        hits = in_first_sentence(texts, names)
        self._count(hits, torch.ones_like(hits))


class Relapse(SuccessRate):
    """Share of the continuations that name the new object at first and the old one later. Lower is better."""

    higher_is_better = False

    def update(self, texts: Sequence[str], new: Sequence[Sequence[str]], old: Sequence[Sequence[str]]) -> None:
        """Count a batch; arguments as for `comes_back`."""
        self._count(*comes_back(texts, new, old))


GenerationKind = Literal["rewrite", "paraphrase"]
"""The prompts that are continued: the edit prompt and its paraphrases."""

MEASURES: dict[str, type[SuccessRate]] = {
    "exact_start": Start,
    "alias_start": Start,
    "exact_sentence": FirstSentence,
    "alias_sentence": FirstSentence,
    "relapse": Relapse,
}
"""What is measured of each kind of prompt; exact ones take the new object's name alone, the others aliases too."""

GENERATION_METRICS: dict[str, type[SuccessRate]] = {
    f"{kind}_{name}": metric for kind in get_args(GenerationKind) for name, metric in MEASURES.items()
}
"""The protocol's measures under the keys of `metrics.json`."""


def generation_metrics() -> MetricCollection:
    """The measures, to be updated one by one under their keys."""
    return MetricCollection({name: metric() for name, metric in GENERATION_METRICS.items()}, compute_groups=False)


def _named_early(text: str, names: Sequence[str]) -> int | None:
    """Where the first mention ends that begins in the first sentence."""
    found = find_name(text, names)
    return found[1] if found is not None and found[0] < sentence_end(text) else None


def _check(texts: Sequence[str], names: Sequence[Sequence[str]]) -> None:
    if len(texts) != len(names):
        raise MegaValueError(f"names must be given for each text, but got {len(texts)} texts and {len(names)} groups.")
    for group in names:
        if isinstance(group, str):
            raise MegaTypeError(
                f"names must be a sequence of strings, but got the string {group!r}; wrap it in a tuple."
            )
