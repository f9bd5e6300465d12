"""Evaluation records of the lab, in CounterFact's and in RippleEdits' schema.

The edits of all splits fit into one edited world: a test is kept only if its answer is the same whether its
own edit is made alone or together with all the others.
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mega_pl.lab.world import Fact, Relation, TwoHop, World, fill

Split = Literal["dev", "test"]

SHARES = {
    "citizenship": 70,
    "birthplace": 70,
    "spouse": 60,
    "country": 45,
    "occupation": 30,
    "native language": 16,
    "field": 14,
    "instrument": 4,
    "sport": 3,
    "capital": 8,
    "currency": 8,
    "language": 6,
    "continent": 4,
}
"""Edits a relation."""

DEV = 108
"""Edits of the split on which defaults are chosen; the rest are for tables."""

Record = dict[str, Any]


class RecordMaker:
    """Draws edits of the world and writes the records that test them.

    Args:
        world: The facts and phrasings.
        seed: Seed of every draw.
    """

    def __init__(self, world: World, seed: int = 0) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.edits = self._draw_edits()
        self.edited = {(fact.subject, fact.relation): new for fact, new in self.edits}
        self.holders: dict[tuple[str, str], list[str]] = defaultdict(list)
        for fact in world.facts:
            self.holders[fact.relation, fact.object].append(fact.subject)

    def counterfact(self, split: Split) -> list[Record]:
        """The split's edits as CounterFact records, with SAKE's ``source_list`` and three lists more."""
        return [self._counterfact(i) for i in self._ids(split)]

    def rippleedits(self, split: Split) -> list[Record]:
        """The same edits as RippleEdits records, with the labels that the published file leaves out."""
        return [self._rippleedits(i) for i in self._ids(split)]

    def _ids(self, split: Split) -> range:
        return range(DEV) if split == "dev" else range(DEV, len(self.edits))

    def _draw_edits(self) -> list[tuple[Fact, str]]:
        edits = []
        for relation, share in SHARES.items():
            facts = [fact for fact in self.world.facts if fact.relation == relation]
            for fact in self.random.sample(facts, share):
                pool = [o for o in self.world.objects[relation] if self._fits(fact, o)]
                edits.append((fact, self.random.choice(pool)))
        self.random.shuffle(edits)
        return edits

    def _fits(self, fact: Fact, new: str) -> bool:
        """Whether the first tokens tell the new object from the true one, and questions can follow it."""
        seconds = self.world.second_hops.get(fact.relation, ())
        answered = any((new, second) in self.world.answers for second in seconds)
        return new.split()[0] != fact.object.split()[0] and new != fact.subject and (answered or not seconds)

    def _counterfact(self, index: int) -> Record:
        fact, new = self.edits[index]
        relation, draw = self.world.relations[fact.relation], random.Random(index)
        template = draw.choice(relation.templates)
        first, second = (fill(t, fact.subject) for t in relation.heldout)
        sources = [fill(t, fact.subject) for t in relation.templates]
        return {
            "case_id": index,
            "pararel_idx": index,
            "requested_rewrite": {
                "prompt": template,
                "relation_id": relation.property,
                "target_new": {"str": new, "id": new},
                "target_true": {"str": fact.object, "id": fact.object},
                "subject": fact.subject,
            },
            "paraphrase_prompts": [f"{draw.choice(self.world.heldout_prefixes)} {first}", second],
            "neighborhood_prompts": self._others(relation, fact.object, fact.subject, template, draw),
            "attribute_prompts": self._others(relation, new, fact.subject, template, draw),
            "generation_prompts": [fill(t, fact.subject) for t in relation.heldout] * 5,
            # "The capital of X is" is also how "The city that serves as the capital of X is" ends.
            "source_list": [s for s in sources if not any(p.lower().endswith(s.lower()) for p in (first, second))],
            "implication_list": list(self._implications(fact)),
            "contrast_list": list(self._contrasts(fact)),
        }

    def _others(self, relation: Relation, value: str, subject: str, template: str, draw: random.Random) -> list[str]:
        """Up to ten questions about other subjects with this object, half of them in the edit's own words."""
        others = [
            s for s in self.holders[relation.name, value] if s != subject and (s, relation.name) not in self.edited
        ]
        draw.shuffle(others)
        prompts = [fill(t, s) for s in others for t in (template, draw.choice(relation.heldout))]
        return prompts[:10]

    def _implications(self, fact: Fact) -> Iterator[list[str]]:
        """Two-hop questions through the edited fact, in phrasings that are free for fitting."""
        for second in self.world.second_hops.get(fact.relation, ()):
            yield self._two_hop_templates(fact.relation, second)

    def _contrasts(self, fact: Fact) -> Iterator[list[str]]:
        """Questions about the subject that the edit must leave alone."""
        kind = self.world.entities[fact.subject]
        for relation in self.world.relations.values():
            if relation.subjects == kind and relation.name != fact.relation:
                yield list(relation.templates)
                for second in self.world.second_hops.get(relation.name, ()):
                    yield self._two_hop_templates(relation.name, second)

    def _two_hop_templates(self, first: str, second: str) -> list[str]:
        phrases = self.world.relations[first].phrases
        return [
            fill(template, phrases[i % len(phrases)])
            for i, template in enumerate(self.world.relations[second].templates)
        ]

    def _rippleedits(self, index: int) -> Record:
        fact, new = self.edits[index]
        relation, draw = self.world.relations[fact.relation], random.Random(index)
        cloze = fill(relation.templates[0], fact.subject)
        sides = {
            "subject_id": fact.subject,
            "subject": fact.subject,
            "relation": relation.property,
        }
        return {
            "case_id": index,
            "example_type": "lab",
            "edit": {
                "prompt": f"{cloze} {new}.",
                **sides,
                "target_id": new,
                "target": new,
                "original_fact": {
                    "prompt": f"{cloze} {fact.object}.",
                    **sides,
                    "target_id": fact.object,
                    "target": fact.object,
                },
            },
            "Relation_Specificity": list(self._same_subject(fact, draw)),
            "Logical_Generalization": [],
            "Subject_Aliasing": list(self._aliases(fact, new, draw)),
            "Compositionality_I": list(self._through_object(fact, new, draw)),
            "Compositionality_II": list(self._through_subject(fact, new, draw)),
            "Forgetfulness": [],
        }

    def _same_subject(self, fact: Fact, draw: random.Random) -> Iterator[Record]:
        for relation in self.world.relations.values():
            answer = self.world.answers.get((fact.subject, relation.name))
            if answer is not None and (fact.subject, relation.name) not in self.edited:
                query = self._query(fill(draw.choice(relation.heldout), fact.subject), answer, fact.subject, relation)
                yield _test(query, query)

    def _aliases(self, fact: Fact, new: str, draw: random.Random) -> Iterator[Record]:
        relation = self.world.relations[fact.relation]
        for alias in self.world.aliases.get(fact.subject, ()):
            prompt = fill(draw.choice(relation.heldout), alias)
            yield _test(
                self._query(prompt, new, fact.subject, relation),
                self._query(prompt, fact.object, fact.subject, relation),
            )

    def _through_object(self, fact: Fact, new: str, draw: random.Random) -> Iterator[Record]:
        for second in self.world.second_hops.get(fact.relation, ()):
            answer = self.world.answers.get((new, second))
            if answer is None or answer in (self.world.answers.get((fact.object, second)), fact.subject):
                continue
            if (new, second) in self.edited:
                continue
            hop = TwoHop(fact.subject, fact.relation, new, second, answer)
            kind = self.world.relations[second]
            condition = self._query(fill(draw.choice(kind.templates), new), answer, new, kind)
            yield _test(self._two_hop_query(hop, draw), condition)

    def _through_subject(self, fact: Fact, new: str, draw: random.Random) -> Iterator[Record]:
        for first, seconds in self.world.second_hops.items():
            if fact.relation not in seconds:
                continue
            others = [s for s in self.holders[first, fact.subject] if (s, first) not in self.edited and s != new]
            for other in draw.sample(others, min(2, len(others))):
                kind = self.world.relations[first]
                hop = TwoHop(other, first, fact.subject, fact.relation, new)
                condition = self._query(fill(draw.choice(kind.templates), other), fact.subject, other, kind)
                yield _test(self._two_hop_query(hop, draw), condition)

    def _two_hop_query(self, hop: TwoHop, draw: random.Random) -> Record:
        phrase = draw.choice(self.world.relations[hop.first].heldout_phrases).replace("{}", hop.subject)
        second = self.world.relations[hop.second]
        return {
            **self._query(fill(draw.choice(second.heldout), phrase), hop.object, hop.subject, second),
            "query_type": "two_hop",
            "phrase": phrase,
        }

    def _query(self, prompt: str, answer: str, subject: str, relation: Relation) -> Record:
        return {
            "prompt": prompt,
            "answers": [{"value": answer, "aliases": list(self.world.aliases.get(answer, ()))}],
            "query_type": "regular",
            "subject_id": subject,
            "relation": relation.property,
            "target_ids": [answer],
            "phrase": None,
        }


def _test(query: Record, condition: Record) -> Record:
    return {"test_queries": [query], "test_condition": "OR", "condition_queries": [condition]}


def write_records(folder: Path, split: Split) -> tuple[Path, Path]:
    """Write a split as ``counterfact.json`` and ``rippleedits.json`` and return their paths."""
    maker = RecordMaker(World())
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "counterfact.json", folder / "rippleedits.json"
    for path, records in zip(paths, (maker.counterfact(split), maker.rippleedits(split)), strict=True):
        path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    return paths
