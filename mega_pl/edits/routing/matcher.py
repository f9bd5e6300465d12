"""Whether a question about a subject is an edit's question: the relation that it asks, compared with all others.

A question whose subject is masked is compared with the references of every relation of the template bank, and with
the edit's own wordings. Six pieces of evidence are combined by a logistic model whose weights are not negative, so that
more evidence never counts against an edit. It is calibrated on questions made of the template bank itself: other
wordings of an edit's relation, two-hop questions through its object, and questions by other relations about the same
kind of subject, half of them by relations that the references then do not hold. The threshold lets a stated share of
those pass.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mega_pl.edits.routing.question import MASK
from mega_pl.edits.routing.subjects import FUNCTION_WORDS, fold
from mega_pl.edits.routing.vectors import Vectors
from mega_pl.functional.discriminant import Discriminant, fit_discriminant

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

FRAMES = (
    "As everyone knows, {}'s {noun} is",
    "Someone wanted to hear about the {noun} of {}:",
    "Q: What is the {noun} of {}? A:",
    "I think that the {noun} of {} must be",
    "Do you happen to know {}'s {noun}? It is",
)
"""Calibration questions about a noun phrase; none is an evaluation's."""

HOPS = (
    "As everyone knows, the {outer} of the {inner} of {} is",
    "Q: What is the {outer} of {}'s {inner}? A:",
)
"""Calibration questions of two hops; the inner noun phrase is what is asked of the subject itself."""


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

    @classmethod
    def fit(
        cls,
        relations: Sequence[Relation],
        vectors: Vectors,
        *,
        false_alarms: float,
        shrinkage: float,
        max_rank: int,
        seed: int,
    ) -> RelationMatcher:
        """Learn the space, the weights and the threshold from a template bank.

        Args:
            relations: The template bank, at least two relations.
            vectors: Makes vectors of questions.
            false_alarms: Share of questions by other relations about the edit's subject that may pass.
            shrinkage: Of the scatter within relations towards a sphere.
            max_rank: The most directions of the space.
            seed: Of the calibration questions.
        """
        texts = [template.replace("{}", MASK) for relation in relations for template in relation.references]
        owners = torch.tensor([r for r, relation in enumerate(relations) for _ in relation.references])
        found = vectors(texts)
        space = fit_discriminant(found, owners, shrinkage=shrinkage, max_rank=max_rank)
        raw = cls(
            relations=tuple(relation.name for relation in relations),
            nouns=tuple(tuple(relation.nouns) for relation in relations),
            words=tuple(stems(relation.references) for relation in relations),
            space=space,
            references=space(found),
            owners=owners,
            weights=torch.zeros(len(EVIDENCE)),
            bias=0.0,
            threshold=0.0,
        )
        return _calibrated(raw, relations, texts, vectors, false_alarms, random.Random(seed))

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

    def evidence(
        self,
        best: Tensor,
        relation: Tensor,
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
            relation: (N,) long, the edit's relation, or -1 where the bank has none.
            own: (N,) the largest cosine with the edit's own wordings.
            wording: (N,) the cosine with the edit's prompt.
            other: (N,) the largest cosine with what the edit's author says is another question.
            noun: (N,) 1 where the subject stands in a noun phrase of the edit, -1 where in one of another relation,
                else 0.
            strange_noun: (N,) whether it stands in a noun phrase whose noun the edit's own wordings do not have.
            strange_words: (N,) how many of the question's words the edit's own wordings do not have.
        """
        known = relation >= 0
        index = relation.clamp(min=0)[:, None]
        own = torch.maximum(own, best.gather(1, index)[:, 0].where(known, -1.0))
        others = torch.where(known[:, None], best.scatter(1, index, -1.0), best)
        scores = SHARPNESS * torch.cat([own[:, None], others, other[:, None]], 1)
        side = torch.tensor(noun, dtype=torch.float32)
        head = torch.tensor(strange_noun, dtype=torch.float32).where(side >= 0, torch.inf)
        words = torch.tensor(strange_words, dtype=torch.float32).clamp(max=STRANGE)
        return torch.stack([own, wording, scores.log_softmax(1)[:, 0], side.clamp(min=0), -head, -words], 1)

    def logits(self, evidence: Tensor) -> Tensor:
        """The weighted sum (N,) of evidence (N, 6), whose logistic function is the probability of the edit."""
        return (evidence * self.weights).sum(1) + self.bias

    def noun_relations(self, masked: str) -> set[int]:
        """The relations in whose noun phrase the masked subject stands, as in "the birthplace of X"."""
        found = self._phrase.search(fold(masked))
        return self._of_noun[found["of"] or found["own"]] if found else set()

    def relation_of(self, questions: Tensor) -> int:
        """The relation whose references an edit's own wordings (N, K) are nearest to, or -1 if none is near enough."""
        (nearest, second), (relation, _) = (part.tolist() for part in self.best(questions).amax(0).topk(2))
        return int(relation) if nearest >= NEAR and nearest - second >= CLEAR else -1

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
        return re.compile(rf"\b(?P<of>{noun})s?(?: of| in| for)? (?:the )?{mask}\b|\b{mask}'s (?P<own>{noun})\b")

    def relations_of_noun(self, noun: str) -> set[int]:
        """The relations that a folded noun stands for."""
        return self._of_noun[noun]


NEAR = 0.6
"""Cosine from which on an edit without a relation is taken to be of the relation that its wordings are nearest to."""

CLEAR = 0.15
"""By how much that relation must be nearer than every other."""


@dataclass(frozen=True)
class _Trial:
    """A calibration question and an edit that it may belong to.

    Args:
        question: Index of the question.
        relation: The edit's relation.
        prompt: Index of the edit's prompt among the references.
        hides: Whether the references of the question's own relation are left out.
        right: Whether the question is the edit's.
    """

    question: int
    relation: int
    prompt: int
    hides: bool
    right: bool


def _calibrated(
    raw: RelationMatcher,
    relations: Sequence[Relation],
    references: Sequence[str],
    vectors: Vectors,
    false_alarms: float,
    draw: random.Random,
) -> RelationMatcher:
    """The matcher with weights and a threshold."""
    made = list(_made(relations, draw))
    points = torch.cat([raw.references, raw.space(vectors([text for text, _, _ in made]))])
    of_question = raw.owners.tolist() + [r for _, r, _ in made]
    outer = [-1] * len(references) + [s for _, _, s in made]
    texts = [*references, *(text for text, _, _ in made)]
    trials = list(_trials(relations, references, of_question, outer, draw))
    rows = torch.tensor([trial.question for trial in trials])
    hidden = torch.zeros(len(trials), len(references), dtype=torch.bool)
    for i, trial in enumerate(trials):
        if trial.question < len(references):
            hidden[i, trial.question] = True
        if trial.hides:
            hidden[i] |= raw.owners == of_question[trial.question]
            hidden[i] &= raw.owners != trial.relation
    best = raw.best(points[rows], hidden)
    wording = (points[rows] * raw.references[torch.tensor([trial.prompt for trial in trials])]).sum(1)
    relation = torch.tensor([trial.relation for trial in trials])
    nouns = []
    for trial in trials:
        found = raw.noun_relations(texts[trial.question])
        of = of_question[trial.question]
        nouns.append(found - {of} if trial.hides and of != trial.relation else found)
    noun = [side(found, {trial.relation}) for found, trial in zip(nouns, trials, strict=True)]
    words = [stems([text]) for text in texts]
    counts = [Counter(w for text in relation.references for w in stems([text])) for relation in relations]
    strange, heads = [], []
    for trial in trials:
        count, inside = counts[trial.relation], trial.question < len(references)
        least = 1 + (inside and of_question[trial.question] == trial.relation)
        strange.append(sum(count[word] < least for word in words[trial.question]))
        head = head_noun(texts[trial.question])
        heads.append(bool(head) and count[head] < least)
    none = torch.full_like(wording, -1.0)
    evidence = raw.evidence(best, relation, wording, wording, none, noun, heads, strange)
    free = evidence.isfinite().all(1)
    right = torch.tensor([trial.right for trial in trials])
    weights, bias = _fit_logistic(evidence[free], right[free])
    logits = (evidence * weights).sum(1) + bias
    unknown = torch.tensor([trial.hides for trial in trials]) & ~right
    threshold = float(logits[unknown].quantile(1 - false_alarms))
    return replace(raw, weights=weights, bias=bias, threshold=threshold)


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


def _made(relations: Sequence[Relation], draw: random.Random) -> Iterator[tuple[str, int, int]]:
    """Calibration questions besides the references: what each asks of the subject, and of the answer to that or -1."""
    for r, relation in enumerate(relations):
        for noun in relation.nouns:
            for frame in draw.sample(FRAMES, 2):
                yield frame.replace("{noun}", noun).replace("{}", MASK), r, -1
        seconds = [s for s, second in enumerate(relations) if relation.object in second.subjects and s != r]
        for s in draw.sample(seconds, min(4, len(seconds))):
            hop = draw.choice(HOPS).replace("{outer}", draw.choice(relations[s].nouns))
            yield hop.replace("{inner}", draw.choice(relation.nouns)).replace("{}", MASK), r, s


def _trials(
    relations: Sequence[Relation],
    references: Sequence[str],
    of_question: Sequence[int],
    outer: Sequence[int],
    draw: random.Random,
    wrong: int = 4,
) -> Iterator[_Trial]:
    """Each question with an edit of its own relation and with some of others that lead from the same type."""
    prompts: list[list[int]] = [[] for _ in relations]
    place = {text: i for i, text in enumerate(references)}
    for r, relation in enumerate(relations):
        prompts[r] = [place[template.replace("{}", MASK)] for template in relation.phrasings]
    for q, r in enumerate(of_question):
        own = [prompt for prompt in prompts[r] if prompt != q]
        if own:
            yield _Trial(q, r, draw.choice(own), hides=False, right=True)
        rivals = [
            s
            for s, other in enumerate(relations)
            if s != r and not set(other.subjects).isdisjoint(relations[r].subjects)
        ]
        chosen = draw.sample(rivals, min(wrong, len(rivals)))
        for s in [*chosen, *([outer[q]] if outer[q] in rivals else [])]:
            yield _Trial(q, s, draw.choice(prompts[s]), hides=draw.random() < 0.5, right=False)


def _fit_logistic(evidence: Tensor, right: Tensor, penalty: float = 1e-3) -> tuple[Tensor, float]:
    """Weights (F,), none negative, and bias of a logistic model, by L-BFGS on standardised evidence (N, F)."""
    with torch.inference_mode(False), torch.enable_grad():
        scale = evidence.double().std(0).clamp(min=1e-6)
        x, y = evidence.double() / scale, right.double()
        free = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([free, bias], max_iter=300, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            weights = F.softplus(free)
            value = F.binary_cross_entropy_with_logits(x @ weights + bias, y) + penalty * weights.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        return (F.softplus(free.detach()) / scale).float(), float(bias.detach())


def matcher_state(matcher: RelationMatcher) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A matcher for JSON and for safetensors."""
    config = {
        "relations": list(matcher.relations),
        "nouns": [list(nouns) for nouns in matcher.nouns],
        "words": [sorted(words) for words in matcher.words],
        "weights": matcher.weights.tolist(),
        "bias": matcher.bias,
        "threshold": matcher.threshold,
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
    )


def masked(templates: Iterable[str]) -> tuple[str, ...]:
    """Templates with the mask in their slot, none twice."""
    return tuple(dict.fromkeys(template.replace("{}", MASK) for template in templates))
