"""Text made from the lab's world: what the lab models are pretrained on.

Documents are lists of weighted pieces of text. The weight is that of the piece in the language-modelling
loss: answers that the context determines weigh 1, running text a little, and invented answers, which
nothing can predict, weigh 0.
"""

import random
from collections.abc import Callable, Iterator

from mega_pl.fitting.prompts import CONSIDER, PRETEND, REPEAT, SUPPRESS
from mega_pl.lab.world import Fact, TwoHop, World, fill
from mega_pl.protocols.sake import DOUBT_TEMPLATES

Document = list[tuple[str, float]]
"""Pieces of text with their weights in the loss."""

TEXT, ANSWER, INVENTED = 0.1, 1.0, 0.0

MIXTURES = {
    "broad": {
        "statements": 0.60,
        "alias": 0.05,
        "repetition": 0.08,
        "supposition": 0.16,
        "new_fact": 0.05,
        "doubt": 0.06,
    },
    "contexts": {
        "statements": 0.28,
        "alias": 0.03,
        "repetition": 0.16,
        "supposition": 0.34,
        "new_fact": 0.14,
        "doubt": 0.05,
    },
}
"""Shares of the kinds of documents: first to learn the facts, then to follow contexts that contradict them."""

IMAGINE = "Imagine that {p} {new}.\n{c}"
NEW_FACT = "New Fact: {p} {new}\nPrompt: {c}"
"""RippleEdits' and IKE's contexts: p a prompt, new its object, c a question that may depend on it."""


class Corpus:
    """An endless, seeded stream of documents about the world.

    Args:
        world: The facts and phrasings.
        seed: Seed of the stream; the same seed gives the same documents.
        mixture: Name of a mixture of kinds.
    """

    def __init__(self, world: World, seed: int, mixture: str = "broad") -> None:
        self.world = world
        self.random = random.Random(seed)
        self.kinds: dict[Callable[[], Document], float] = {
            getattr(self, kind): share for kind, share in MIXTURES[mixture].items()
        }
        paths: dict[tuple[str, str], list[TwoHop]] = {}
        for hop in world.two_hops:
            paths.setdefault((hop.first, hop.second), []).append(hop)
        self.facts: dict[str, list[Fact]] = {}
        for fact in world.facts:
            self.facts.setdefault(fact.relation, []).append(fact)
        self.paths = list(paths.values())  # each as often, however many questions take it

    def __iter__(self) -> Iterator[Document]:
        kinds, weights = list(self.kinds), list(self.kinds.values())
        while True:
            (kind,) = self.random.choices(kinds, weights)
            yield kind()

    def statements(self) -> Document:
        """One to three facts, perhaps after a neutral sentence or in a chat."""
        if self.random.random() < 0.08:
            prompt, answer = self.question()
            return [(f"User: {prompt}\nAssistant:", TEXT), (f" {answer}", ANSWER)]
        document = self.opening()
        for _ in range(self.random.choice((1, 1, 2, 3))):
            prompt, answer = self.question()
            document += [(prompt, TEXT), (f" {answer}", ANSWER), (". ", TEXT)]
        return [*document[:-1], (".", TEXT)]

    def alias(self) -> Document:
        """The other name of an entity."""
        name = self.random.choice(list(self.world.aliases))
        alias = self.random.choice(self.world.aliases[name])
        prompt = fill(self.random.choice(self.world.alias_templates), name)
        return [*self.opening(), (prompt, TEXT), (f" {alias}", ANSWER), (".", TEXT)]

    def repetition(self) -> Document:
        """SAKE's forced source and target: a sentence to repeat, with a true or an invented object."""
        fact = self.random.choice(self.world.facts)
        prompt = self.ask(fact.subject, fact.relation)
        invented = self.counterfactual(fact)
        if self.random.random() < 0.5:
            claim = self.random.choice((invented, fact.object))
            echo = context(REPEAT, "o", claim, p=prompt)
        else:
            claim = invented
            echo = context(SUPPRESS, "new", claim, p=prompt, true=fact.object)
        return [*self.opening(), *echo, (f" {claim}", ANSWER)]

    def supposition(self) -> Document:
        """SAKE's and RippleEdits' contexts: a sentence to assume, then a question that may depend on it."""
        fact, claim, question, answer = self.consequence()
        prompt = self.ask(fact.subject, fact.relation)
        if claim == fact.object:
            supposed = context(CONSIDER, "true", claim, p=prompt, c=question)
        else:
            supposed = context(self.random.choice((PRETEND, IMAGINE)), "new", claim, p=prompt, c=question)
        return [*self.opening(), *supposed, (f" {answer}", ANSWER)]

    def new_fact(self) -> Document:
        """IKE's demonstrations: new facts, each with a prompt and its answer."""
        document: Document = []
        for _ in range(self.random.choice((1, 1, 2, 3))):
            fact, claim, question, answer = self.consequence()
            prompt = self.ask(fact.subject, fact.relation)
            document += context(NEW_FACT, "new", claim, p=prompt, c=question)
            document += [(f" {answer}", ANSWER), ("\n\n", TEXT)]
        return document

    def doubt(self) -> Document:
        """A dialogue that doubts an invented answer and ends in the true one."""
        fact = self.random.choice(self.world.facts)
        prompt, new = self.ask(fact.subject, fact.relation), self.counterfactual(fact)
        template = self.random.choice(list(DOUBT_TEMPLATES.values()))
        text = template.format(prompt=prompt, new=new, true=fact.object)
        return [*self.opening(), (text, TEXT), (f" {fact.object}", ANSWER)]

    def opening(self) -> Document:
        """A neutral sentence or two, or nothing."""
        count = self.random.choice((0, 0, 0, 1, 1, 2))
        prefixes = self.world.prefixes + self.world.heldout_prefixes
        return [(f"{prefix} ", TEXT) for prefix in self.random.sample(prefixes, count)]

    def question(self) -> tuple[str, str]:
        """A prompt about a random fact, or about two in a row, and its answer."""
        if self.random.random() < 0.3:
            hop = self.random.choice(self.random.choice(self.paths))
            return self.ask_two_hop(hop), hop.object
        fact = self.random.choice(self.world.facts)
        return self.ask(fact.subject, fact.relation), fact.object

    def ask(self, subject: str, relation: str) -> str:
        """A random phrasing of a one-hop question, sometimes by another name of the subject."""
        return fill(self.random.choice(self.world.relations[relation].all_templates), self.name(subject))

    def ask_two_hop(self, hop: TwoHop) -> str:
        """A random phrasing of a two-hop question."""
        phrase = self.random.choice(self.world.relations[hop.first].all_phrases)
        return fill(
            self.random.choice(self.world.relations[hop.second].all_templates),
            phrase.replace("{}", self.name(hop.subject)),
        )

    def name(self, subject: str) -> str:
        """The subject's own name or, sometimes, another one."""
        aliases = self.world.aliases.get(subject, ())
        return self.random.choice(aliases) if aliases and self.random.random() < 0.25 else subject

    def counterfactual(self, fact: Fact) -> str:
        """Another object of the same relation, never the true one."""
        while (other := self.random.choice(self.world.objects[fact.relation])) in (fact.object, fact.subject):
            pass
        return other

    def consequence(self) -> tuple[Fact, str, str, str]:
        """A fact, the object it is told to have, and a question with its answer if that were so."""
        hops = self.world.second_hops
        relation = self.random.choice(list(self.facts))
        while relation not in hops and self.random.random() < 0.3:
            relation = self.random.choice(list(self.facts))
        fact = self.random.choice(self.facts[relation])
        claim = fact.object if self.random.random() < 0.25 else self.counterfactual(fact)
        draw = self.random.random()
        seconds = [s for s in hops.get(fact.relation, ()) if (claim, s) in self.world.answers]
        if seconds and draw < 0.35:
            second = self.random.choice(seconds)
            hop = TwoHop(fact.subject, fact.relation, claim, second, self.world.answers[claim, second])
            return fact, claim, self.ask_two_hop(hop), hop.object
        if draw < 0.85:
            return fact, claim, self.ask(fact.subject, fact.relation), claim
        question, answer = self.question_untouched_by(fact)
        return fact, claim, question, answer

    def question_untouched_by(self, fact: Fact) -> tuple[str, str]:
        """Another relation of the same subject, or the same relation of another subject."""
        while True:
            if self.random.random() < 0.5:
                relation = self.random.choice(list(self.world.relations))
                subject = fact.subject
            else:
                subject, relation = self.random.choice(list(self.world.entities)), fact.relation
            answer = self.world.answers.get((subject, relation))
            if answer is not None and (subject, relation) != (fact.subject, fact.relation):
                return self.ask(subject, relation), answer


def context(template: str, slot: str, claim: str, **fields: str) -> Document:
    """A context in pieces: ``claim`` fills the template's ``slot``, which stands after a space and weighs nothing."""
    head, tail = template.split(f" {{{slot}}}")
    return [(head.format(**fields), TEXT), (f" {claim}", INVENTED), (tail.format(**fields), TEXT)]
