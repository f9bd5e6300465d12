"""Whether a question about a subject is an edit's question: the relation that it asks, compared with all others.

A question whose subject is masked is compared with the references of every relation of the template bank, and with
the edit's own wordings. Six pieces of evidence are combined by a logistic model whose weights are not negative, so that
more evidence never counts against an edit; `calibration` finds them and the thresholds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from mega_pl.edits.routing.question import MASK, plain
from mega_pl.edits.routing.subjects import FUNCTION_WORDS, fold
from mega_pl.functional.discriminant import Discriminant

EVIDENCE = ("own", "wording", "posterior", "noun", "strange noun", "strange words")
"""What speaks for an edit: likeness to its relation's references and to its own prompt; the log-share of its relation
among all; that the subject stands in a noun phrase of its relation. What speaks against it counts negatively: that the
subject stands in a noun phrase with a noun, or that the question has words, that the edit's own wordings do not have.
A noun of another relation settles it: "the mayor of the birthplace of X" asks about the birthplace of X."""

STRANGE = 3
"""The most words that count as strange."""

STEM = 5
"""Letters by which forms of a word are told from other words."""

SHARPNESS = 8.0
"""Of the posterior over relations, for cosines."""


class Relation(Protocol):
    """A relation of the template bank."""

    @property
    def name(self) -> str:
        """Its Wikidata property."""

    @property
    def subjects(self) -> Sequence[str]:
        """The types that it leads from."""

    @property
    def object(self) -> str:
        """The type that it leads to."""

    @property
    def nouns(self) -> Sequence[str]:
        """Nouns for its object."""

    @property
    def phrasings(self) -> Sequence[str]:
        """Templates that the object continues."""

    @property
    def references(self) -> Sequence[str]:
        """Templates that a question is compared with."""


@dataclass(frozen=True, eq=False)
class RelationMatcher:
    """The references of all relations and the calibrated decision.

    Args:
        relations: Names of the R relations.
        nouns: For each its nouns.
        words: For each the stems of the words in its references.
        space: Projection of question vectors, in which wordings of one relation coincide.
        references: (M, K) unit vectors.
        owners: (M,) long, the relation of each.
        weights: (6,) of the `EVIDENCE`, none negative.
        bias: Added to the weighted evidence.
        threshold: Of the sum, from which on an edit answers.
        open_threshold: The same for an edit that does not say its relation, or one that the bank does not hold.
    """

    relations: tuple[str, ...]
    nouns: tuple[tuple[str, ...], ...]
    words: tuple[frozenset[str], ...]
    space: Discriminant
    references: Tensor
    owners: Tensor
    weights: Tensor
    bias: float
    threshold: float
    open_threshold: float

    def best(self, questions: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Cosine (N, R) of questions (N, K) with the nearest reference of each relation.

        Args:
            questions: Unit vectors in the space.
            hidden: (N, M) bool, references that do not count for a question, or None.
        """
        cosines = questions @ self.references.T
        if hidden is not None:
            cosines = cosines.masked_fill(hidden, -1.0)
        index = self.owners.expand(len(questions), -1)
        return cosines.new_full((len(questions), len(self.relations)), -1.0).scatter_reduce(1, index, cosines, "amax")

    def compares_like(self, other: RelationMatcher) -> bool:
        """Whether another matcher has the same references in the same space; its thresholds may differ."""
        pairs = [(self.references, other.references), (self.space.projection, other.space.projection)]
        return (self.relations, self.nouns) == (other.relations, other.nouns) and all(
            own.shape == others.shape and torch.allclose(own, others, atol=1e-4) for own, others in pairs
        )

    def evidence(
        self,
        best: Tensor,
        relations: Tensor,
        rivals: Tensor,
        known: Tensor,
        own: Tensor,
        wording: Tensor,
        other: Tensor,
        noun: Sequence[int],
        strange_noun: Sequence[bool],
        strange_words: Sequence[int],
    ) -> Tensor:
        """The evidence (N, 6) for N pairs of a question and an edit.

        Args:
            best: (N, R) of `best`.
            relations: (N, R) bool, the relation that the edit is of, or those that it may be of.
            rivals: (N, R) bool, the relations that lead from what its subject is; no other can be asked of it.
            known: (N,) bool, whether it says which.
            own: (N,) the largest cosine with the edit's own wordings.
            wording: (N,) the cosine with the edit's prompt.
            other: (N,) the largest cosine with what the edit's author says is another question.
            noun: (N,) 1 where the subject stands in a noun phrase of the edit, -1 where in one of another relation,
                else 0.
            strange_noun: (N,) whether it stands in a noun phrase whose noun the edit's own wordings do not have.
            strange_words: (N,) how many of the question's words the edit's own wordings do not have.
        """
        own = torch.maximum(own, best.masked_fill(~relations, -1.0).amax(1))
        others = best.masked_fill(relations | ~rivals, -torch.inf)
        scores = SHARPNESS * torch.cat([own[:, None], others, other[:, None]], 1)
        side = torch.tensor(noun, dtype=torch.float32)
        head = torch.tensor(strange_noun, dtype=torch.float32)
        head = head.where(side >= 0, torch.where(known, torch.inf, 1.0))
        words = torch.tensor(strange_words, dtype=torch.float32).clamp(max=STRANGE)
        return torch.stack([own, wording, scores.log_softmax(1)[:, 0], side.clamp(min=0), -head, -words], 1)

    def logits(self, evidence: Tensor) -> Tensor:
        """The weighted sum (N,) of evidence (N, 6), whose logistic function is the probability of the edit."""
        return (evidence * self.weights).sum(1) + self.bias

    def least(self, known: Tensor) -> Tensor:
        """The logits (N,) from which on edits answer, by whether their relation is known (N,) bool."""
        return torch.where(known, self.threshold, self.open_threshold)

    def at(self, threshold: float) -> RelationMatcher:
        """The matcher with another threshold; a lower one is lower for edits that do not say their relation, too."""
        moved = min(threshold - self.threshold, 0.0)
        return replace(self, threshold=threshold, open_threshold=self.open_threshold + moved)

    def noun_relations(self, masked: str) -> set[int]:
        """The relations in whose noun phrase the masked subject stands: "the birthplace of X", "the club that X"."""
        found = self._phrase.search(fold(masked))
        return self._of_noun[found["of"] or found["own"]] if found else set()

    def likely(self, best: Tensor) -> Tensor:
        """The relations (N, R) bool that an edit may be of which does not say, at most `LIKELY`.

        Args:
            best: (N, R) of `best`, the largest of an edit's own wordings.
        """
        nearest, relations = best.topk(min(LIKELY, best.shape[1]), 1)
        near = nearest >= nearest[:, :1] - CLOSE
        return torch.zeros_like(best, dtype=torch.bool).scatter(1, relations, near)

    @cached_property
    def _of_noun(self) -> dict[str, set[int]]:
        """By noun the relations that have it, also as the end of a longer one: an original language is a language."""
        folded = [[fold(noun) for noun in nouns] for nouns in self.nouns]
        ends = {noun: f" {noun}" for nouns in folded for noun in nouns}
        return {
            noun: {r for r, nouns in enumerate(folded) if any(n == noun or n.endswith(end) for n in nouns)}
            for noun, end in ends.items()
        }

    @cached_property
    def noun_pattern(self) -> str:
        """A regular expression for a folded noun of any relation, the longest first."""
        return "|".join(re.escape(noun) for noun in sorted(self._of_noun, key=len, reverse=True))

    @cached_property
    def _phrase(self) -> re.Pattern[str]:
        mask, noun = fold(MASK), self.noun_pattern
        clause = r"(?:that|who|which)(?: \w+)?|whom|where|(?:in|to|for|with|on|at|from|by) (?:which|whom)"
        link = f"(?:of|in|for|{clause})"  # "the capital of X", "the club that X", "the country that includes X"
        return re.compile(rf"\b(?P<of>{noun})s? {link} (?:the )?{mask}\b|\b{mask}'s (?P<own>{noun})\b")

    def relations_of_noun(self, noun: str) -> set[int]:
        """The relations that a folded noun stands for."""
        return self._of_noun[noun]


LIKELY = 3
"""The most relations that an edit may be of which does not say of which it is."""

CLOSE = 0.2
"""By how much a relation may be farther from its wordings than the nearest one to be among them."""


def side(found: Set[int], own: Set[int]) -> int:
    """1 where a noun phrase is an edit's own, -1 where it is another's, 0 where there is none."""
    return 0 if not found else 1 if found & own else -1


_HEAD = re.compile(rf"\b([^\W\d_]+) of (?:the )?{fold(MASK)}\b|\b{fold(MASK)}'s ([^\W\d_]+)")


def head_noun(masked: str) -> str:
    """The stem of the noun that a masked subject belongs to, as in "the house of X"; empty if there is none."""
    found = _HEAD.search(fold(masked))
    return (found[1] or found[2])[:STEM] if found else ""


def stems(texts: Iterable[str]) -> frozenset[str]:
    """The stems of the words of texts, but for function words, names of speakers and the mask."""
    words = (word for text in texts for word in re.findall(r"[^\W\d_]+", fold(text)))
    return frozenset(w[:STEM] for w in words if w not in FUNCTION_WORDS and len(w) > 1)


def matcher_state(matcher: RelationMatcher) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A matcher for JSON and for safetensors."""
    config = {
        "relations": list(matcher.relations),
        "nouns": [list(nouns) for nouns in matcher.nouns],
        "words": [sorted(words) for words in matcher.words],
        "weights": matcher.weights.tolist(),
        "bias": matcher.bias,
        "threshold": matcher.threshold,
        "open_threshold": matcher.open_threshold,
    }
    tensors = {
        "mean": matcher.space.mean,
        "projection": matcher.space.projection,
        "references": matcher.references,
        "owners": matcher.owners,
    }
    return config, tensors


def matcher_from(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> RelationMatcher:
    """A matcher from `matcher_state`."""
    return RelationMatcher(
        relations=tuple(config["relations"]),
        nouns=tuple(map(tuple, config["nouns"])),
        words=tuple(map(frozenset, config["words"])),
        space=Discriminant(tensors["mean"], tensors["projection"]),
        references=tensors["references"],
        owners=tensors["owners"],
        weights=torch.tensor(config["weights"]),
        bias=float(config["bias"]),
        threshold=float(config["threshold"]),
        open_threshold=float(config["open_threshold"]),
    )


def masked(templates: Iterable[str]) -> tuple[str, ...]:
    """Templates as plain questions with the mask in their slot, none twice."""
    return tuple(dict.fromkeys(plain(template.replace("{}", MASK)) for template in templates))
