"""What each edit of a bank answers: its relation, its own questions, and those that its author says are others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mega_pl.edits.request import EditRequest
from mega_pl.edits.routing.matcher import EVIDENCE, RelationMatcher, head_noun, masked, side, stems
from mega_pl.edits.routing.vectors import Vectors
from mega_pl.errors import MegaValueError

SAME = 0.999
"""Cosine from which on two questions are the same."""


@dataclass(frozen=True, eq=False)
class Scope:
    """What one edit answers and what it does not; questions are places in a table.

    Args:
        relations: Its relation, or those that it may be of where it does not say or the template bank lacks it.
        known: Whether it says its relation.
        own: Its wordings; the first is its prompt.
        implied: Questions that go on from its object.
        others: Questions that its author says are others.
        nouns: The relations in whose noun phrases its subject stands in its prompt, and its own.
        rivals: Those and the relations that lead from the same types as its own.
        words: Stems of its relation's and its own wordings.
    """

    relations: frozenset[int]
    known: bool
    own: tuple[int, ...]
    implied: tuple[int, ...]
    others: tuple[int, ...]
    nouns: frozenset[int]
    rivals: frozenset[int]
    words: frozenset[str]

    def at(self, places: Mapping[int, int] | Sequence[int]) -> Scope:
        """The scope with its questions at other places."""
        own, implied, others = (tuple(places[i] for i in of) for of in (self.own, self.implied, self.others))
        return replace(self, own=own, implied=implied, others=others)


@dataclass(frozen=True, eq=False)
class Scopes:
    """The scopes of all edits and their table of questions.

    Args:
        matcher: Relation evidence.
        types: By relation index the types that it leads from and the type that it leads to.
        texts: Q masked questions.
        questions: (Q, K) unit vectors of them.
        edits: The scope of each edit.
    """

    matcher: RelationMatcher
    types: tuple[tuple[tuple[str, ...], str], ...]
    texts: tuple[str, ...]
    questions: Tensor
    edits: tuple[Scope, ...]

    def add(self, vectors: Vectors, requests: Sequence[EditRequest]) -> Scopes:
        """The scopes of more edits besides; earlier ones stay."""
        own = [masked((r.prompt, *r.phrasings)) for r in requests]
        implied = [masked(t for group in r.implications for t in group) for r in requests]
        others = [masked(t for group in r.contrasts for t in group) for r in requests]
        place = {text: i for i, text in enumerate(self.texts)}
        new = dict.fromkeys(t for texts in (*own, *implied, *others) for t in texts if t not in place)
        place |= {text: len(place) + i for i, text in enumerate(new)}
        questions = torch.cat([self.questions, self.matcher.space(vectors(list(new)))]) if new else self.questions
        grown = replace(self, texts=tuple(place), questions=questions)
        index = {name: i for i, name in enumerate(self.matcher.relations)}
        scopes = []
        for request, *wordings in zip(requests, own, implied, others, strict=True):
            known = request.relation in index
            places = [tuple(place[text] for text in texts) for texts in wordings]
            likely = self.matcher.likely(self.matcher.best(questions[list(places[0])]).amax(0, keepdim=True))[0]
            relations = {index[request.relation]} if known else likely.nonzero()[:, 0].tolist()
            scopes.append(grown.scope(relations, known, *places))
        return grown.table((*self.edits, *scopes))

    def select(self, edits: Iterable[int]) -> Scopes:
        """The scopes of some edits, in that order."""
        return self.table([self.edits[edit] for edit in edits])

    def merge(self, other: Scopes) -> Scopes:
        """These scopes and then others of the same references; of a question that both hold, this vector stays.

        Raises:
            ValueError: If the others are compared with other references, or in another space.
        """
        if not self.matcher.compares_like(other.matcher):
            raise MegaValueError(
                "routers must compare questions in one space to be merged, but these do not; use `add`."
            )
        place = {text: i for i, text in enumerate(self.texts)}
        new = [i for i, text in enumerate(other.texts) if text not in place]
        place |= {other.texts[i]: len(place) + n for n, i in enumerate(new)}
        moved = [place[text] for text in other.texts]
        grown = replace(self, texts=tuple(place), questions=torch.cat([self.questions, other.questions[_index(new)]]))
        return grown.table((*self.edits, *(scope.at(moved) for scope in other.edits)))

    def table(self, scopes: Sequence[Scope]) -> Scopes:
        """These scopes with a table of what they hold, by text: whatever led to the scopes, it is the same."""
        kept = sorted({i for s in scopes for i in (*s.own, *s.implied, *s.others)}, key=self.texts.__getitem__)
        moved = {i: place for place, i in enumerate(kept)}
        return replace(
            self,
            texts=tuple(self.texts[i] for i in kept),
            questions=self.questions[_index(kept)],
            edits=tuple(scope.at(moved) for scope in scopes),
        )

    def scope(
        self,
        relations: Sequence[int] | set[int],
        known: bool,
        own: Sequence[int],
        implied: Sequence[int],
        others: Sequence[int],
    ) -> Scope:
        """The scope of an edit from its relations and the places of its questions."""
        nouns = self.matcher.noun_relations(self.texts[own[0]]).union(relations)
        kinds = {kind for relation in relations for kind in self.types[relation][0]}
        rivals = (r for r, (subjects, _) in enumerate(self.types) if not kinds.isdisjoint(subjects))
        words = stems(self.texts[i] for i in (*own, *implied))
        return Scope(
            relations=frozenset(relations),
            known=known,
            own=tuple(own),
            implied=tuple(implied),
            others=tuple(others),
            nouns=frozenset(nouns),
            rivals=frozenset(nouns).union(rivals),
            words=words.union(*(self.matcher.words[relation] for relation in relations)),
        )

    @cached_property
    def subject_types(self) -> set[str]:
        """The types of the edits' subjects, as far as relations tell them."""
        return {kind for scope in self.edits for relation in scope.relations for kind in self.types[relation][0]}

    def evidence(
        self,
        points: Tensor,
        texts: Sequence[str],
        pairs: Sequence[tuple[int, int]],
        *,
        hidden: Tensor | None = None,
        unseen: Tensor | None = None,
        others: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """The evidence (N, 6) for N pairs of a text and an edit, and whether no answer of the model speaks against it.

        None does (N,) where the text goes on from the edit's object, nor where the edit does not say its relation: it
        may be asked in many ways that are not answered by its object.

        Args:
            points: (T, K) of the texts.
            texts: Masked questions.
            pairs: Index of a text and of an edit.
            hidden: (T, M) bool, references that do not count for a text.
            unseen: (T, Q) bool, questions that do not.
            others: Whether what the edits' authors say are other questions counts.
        """
        rows = torch.tensor([text for text, _ in pairs])
        scopes = [self.edits[edit] for _, edit in pairs]
        cosines = points @ self.questions.T
        if unseen is not None:
            cosines = cosines.masked_fill(unseen, -1.0)
        best = self.matcher.best(points, hidden)[rows]
        relations = _members([scope.relations for scope in scopes], len(self.types))
        own = _nearest(cosines, rows, [scope.own for scope in scopes])
        nouns = [self.matcher.noun_relations(text) for text in texts]
        implied = _nearest(
            cosines, rows, [self._implied(s, nouns[text]) for (text, _), s in zip(pairs, scopes, strict=True)]
        )
        other = _nearest(cosines, rows, [scope.others if others else () for scope in scopes])
        words, heads = [stems([text]) for text in texts], [head_noun(text) for text in texts]
        direct = torch.maximum(own, best.masked_fill(~relations, -1.0).amax(1))
        noun = [
            max(0, of) if exact else of  # "the mother of X gave birth in" asks where X was born, word by word
            for exact, of in zip(
                (direct >= SAME).tolist(),
                (side(nouns[text] & s.rivals, s.nouns) for (text, _), s in zip(pairs, scopes, strict=True)),
                strict=True,
            )
        ]
        known = torch.tensor([scope.known for scope in scopes])
        evidence = self.matcher.evidence(
            best=best,
            relations=relations,
            rivals=_members([scope.rivals for scope in scopes], len(self.types)),
            known=known,
            own=torch.maximum(own, implied),
            wording=cosines[rows, torch.tensor([scope.own[0] for scope in scopes])],
            other=other,
            noun=noun,
            strange_noun=[
                bool(heads[text]) and heads[text] not in s.words for (text, _), s in zip(pairs, scopes, strict=True)
            ],
            strange_words=[len(words[text] - s.words) for (text, _), s in zip(pairs, scopes, strict=True)],
        )
        said_not = (other > SAME) & (other > torch.maximum(own, implied))
        evidence[said_not, EVIDENCE.index("strange noun")] = -torch.inf
        return evidence, (torch.tensor(noun) > 0) | (implied > direct) | ~known

    def _implied(self, scope: Scope, nouns: Set[int]) -> list[int]:
        """The implied questions with which one is compared whose subject stands in a noun phrase of some relations.

        "The country of the spouse of X" and "the country of X" have nearly the same words and are not the same.
        """
        return [i for i in scope.implied if not self._nouns[i] or self._nouns[i] & nouns]

    @cached_property
    def _nouns(self) -> list[set[int]]:
        return [self.matcher.noun_relations(text) for text in self.texts]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The scopes for JSON and for safetensors, without the matcher."""
        return {
            "types": [[list(subjects), kind] for subjects, kind in self.types],
            "texts": list(self.texts),
            "edits": [[sorted(s.relations), s.known, list(s.own), list(s.implied), list(s.others)] for s in self.edits],
        }, {"questions": self.questions}

    @classmethod
    def from_state(cls, matcher: RelationMatcher, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Scopes:
        """The scopes again."""
        types = tuple((tuple(subjects), kind) for subjects, kind in config["types"])
        table = cls(matcher, types, tuple(config["texts"]), tensors["questions"], ())
        return replace(table, edits=tuple(table.scope(*fields) for fields in config["edits"]))


def _index(places: Sequence[int]) -> Tensor:
    return torch.tensor(places, dtype=torch.long)


def _nearest(cosines: Tensor, rows: Tensor, places: Sequence[Collection[int]]) -> Tensor:
    """The largest (N,) of some columns of a row for each of N pairs, -1 where there are none."""
    pair, columns = _ragged(places)
    nearest = cosines.new_full((len(places),), -1.0)
    return nearest.scatter_reduce(0, pair, cosines[rows[pair], columns], "amax")


def _members(places: Sequence[Collection[int]], count: int) -> Tensor:
    """The places (N, count) of each of N sets, bool."""
    members = torch.zeros(len(places), count, dtype=torch.bool)
    members[_ragged(places)] = True
    return members


def _ragged(places: Sequence[Collection[int]]) -> tuple[Tensor, Tensor]:
    """Two (M,) long indices of all members of N sets: the set, and the place."""
    sizes = torch.tensor([len(of) for of in places])
    return torch.arange(len(places)).repeat_interleave(sizes), torch.tensor([i for of in places for i in of]).long()
