"""The router by content: subject evidence and relation evidence on a prompt's last question."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mega_pl.asking import continued
from mega_pl.backbone import Backbone
from mega_pl.edits.request import EditRequest
from mega_pl.edits.routing.calibration import fit_matcher
from mega_pl.edits.routing.matcher import (
    EVIDENCE,
    Relation,
    RelationMatcher,
    head_noun,
    masked,
    matcher_from,
    matcher_state,
    side,
    stems,
)
from mega_pl.edits.routing.question import MASK, Question, Sentence, forms_of, last_questions, sentences_of
from mega_pl.edits.routing.router import NO_EDIT, Prompts, Route
from mega_pl.edits.routing.subjects import SubjectFinder, composed, fold, names_of
from mega_pl.edits.routing.vectors import EarlyStates, Vectors, encoder_of

Evidence = Literal["subject", "relation"]

ANSWER_TOKENS = 12
"""The most tokens in which the bare model names an entity."""

_NAME = (
    r"[^\W\d_a-z][\w'.-]*(?:(?: (?:of|de|da|di|du|von|van|der|den|la|le|del|the|al|bin|y|and))? [^\W\d_a-z][\w'.-]*)*"
)


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """How a prompt finds its edit.

    Args:
        encoder: Folder or hub name of a sentence encoder for relation evidence, the better option; None for the
            backbone's own early states.
        layer: 0-based block whose input these are; 0 reads the token embeddings alone.
        false_alarms: Share of questions about an edit's subject, by relations that the template bank does not hold,
            that may pass; the threshold is set on questions made from the template bank.
        recall: Share of the questions of an edit whose own relation the template bank does not hold that must pass.
        subject: Whether a prompt must name the edit's subject.
        relation: Whether its question must ask the edit's relation.
        last_question: Whether only what is asked last counts, instead of every sentence.
        noun_phrases: Whether the bare model is asked whom a noun phrase names, such as "the spouse of" somebody.
        shrinkage: Of the scatter within relations towards a sphere, in (0, 1].
        max_rank: The most directions of the space of questions.
        seed: Of the calibration questions.
    """

    encoder: str | None = None
    layer: int = 0
    false_alarms: float = 0.09
    recall: float = 0.95
    subject: bool = True
    relation: bool = True
    last_question: bool = True
    noun_phrases: bool = True
    shrinkage: float = 0.3
    max_rank: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("false_alarms", "recall"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"`{name}` must lie in (0, 1), but got {getattr(self, name)}.")
        if self.layer < 0:
            raise ValueError(f"`layer` must be at least 0, but got {self.layer}.")
        if not (self.subject or self.relation):
            raise ValueError("`subject` or `relation` must be on, but both are off; leave one on.")

    def vectors(self, backbone: Backbone) -> Vectors:
        """What makes vectors of questions.

        Raises:
            ValueError: If the encoder does not load, or the model has no such layer.
        """
        if self.encoder is not None:
            return encoder_of(self.encoder)
        if self.layer >= backbone.n_layers:
            raise ValueError(f"`layer` must lie in [0, {backbone.n_layers - 1}] for this model, but got {self.layer}.")
        return EarlyStates(backbone, self.layer)


@dataclass(frozen=True, eq=False)
class Scope:
    """What one edit answers and what it does not; questions are places in the router's table.

    Args:
        relations: Its relation, or those that it may be of where it does not say or the template bank lacks it.
        known: Whether it says its relation.
        own: Its own questions; the first is its prompt.
        others: Questions that its author says are others.
        nouns: The relations in whose noun phrases its subject stands in its own questions, its own relation included.
        words: Stems of its relation's and its own wordings.
    """

    relations: frozenset[int]
    known: bool
    own: tuple[int, ...]
    others: tuple[int, ...]
    nouns: frozenset[int]
    words: frozenset[str]


@dataclass(frozen=True, eq=False)
class ContentRouter:
    """Sends a prompt to the edit whose subject its last question names and whose relation it asks.

    Args:
        config: Settings.
        requests: The edits.
        scopes: For each edit its questions.
        matcher: Relation evidence.
        questions: (Q, K) unit vectors of the edits' own masked questions.
        texts: These questions.
        types: By relation index the types that it leads from and the type that it leads to.
        phrasings: By relation index templates by which the bare model is asked for its object.
        answers: What it has answered so far, by relation index and name; it is the same whatever edits there are.
    """

    kind: ClassVar[str] = "content"

    config: RouterConfig
    requests: tuple[EditRequest, ...]
    scopes: tuple[Scope, ...]
    matcher: RelationMatcher
    questions: Tensor
    texts: tuple[str, ...]
    types: tuple[tuple[tuple[str, ...], str], ...]
    phrasings: tuple[tuple[str, ...], ...]
    answers: dict[tuple[int, str], list[str]] = field(default_factory=dict)

    @classmethod
    def fit(
        cls, backbone: Backbone, requests: Sequence[EditRequest], relations: Sequence[Relation], config: RouterConfig
    ) -> ContentRouter:
        """Learn relation evidence from a template bank, and the edits' scopes.

        Args:
            backbone: The bare model.
            requests: The edits.
            relations: The template bank.
            config: Settings.
        """
        matcher = fit_matcher(
            relations,
            config.vectors(backbone),
            false_alarms=config.false_alarms,
            recall=config.recall,
            shrinkage=config.shrinkage,
            max_rank=config.max_rank,
            seed=config.seed,
        )
        empty = cls(
            config=config,
            requests=(),
            scopes=(),
            matcher=matcher,
            questions=matcher.references[:0],
            texts=(),
            types=tuple((tuple(relation.subjects), relation.object) for relation in relations),
            phrasings=tuple(tuple(relation.phrasings[:2]) for relation in relations),
        )
        return empty.add(backbone, requests)

    def add(self, backbone: Backbone, requests: Sequence[EditRequest]) -> ContentRouter:
        """The router that knows more edits besides; earlier ones keep their places and decisions."""
        own = [masked((r.prompt, *r.phrasings, *(t for group in r.implications for t in group))) for r in requests]
        others = [masked(t for group in r.contrasts for t in group) for r in requests]
        place = {text: i for i, text in enumerate(self.texts)}
        new = dict.fromkeys(t for texts in (*own, *others) for t in texts if t not in place)
        place |= {text: len(place) + i for i, text in enumerate(new)}
        vectors = self.config.vectors(backbone)
        questions = torch.cat([self.questions, self.matcher.space(vectors(list(new)))]) if new else self.questions
        index = {name: i for i, name in enumerate(self.matcher.relations)}
        texts = tuple(place)
        scopes = []
        for request, mine, foreign in zip(requests, own, others, strict=True):
            phrasings = [place[text] for text in masked((request.prompt, *request.phrasings))]
            known = request.relation in index
            likely = self.matcher.likely(self.matcher.best(questions[phrasings]).amax(0, keepdim=True))[0]
            relations = {index[request.relation]} if known else set(likely.nonzero()[:, 0].tolist())
            of_scope = tuple(place[text] for text in mine), tuple(place[text] for text in foreign)
            scopes.append(self._scope(frozenset(relations), known, *of_scope, texts))
        return replace(
            self,
            requests=(*self.requests, *requests),
            scopes=(*self.scopes, *scopes),
            questions=questions,
            texts=texts,
        )

    def _scope(
        self,
        relations: frozenset[int],
        known: bool,
        own: tuple[int, ...],
        others: tuple[int, ...],
        texts: Sequence[str],
    ) -> Scope:
        wordings = [texts[i] for i in own]
        nouns = relations | self.matcher.noun_relations(wordings[0])
        words = stems(wordings).union(*(self.matcher.words[relation] for relation in relations))
        return Scope(relations, known, own, others, nouns, words)

    def remove(self, edit: int) -> ContentRouter:
        """The router that forgets an edit; later ones move up by one."""
        return replace(
            self,
            requests=(*self.requests[:edit], *self.requests[edit + 1 :]),
            scopes=(*self.scopes[:edit], *self.scopes[edit + 1 :]),
        )

    @cached_property
    def finder(self) -> SubjectFinder:
        """Finds the edits' subjects, by their names and aliases."""
        return SubjectFinder(names_of([r.subject for r in self.requests], [r.aliases for r in self.requests]))

    def only(self, evidence: Evidence) -> ContentRouter:
        """The router that decides on one kind of evidence alone, for comparison."""
        config = replace(self.config, subject=evidence == "subject", relation=evidence == "relation")
        return replace(self, config=config)

    def route(self, prompts: Prompts, *, forced: bool = False) -> list[Route]:
        """Choose an edit for each prompt; ``forced`` leaves no choice to stay silent."""
        vectors = self.config.vectors(prompts.backbone)
        routes = self._decide([self._readings(turns) for turns in prompts.turns], vectors, forced=False)
        silent = [i for i, route in enumerate(routes) if route.edit == NO_EDIT]
        if self.config.noun_phrases and silent:
            named = self._resolved(prompts.backbone, [prompts.turns[i] for i in silent])
            for i, route in zip(silent, self._decide(named, vectors, forced=False), strict=True):
                routes[i] = route if route.edit != NO_EDIT else routes[i]
        if forced:
            silent = [i for i, route in enumerate(routes) if route.edit == NO_EDIT]
            readings = [self._readings(prompts.turns[i]) or self._about_all(prompts.turns[i]) for i in silent]
            for i, route in zip(silent, self._decide(readings, vectors, forced=True), strict=True):
                routes[i] = route
        return routes

    def _readings(self, turns: Sequence[str]) -> list[Question]:
        """The readings of a prompt whose edits come into question."""
        if not self.config.subject:
            return self._about_all(turns)
        if self.config.last_question:
            return last_questions(turns, self.finder)
        sentences = [sentence for sentence in sentences_of(turns, self.finder) if sentence.mentions]
        return [question for s in sentences for question in last_questions([s.text.rstrip(".!")], self.finder)]

    def _about_all(self, turns: Sequence[str]) -> list[Question]:
        """The last sentence as a question about anybody."""
        sentences = sentences_of(turns, self.finder)
        edits = tuple(range(len(self.requests)))
        return [Question((sentences[-1].text,), edits, "", "name")] if sentences else []

    def _decide(self, readings: Sequence[Sequence[Question]], vectors: Vectors, *, forced: bool) -> list[Route]:
        """The best edit of each prompt's readings, if it passes."""
        forms = list(dict.fromkeys(f for of_prompt in readings for q in of_prompt for f in q.forms))
        if not forms:
            return [Route(NO_EDIT) for _ in readings]
        row = {form: i for i, form in enumerate(forms)}
        points = self.matcher.space(vectors(forms))
        pairs = [
            (prompt, question, row[form], edit)
            for prompt, of_prompt in enumerate(readings)
            for question in of_prompt
            for form in question.forms
            for edit in question.edits
        ]
        evidence = self._evidence(points, forms, [(form, edit) for _, _, form, edit in pairs])
        logits = self.matcher.logits(evidence)
        known = torch.tensor([self.scopes[edit].known for _, _, _, edit in pairs])
        passes = self.matcher.passes(logits, known) | (forced or not self.config.relation)
        routes = [Route(NO_EDIT) for _ in readings]
        order = logits.argsort(stable=True).tolist()
        for i in order:  # the last word on a prompt is that of its best pair
            prompt, question, _, edit = pairs[i]
            routes[prompt] = Route(
                edit=edit if passes[i] else NO_EDIT,
                confidence=float(logits[i].sigmoid()),
                subject=question.words,
                relation=" or ".join(sorted(self.matcher.relations[r] for r in self.scopes[edit].relations)),
                evidence=dict(zip(EVIDENCE, evidence[i].tolist(), strict=True)),
            )
        return routes

    def _evidence(self, points: Tensor, texts: Sequence[str], pairs: Sequence[tuple[int, int]]) -> Tensor:
        nouns = [self.matcher.noun_relations(text) for text in texts]
        words, heads = [stems([text]) for text in texts], [head_noun(text) for text in texts]
        forms = torch.tensor([form for form, _ in pairs])
        scopes = [self.scopes[edit] for _, edit in pairs]
        cosines = points @ self.questions.T
        own = torch.stack([cosines[form, list(s.own)].max() for (form, _), s in zip(pairs, scopes, strict=True)])
        other = torch.stack(
            [
                cosines[form, list(s.others)].max() if s.others else cosines.new_tensor(-1.0)
                for (form, _), s in zip(pairs, scopes, strict=True)
            ]
        )
        return self.matcher.evidence(
            best=self.matcher.best(points)[forms],
            relations=torch.stack([self._relations_of(scope) for scope in scopes]),
            known=torch.tensor([scope.known for scope in scopes]),
            own=own,
            wording=cosines[forms, torch.tensor([s.own[0] for s in scopes])],
            other=other,
            noun=[side(nouns[form], s.nouns) for (form, _), s in zip(pairs, scopes, strict=True)],
            strange_noun=[
                bool(heads[form]) and heads[form] not in s.words for (form, _), s in zip(pairs, scopes, strict=True)
            ],
            strange_words=[len(words[form] - s.words) for (form, _), s in zip(pairs, scopes, strict=True)],
        )

    def _relations_of(self, scope: Scope) -> Tensor:
        """The relations (R,) bool of an edit."""
        chosen = torch.zeros(len(self.matcher.relations), dtype=torch.bool)
        chosen[list(scope.relations)] = True
        return chosen

    def _resolved(self, backbone: Backbone, prompts: Sequence[Sequence[str]]) -> list[list[Question]]:
        """Readings in which a noun phrase ("the spouse of" somebody) is replaced by whom the model takes it for."""
        found = [self._phrases(turns) for turns in prompts]
        missing = dict.fromkeys((r, name) for phrases in found for _, _, r, name in phrases)
        wanted = [key for key in missing if key not in self.answers]
        questions = [(key, t.replace("{}", key[1])) for key in wanted for t in self.phrasings[key[0]]]
        texts = continued(backbone, [text for _, text in questions], ANSWER_TOKENS)
        for (key, _), text in zip(questions, texts, strict=True):
            self.answers.setdefault(key, []).append(text)
        readings = []
        for phrases in found:
            of_prompt = []
            for sentence, (start, end), relation, name in phrases:
                subject = next(filter(None, map(self._named, self.answers[relation, name])), "")
                if subject:
                    text = f"{sentence.text[:start]}{MASK}{sentence.text[end:]}"
                    words = sentence.text[start:end]
                    of_prompt.append(Question(forms_of(text), self.finder.owners[subject], words, "name"))
            readings.append(of_prompt)
        return readings

    def _phrases(self, turns: Sequence[str]) -> list[tuple[Sentence, tuple[int, int], int, str]]:
        """The noun phrases of a prompt's last sentence that may name a subject of the bank through another name."""
        sentences = sentences_of(turns, self.finder)
        if not sentences:
            return []
        text = sentences[-1].text
        return [
            (sentences[-1], match.span(), relation, match["name"])
            for match in self._phrase.finditer(text)
            for relation in self.matcher.relations_of_noun(fold(match["noun"]))
            if self.types[relation][1] in self._subject_types
        ]

    @cached_property
    def _phrase(self) -> re.Pattern[str]:
        noun = f"(?P<noun>(?i:{self.matcher.noun_pattern}))"
        return re.compile(rf"\b(?:[Tt]he (?:\w+ or )?)?{noun} of (?P<name>{_NAME})")

    @cached_property
    def _subject_types(self) -> set[str]:
        """The types of the bank's subjects, as far as relations tell them."""
        return {kind for scope in self.scopes for relation in scope.relations for kind in self.types[relation][0]}

    def _named(self, answer: str) -> str:
        """The bank's subject with which an answer begins, folded, or nothing."""
        text = composed(answer)
        mentions = self.finder(text)
        return mentions[0].name if mentions and text[: mentions[0].start].strip().casefold() in ("", "the") else ""

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is to be stored, for JSON and for safetensors."""
        config, tensors = matcher_state(self.matcher)
        return {
            "config": asdict(self.config),
            "matcher": config,
            "types": [[list(subjects), kind] for subjects, kind in self.types],
            "phrasings": [list(of_relation) for of_relation in self.phrasings],
            "texts": list(self.texts),
            "scopes": [[sorted(s.relations), s.known, list(s.own), list(s.others)] for s in self.scopes],
        }, tensors | {"questions": self.questions}

    @classmethod
    def from_state(
        cls, requests: Sequence[EditRequest], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> ContentRouter:
        """The router again."""
        empty = cls(
            config=RouterConfig(**config["config"]),
            requests=tuple(requests),
            scopes=(),
            matcher=matcher_from(config["matcher"], tensors),
            questions=tensors["questions"],
            texts=tuple(config["texts"]),
            types=tuple((tuple(subjects), kind) for subjects, kind in config["types"]),
            phrasings=tuple(map(tuple, config["phrasings"])),
        )
        scopes = (
            empty._scope(frozenset(relations), known, tuple(own), tuple(others), empty.texts)
            for relations, known, own, others in config["scopes"]
        )
        return replace(empty, scopes=tuple(scopes))
