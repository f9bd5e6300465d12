"""Weights and thresholds of relation evidence, from questions made of the template bank itself.

Other wordings of an edit's relation, and two-hop questions that start with it, are its own; questions by other
relations about the same kind of subject, and two-hop questions that only end with its relation, are not. Half of the
latter ask by a relation whose references are then left out, as if the bank did not hold it. The threshold lets a stated
share of those pass that are whole questions, by the relation's phrasings: cues and noun phrases are easier to tell. An
edit that does not say its relation may be of any that its prompt is near to; for such edits the threshold lets a stated
share of their own questions pass, and their subjects do the rest.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from mega_pl.edits.routing.matcher import EVIDENCE, Relation, RelationMatcher, head_noun, side, stems
from mega_pl.edits.routing.question import MASK, plain
from mega_pl.edits.routing.vectors import Vectors
from mega_pl.functional.discriminant import fit_discriminant
from mega_pl.functional.logistic import fit_logistic

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

RIVALS = 4
"""Edits by other relations to which each question is put."""


@dataclass(frozen=True)
class Trial:
    """A question and an edit that it may belong to.

    Args:
        question: Index of the question.
        relation: The edit's relation.
        prompt: Index of the edit's prompt among the references.
        right: Whether the question is the edit's.
        hides: Whether the references of the question's own relation are left out; of an edit's own question, whether
            the edit does not say its relation.
    """

    question: int
    relation: int
    prompt: int
    right: bool
    hides: bool


@dataclass(frozen=True)
class Questions:
    """Calibration questions; the first of them are the references of all relations.

    Args:
        texts: Masked questions.
        inner: For each the relation that it asks of the subject.
        outer: For each the relation that it asks of the answer to that, or -1.
    """

    texts: tuple[str, ...]
    inner: tuple[int, ...]
    outer: tuple[int, ...]


def fit_matcher(
    relations: Sequence[Relation],
    vectors: Vectors,
    *,
    false_alarms: float,
    recall: float,
    shrinkage: float,
    max_rank: int,
    seed: int,
) -> RelationMatcher:
    """Learn the space, the weights and the thresholds from a template bank.

    Args:
        relations: The template bank, at least two relations.
        vectors: Makes vectors of questions.
        false_alarms: Share of questions about an edit's subject, by relations that the bank does not hold, that may
            pass.
        recall: Share of the questions of an edit that does not say its relation that must pass.
        shrinkage: Of the scatter within relations towards a sphere.
        max_rank: The most directions of the space.
        seed: Of the calibration questions.
    """
    draw = random.Random(seed)
    texts = [plain(t.replace("{}", MASK)) for relation in relations for t in relation.references]
    owners = torch.tensor([r for r, relation in enumerate(relations) for _ in relation.references])
    found = vectors(texts)
    space = fit_discriminant(found, owners, shrinkage=shrinkage, max_rank=max_rank)
    raw = RelationMatcher(
        relations=tuple(relation.name for relation in relations),
        nouns=tuple(tuple(relation.nouns) for relation in relations),
        words=tuple(stems(relation.references) for relation in relations),
        space=space,
        references=space(found),
        owners=owners,
        weights=torch.zeros(len(EVIDENCE)),
        bias=0.0,
        threshold=0.0,
        open_threshold=0.0,
    )
    made = list(_made(relations, draw))
    questions = Questions(
        texts=(*texts, *(text for text, _, _ in made)),
        inner=(*owners.tolist(), *(inner for _, inner, _ in made)),
        outer=(*(-1 for _ in texts), *(outer for _, _, outer in made)),
    )
    points = torch.cat([raw.references, space(vectors([text for text, _, _ in made]))])
    trials = list(_trials(relations, texts, questions, draw))
    evidence = _evidence(raw, relations, questions, points, trials)
    right, hides = (torch.tensor([getattr(t, name) for t in trials]) for name in ("right", "hides"))
    usable = evidence.isfinite().all(1) & ~(right & hides)
    weights, bias = fit_logistic(evidence[usable], right[usable])
    fitted = replace(raw, weights=weights, bias=bias)
    logits = fitted.logits(evidence)
    phrasings = {plain(t.replace("{}", MASK)) for relation in relations for t in relation.phrasings}
    whole = torch.tensor([questions.texts[trial.question] in phrasings for trial in trials])
    return replace(
        fitted,
        threshold=float(logits[hides & ~right & whole].quantile(1 - false_alarms, interpolation="higher")),
        open_threshold=float(logits[hides & right].quantile(1 - recall, interpolation="lower")),
    )


def _made(relations: Sequence[Relation], draw: random.Random) -> Iterator[tuple[str, int, int]]:
    """Questions besides the references: what each asks of the subject, and of the answer to that or -1."""
    for r, relation in enumerate(relations):
        for noun in relation.nouns:
            for frame in draw.sample(FRAMES, 2):
                yield frame.replace("{noun}", noun).replace("{}", MASK), r, -1
        seconds = [s for s, second in enumerate(relations) if relation.object in second.subjects and s != r]
        for s in draw.sample(seconds, min(4, len(seconds))):
            hop = draw.choice(HOPS).replace("{outer}", draw.choice(relations[s].nouns))
            yield hop.replace("{inner}", draw.choice(relation.nouns)).replace("{}", MASK), r, s


def _trials(
    relations: Sequence[Relation], references: Sequence[str], questions: Questions, draw: random.Random
) -> Iterator[Trial]:
    """Each question with edits of its own relation and with some of others that lead from the same type."""
    place = {text: i for i, text in enumerate(references)}
    prompts = [[place[plain(t.replace("{}", MASK))] for t in relation.phrasings] for relation in relations]
    for q, (inner, outer) in enumerate(zip(questions.inner, questions.outer, strict=True)):
        for hides in (False, True):
            own = [prompt for prompt in prompts[inner] if prompt != q]
            yield Trial(q, inner, draw.choice(own), right=True, hides=hides)
        kinds = set(relations[inner].subjects)
        rivals = [s for s, r in enumerate(relations) if s != inner and not kinds.isdisjoint(r.subjects)]
        chosen = draw.sample(rivals, min(RIVALS, len(rivals)))
        for s in (*chosen, *(outer,) * (outer in rivals)):
            yield Trial(q, s, draw.choice(prompts[s]), right=False, hides=draw.random() < 0.5)


def _evidence(
    matcher: RelationMatcher,
    relations: Sequence[Relation],
    questions: Questions,
    points: Tensor,
    trials: Sequence[Trial],
) -> Tensor:
    """The evidence (N, 6) of N trials, each question held out from the references."""
    rows, prompts, edits, right, hides = (
        torch.tensor([getattr(trial, name) for trial in trials])
        for name in ("question", "prompt", "relation", "right", "hides")
    )
    held_out = torch.eye(len(points), len(matcher.references), dtype=torch.bool)  # references are the first questions
    nearest = matcher.best(points, held_out)
    guessed = matcher.likely(nearest[prompts])
    relations_of = torch.where((hides & right)[:, None], guessed, F.one_hot(edits, len(relations)).bool())
    best, foreign = nearest[rows], hides & ~right
    best[foreign, torch.tensor(questions.inner)[rows[foreign]]] = -1.0
    wording = (points[rows] * matcher.references[prompts]).sum(1)
    owns: list[set[int]] = [set() for _ in trials]
    for i, relation in relations_of.nonzero().tolist():
        owns[i].add(relation)
    words = [stems([text]) for text in questions.texts]
    heads = [head_noun(text) for text in questions.texts]
    nouns = [matcher.noun_relations(text) for text in questions.texts]
    counts = [Counter(w for text in relation.references for w in stems([text])) for relation in relations]
    noun, strange_noun, strange_words = [], [], []
    for trial, own in zip(trials, owns, strict=True):
        q, of_subject = trial.question, questions.inner[trial.question]
        least = 1 + (q < len(matcher.references) and of_subject in own)
        known = {w for w in (*words[q], heads[q]) if sum(counts[r].get(w, 0) for r in own) >= least}
        left_out = {of_subject} if trial.hides and not trial.right else set()
        noun.append(side(nouns[q] - left_out, own | nouns[trial.prompt]))
        strange_noun.append(bool(heads[q]) and heads[q] not in known)
        strange_words.append(len(words[q] - known))
    kinds = [set(relation.subjects) for relation in relations]
    rivals = torch.tensor([[not own.isdisjoint(other) for other in kinds] for own in kinds])
    return matcher.evidence(
        best=best,
        relations=relations_of,
        rivals=(relations_of.float() @ rivals.float()) > 0,
        known=~(hides & right),
        own=wording,
        wording=wording,
        other=torch.full_like(wording, -1.0),
        noun=noun,
        strange_noun=strange_noun,
        strange_words=strange_words,
    )
