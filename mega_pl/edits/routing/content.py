"""The router by content: subject, relation, and what the bare model is about to say, on a prompt's last question."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mega_pl.backbone import Backbone
from mega_pl.edits.request import EditRequest
from mega_pl.edits.routing.answers import AnswerEvidence
from mega_pl.edits.routing.calibration import fit_matcher
from mega_pl.edits.routing.matcher import EVIDENCE, Relation, RelationMatcher, matcher_from, matcher_state
from mega_pl.edits.routing.phrases import PHRASINGS, NounPhrases
from mega_pl.edits.routing.question import Question, awaits_reply, last_questions, sentences_of
from mega_pl.edits.routing.router import CANDIDATES, NO_EDIT, Prompts, Route, Router, rest
from mega_pl.edits.routing.scope import Scopes
from mega_pl.edits.routing.subjects import SubjectFinder, names_of
from mega_pl.edits.routing.trials import base_log_probs, first_tokens, hear, try_out
from mega_pl.edits.routing.vectors import EarlyStates, Vectors, encoder_of
from mega_pl.edits.values import Json, Tensors, check_indices, check_record, member, tensor
from mega_pl.errors import MegaValueError

Evidence = Literal["subject", "relation"]


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """How a prompt finds its edit.

    Args:
        encoder: Folder or hub name of a sentence encoder for relation evidence, the better option; None for the
            backbone's own early states.
        layer: 0-based block whose input these are, 0 for the token embeddings alone; None for an eighth of the depth.
        false_alarms: Share of questions about an edit's subject, by relations that the template bank does not hold,
            that may pass; the threshold is set on questions made from the template bank.
        recall: Share of the questions of an edit that does not say its relation that must pass; and of own questions
            above which the threshold does not rise where the model tells them from wrong ones.
        subject: Whether a prompt must name the edit's subject.
        relation: Whether its question must ask the edit's relation.
        last_question: Whether only what is asked last counts, instead of every sentence.
        answer: Whether what the bare model is about to say counts.
        noun_phrases: Whether the bare model is asked whom a noun phrase names, such as "the spouse of" somebody.
        ask_aliases: Whether it is asked for other names of the subjects when edits are fitted.
        shrinkage: Of the scatter within relations towards a sphere, in (0, 1].
        max_rank: The most directions of the space of questions.
        seed: Of the calibration questions.
    """

    encoder: str | None = None
    layer: int | None = None
    false_alarms: float = 0.1
    recall: float = 0.95
    subject: bool = True
    relation: bool = True
    last_question: bool = True
    answer: bool = True
    noun_phrases: bool = True
    ask_aliases: bool = True
    shrinkage: float = 0.3
    max_rank: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("false_alarms", "recall"):
            if not 0 < getattr(self, name) < 1:
                raise MegaValueError(f"`{name}` must lie in (0, 1), but got {getattr(self, name)}.")
        if self.layer is not None and self.layer < 0:
            raise MegaValueError(f"`layer` must be at least 0, but got {self.layer}.")
        if not (self.subject or self.relation):
            raise MegaValueError("`subject` or `relation` must be on, but both are off; leave one on.")

    def vectors(self, backbone: Backbone) -> Vectors:
        """What makes vectors of questions.

        Raises:
            ValueError: If the encoder does not load, or the model has no such layer.
        """
        if self.encoder is not None:
            return encoder_of(self.encoder)
        layer = backbone.n_layers // 8 if self.layer is None else self.layer
        if layer >= backbone.n_layers:
            raise MegaValueError(f"`layer` must lie in [0, {backbone.n_layers - 1}] for this model, but got {layer}.")
        return EarlyStates(backbone, layer)


_matchers: WeakKeyDictionary[Backbone, dict[Hashable, RelationMatcher]] = WeakKeyDictionary()
"""By backbone what has been fitted on it; it hangs on the template bank and the settings, and not on edits."""


def _matcher(backbone: Backbone, relations: Sequence[Relation], config: RouterConfig) -> RelationMatcher:
    """The relation evidence of a backbone, fitted once."""
    options = {name: getattr(config, name) for name in ("false_alarms", "recall", "shrinkage", "max_rank", "seed")}
    bank = tuple((r.name, *r.nouns, *r.phrasings, *r.references, *r.subjects, r.object) for r in relations)
    key = (config.encoder, config.layer, *options.values(), bank)
    known = _matchers.setdefault(backbone, {})
    if key not in known:
        known[key] = fit_matcher(relations, config.vectors(backbone), **options)
    return known[key]


@dataclass(frozen=True, eq=False)
class ContentRouter:
    """Sends a prompt to the edit whose subject its last question names and whose relation it asks.

    Args:
        config: Settings.
        requests: The edits.
        scopes: What each edit answers.
        phrases: Asks the bare model whom a noun phrase names.
        answers: What the bare model is about to say, or None where that does not count.
    """

    kind: ClassVar[str] = "content"

    config: RouterConfig
    requests: tuple[EditRequest, ...]
    scopes: Scopes
    phrases: NounPhrases
    answers: AnswerEvidence | None = None

    @classmethod
    def fit(
        cls, backbone: Backbone, requests: Sequence[EditRequest], relations: Sequence[Relation], config: RouterConfig
    ) -> ContentRouter:
        """Learn relation evidence from a template bank, the edits' scopes, and what the model's next token is worth.

        Args:
            backbone: The bare model.
            requests: The edits.
            relations: The template bank.
            config: Settings.
        """
        vectors, matcher = config.vectors(backbone), _matcher(backbone, relations, config)
        types = tuple((tuple(relation.subjects), relation.object) for relation in relations)
        router = cls(
            config=config,
            requests=tuple(requests),
            scopes=Scopes(matcher, types, (), matcher.references[:0], ()).add(vectors, requests),
            phrases=NounPhrases(matcher, tuple(tuple(relation.phrasings[:PHRASINGS]) for relation in relations)),
        )
        phrasings = [relation.phrasings for relation in relations]
        outcome, shares = try_out(requests, router.scopes, phrasings, vectors), (config.false_alarms, config.recall)
        answers = hear(backbone, requests, router.scopes, phrasings, outcome, *shares) if config.answer else None
        threshold = outcome.threshold(outcome.text, *shares)
        if threshold is not None:
            router = replace(router, scopes=replace(router.scopes, matcher=matcher.at(threshold)))
        return replace(router, answers=answers)

    def add(self, backbone: Backbone, requests: Sequence[EditRequest]) -> ContentRouter:
        """The router that knows more edits besides; earlier ones keep their places."""
        scopes, answers = self.scopes.add(self.config.vectors(backbone), requests), self.answers
        if answers is not None:
            base = base_log_probs(backbone, requests, scopes.edits[len(self.requests) :], self.phrases.phrasings)
            answers = answers.with_more(first_tokens(backbone, requests), base)
        return replace(self, requests=(*self.requests, *requests), scopes=scopes, answers=answers)

    def remove(self, *edits: int) -> ContentRouter:
        """The router that forgets edits; later ones move up."""
        return self.select(rest(len(self.requests), edits))

    def select(self, edits: Sequence[int]) -> ContentRouter:
        """The router that knows some of the edits alone, in that order."""
        requests, answers = tuple(self.requests[edit] for edit in edits), self.answers and self.answers.select(edits)
        return replace(self, requests=requests, scopes=self.scopes.select(edits), answers=answers)

    def merge(self, other: Router) -> ContentRouter:
        """The router that knows another's edits besides, with its own thresholds and weights."""
        if not isinstance(other, ContentRouter) or (self.answers is None) != (other.answers is None):
            raise MegaValueError("routers must be of one kind and evidence to be merged, but these are not; use `add`.")
        answers = self.answers and other.answers and self.answers.with_more(other.answers.tokens, other.answers.base)
        scopes = self.scopes.merge(other.scopes)
        return replace(self, requests=(*self.requests, *other.requests), scopes=scopes, answers=answers)

    def only(self, evidence: Evidence) -> ContentRouter:
        """The router that decides on one kind of evidence alone, for comparison."""
        config = replace(self.config, subject=evidence == "subject", relation=evidence == "relation")
        return replace(self, config=config)

    @cached_property
    def finder(self) -> SubjectFinder:
        """Finds the edits' subjects, by their names and aliases."""
        return SubjectFinder(names_of([r.subject for r in self.requests], [r.aliases for r in self.requests]))

    def route(self, prompts: Prompts, *, forced: bool = False) -> list[Route]:
        """Choose an edit for each prompt; ``forced`` leaves no choice to stay silent."""
        readings = [self._readings(turns) for turns in prompts.turns]
        routes = self._decide(prompts, range(len(prompts)), readings)
        if self.config.noun_phrases:
            silent = [i for i, route in enumerate(routes) if route.edit == NO_EDIT]
            for i, route in zip(silent, self._decide(prompts, silent, self._through(prompts, silent)), strict=True):
                routes[i] = route if route.edit != NO_EDIT else routes[i]
        if forced:
            silent = [i for i, route in enumerate(routes) if route.edit == NO_EDIT]
            readings = [self._readings(prompts.turns[i]) or self._about_all(prompts.turns[i]) for i in silent]
            for i, route in zip(silent, self._decide(prompts, silent, readings, forced=True), strict=True):
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

    def _through(self, prompts: Prompts, rows: Sequence[int]) -> list[list[Question]]:
        """The readings of some prompts in which a noun phrase names a subject."""
        kinds = self.scopes.subject_types
        relations = {r for r, (_, kind) in enumerate(self.scopes.types) if kind in kinds}
        sentences = [sentences_of(prompts.turns[i], self.finder) for i in rows]
        texts = [of[-1].text if of else "" for of in sentences]
        return self.phrases.questions(prompts.backbone, texts, relations, self.finder)

    def _decide(
        self, prompts: Prompts, rows: Sequence[int], readings: Sequence[Sequence[Question]], *, forced: bool = False
    ) -> list[Route]:
        """The best edit of the readings of some prompts, if it passes."""
        routes = [Route(NO_EDIT) for _ in readings]
        forms = list(dict.fromkeys(f for of_prompt in readings for question in of_prompt for f in question.forms))
        if not forms:
            return routes
        place = {form: i for i, form in enumerate(forms)}
        pairs = [
            (i, question, place[form], edit)
            for i, of_prompt in enumerate(readings)
            for question in of_prompt
            for form in question.forms
            for edit in question.edits
        ]
        points = self.scopes.matcher.space(self.config.vectors(prompts.backbone)(forms))
        evidence, spared = self.scopes.evidence(points, forms, [(form, edit) for _, _, form, edit in pairs])
        known = torch.tensor([self.scopes.edits[edit].known for *_, edit in pairs])
        logits, least = self.scopes.matcher.logits(evidence), self.scopes.matcher.least(known)
        heard, listened = self._heard(prompts, [rows[i] for i, *_ in pairs], [edit for *_, edit in pairs], spared)
        if self.answers is not None:
            logits = logits + self.answers.logits(heard)
            least = least.where(~listened, self.answers.least(known))
        passes = (logits >= least) & logits.isfinite()  # a veto holds at any threshold
        passes |= torch.tensor(forced or not self.config.relation)
        confidences, needed = logits.sigmoid().tolist(), least.sigmoid().tolist()
        nearest: dict[int, dict[int, int]] = {}  # by prompt and edit the best pair, the best edit first
        for n in reversed(logits.argsort(stable=True).tolist()):
            nearest.setdefault(pairs[n][0], {}).setdefault(pairs[n][3], n)
        for i, of_edits in nearest.items():
            (edit, n), *_ = of_edits.items()
            question = pairs[n][1]
            routes[i] = Route(
                edit=edit if passes[n] else NO_EDIT,
                confidence=confidences[n],
                needed=needed[n],
                subject=question.words,
                relation=self._relation(edit),
                evidence={
                    **dict(zip(EVIDENCE, evidence[n].tolist(), strict=True)),
                    "answer": float(heard[n].sum()),
                },
                candidates={other: confidences[m] for other, m in islice(of_edits.items(), CANDIDATES)},
            )
        return routes

    def _heard(
        self, prompts: Prompts, rows: Sequence[int], edits: Sequence[int], spared: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Evidence (N, 2) from the next tokens of N pairs of a prompt and an edit, and where there is any (N,)."""
        heard, counts = torch.zeros(len(rows), 2), self.answers is not None and self.config.subject
        completed = [row for row in dict.fromkeys(rows) if counts and not awaits_reply(prompts.turns[row])]
        place = {row: n for n, row in enumerate(completed)}
        listened = torch.tensor([row in place for row in rows])
        if self.answers is not None and completed:
            index = torch.tensor([place[row] for row in rows if row in place])
            of_pairs = torch.tensor(edits)[listened]
            tokens = prompts.log_probs(completed)[index, self.answers.tokens[of_pairs]]
            heard[listened] = self.answers(tokens, of_pairs, spared[listened])
        return heard, listened

    def _relation(self, edit: int) -> str:
        names = self.scopes.matcher.relations
        return " or ".join(sorted(names[relation] for relation in self.scopes.edits[edit].relations))

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is to be stored, for JSON and for safetensors."""
        matcher, matcher_tensors = matcher_state(self.scopes.matcher)
        scopes, tensors = self.scopes.state()
        tensors |= matcher_tensors
        if self.answers is not None:
            tensors |= {"answer_base": self.answers.base, "answer_tokens": self.answers.tokens}
        return {
            "config": asdict(self.config),
            "matcher": matcher,
            "scopes": scopes,
            "phrasings": [list(of_relation) for of_relation in self.phrases.phrasings],
            "answer_weights": self.answers and list(self.answers.weights),
            "answer_thresholds": self.answers and list(self.answers.thresholds),
        }, tensors

    @classmethod
    def check_state(cls, state: Json, tensors: Tensors, count: int, vocab: int) -> set[str]:
        """Refuse a content router that does not fit its edits; give the names of its tensors."""
        check_record(member(state, "config", dict), RouterConfig, "router.config")
        shrinkage = RouterConfig(**state["config"]).shrinkage
        if not 0 < shrinkage <= 1:
            raise MegaValueError(f"`shrinkage` must lie in (0, 1], but got {shrinkage}.")
        matcher, scopes = member(state, "matcher", dict), member(state, "scopes", dict)
        relations = len(member(matcher, "relations", list[str]))
        of_relations = [member(matcher, name, list[list[str]]) for name in ("nouns", "words")]
        of_relations += [member(state, "phrasings", list[list[str]])]
        of_relations += [member(scopes, "types", list[tuple[list[str], str]])]
        weights = member(matcher, "weights", list[float])
        for name in ("bias", "threshold", "open_threshold"):
            member(matcher, name, float)
        texts, kind = member(scopes, "texts", list[str]), list[tuple[list[int], bool, list[int], list[int], list[int]]]
        edits = member(scopes, "edits", kind)
        if {relations} != {len(of) for of in of_relations} or len(weights) != len(EVIDENCE) or len(edits) != count:
            raise MegaValueError("the router must have as many relations, weights and scopes as it needs, but has not.")
        if not all(state["phrasings"]) or not all(edit[2] for edit in edits) or len(set(texts)) != len(texts):
            raise MegaValueError(
                "each relation and each scope of the router must have a wording of its own, but one has none."
            )
        check_indices("router.scopes.edits", [edit[0] for edit in edits], relations)
        check_indices("router.scopes.edits", [places for edit in edits for places in edit[2:]], len(texts))
        width, space = tensor(tensors, "router.projection", None, None).shape
        tensor(tensors, "router.mean", width)
        owners = tensor(
            tensors, "router.owners", len(tensor(tensors, "router.references", None, space)), dtype=torch.int64
        )
        check_indices("router.owners", [owners.tolist()], relations)
        tensor(tensors, "router.questions", len(texts), space)
        names = {"router.projection", "router.mean", "router.owners", "router.references", "router.questions"}
        heard = member(state, "answer_weights", tuple[float, float] | None)
        if min([*weights, *(heard or [])]) < 0:
            raise MegaValueError("`weights` and `answer_weights` of the router must be at least 0, but one is not.")
        if heard is None:
            return names
        member(state, "answer_thresholds", tuple[float, float])
        tensor(tensors, "router.answer_base", count)
        tokens = tensor(tensors, "router.answer_tokens", count, dtype=torch.int64)
        check_indices("router.answer_tokens", [tokens.tolist()], vocab)
        return names | {"router.answer_base", "router.answer_tokens"}

    @classmethod
    def from_state(
        cls, requests: Sequence[EditRequest], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> ContentRouter:
        """The router again."""
        matcher, weights = matcher_from(config["matcher"], tensors), config["answer_weights"]
        answers = weights and AnswerEvidence(
            tensors["answer_tokens"], tensors["answer_base"], tuple(weights), tuple(config["answer_thresholds"])
        )
        return cls(
            config=RouterConfig(**config["config"]),
            requests=tuple(requests),
            scopes=Scopes.from_state(matcher, config["scopes"], tensors),
            phrases=NounPhrases(matcher, tuple(map(tuple, config["phrasings"]))),
            answers=answers or None,
        )
