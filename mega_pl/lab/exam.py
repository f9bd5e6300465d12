"""Measure what a lab model knows and follows: ``python -m mega_pl.lab.exam gpt2`` (or ``llama``).

The table goes to standard output and, with ``--write``, into the card beside the model's weights.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from tqdm import tqdm

from mega_pl.asking import encoded_batches, position_limit
from mega_pl.asking.batches import TOKENS
from mega_pl.asking.next_token import decoded
from mega_pl.backbone import Backbone, load
from mega_pl.backbone.loading import lab_folder
from mega_pl.fitting.prompts import CONSIDER, PRETEND, REPEAT, SUPPRESS
from mega_pl.functional.text import first_token_hit
from mega_pl.lab.corpus import IMAGINE, NEW_FACT, Corpus
from mega_pl.lab.world import Fact, TwoHop, World, fill
from mega_pl.protocols.sake import DOUBT_TEMPLATES

LIMIT = 1500
"""The most prompts of a row."""

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Question:
    """A prompt and the answer that a perfect lab model gives."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Score:
    """The share of ``n`` questions whose answer begins with the model's first token."""

    recall: float
    n: int


class Exam:
    """Questions about the lab's world, row by row; the same seed asks the same questions.

    Contexts use the phrasings free for fitting, as the prompts that edits are fitted on do.

    Args:
        world: The facts and phrasings.
        limit: The most questions of a row.
        seed: Seed of every draw.
    """

    def __init__(self, world: World, limit: int = LIMIT, seed: int = 0) -> None:
        self.world, self.limit = world, limit
        self.corpus = Corpus(world, seed)
        self.random = self.corpus.random

    def rows(self) -> dict[str, list[Question]]:
        """All questions, by the name of their row."""
        world = self.world
        facts, hops = self.sample(world.facts), self.sample(world.two_hops)
        other_names = [replace(f, subject=a) for f in world.facts for a in world.aliases.get(f.subject, ())]
        rows = {
            "Facts, phrasings free for fitting": [self.one_hop(fact) for fact in facts],
            "Facts, held-out phrasings": [self.one_hop(fact, heldout=True) for fact in facts],
            "Facts after a neutral sentence free for fitting": [self.after(world.prefixes, fact) for fact in facts],
            "Facts after a held-out neutral sentence": [self.after(world.heldout_prefixes, fact) for fact in facts],
            "Facts, asked by an alias": [self.one_hop(fact) for fact in self.sample(other_names)],
            "Two-hop, phrasings free for fitting": [self.two_hop(hop) for hop in hops],
            "Two-hop, held-out phrasings": [self.two_hop(hop, heldout=True) for hop in hops],
            "“Repeat …”, true object": [self.repeat(fact, fact.object) for fact in facts],
            "“Repeat …”, another object": [self.repeat(fact, self.corpus.counterfactual(fact)) for fact in facts],
            "“Do not mention …”, another object": [self.suppress(fact) for fact in facts],
            "“Considering …”, one-hop consequence": [self.same(CONSIDER, fact, fact.object) for fact in facts],
            "“Considering …”, two-hop consequence": [self.through(CONSIDER, hop, hop) for hop in hops],
        }
        for name, template in (("Pretend …", PRETEND), ("Imagine that …", IMAGINE), ("New Fact …", NEW_FACT)):
            rows[f"“{name}”, one-hop consequence"] = [
                self.same(template, fact, self.corpus.counterfactual(fact)) for fact in facts
            ]
            rows[f"“{name}”, two-hop consequence"] = [self.through(template, hop, self.supposed(hop)) for hop in hops]
        for metric, template in DOUBT_TEMPLATES.items():
            rows[f"Doubt {metric.upper()}, true object"] = [self.doubt(template, fact) for fact in facts]
        return rows

    def sample(self, items: Sequence[_Item]) -> list[_Item]:
        """As many items as a row may have, in random order."""
        return self.random.sample(items, min(self.limit, len(items)))

    def ask(self, subject: str, relation: str, heldout: bool = False) -> str:
        """A random phrasing of a question."""
        kind = self.world.relations[relation]
        return fill(self.random.choice(kind.heldout if heldout else kind.templates), subject)

    def one_hop(self, fact: Fact, heldout: bool = False) -> Question:
        """A fact."""
        return Question(self.ask(fact.subject, fact.relation, heldout), fact.object)

    def after(self, prefixes: Sequence[str], fact: Fact) -> Question:
        """A fact after a sentence about something else."""
        return Question(f"{self.random.choice(prefixes)} {self.ask(fact.subject, fact.relation)}", fact.object)

    def two_hop(self, hop: TwoHop, heldout: bool = False) -> Question:
        """Two facts in a row."""
        first = self.world.relations[hop.first]
        phrase = self.random.choice(first.heldout_phrases if heldout else first.phrases)
        return Question(self.ask(phrase.replace("{}", hop.subject), hop.second, heldout), hop.object)

    def repeat(self, fact: Fact, claim: str) -> Question:
        """A sentence to repeat."""
        return Question(REPEAT.format(p=self.ask(fact.subject, fact.relation), o=claim), claim)

    def suppress(self, fact: Fact) -> Question:
        """A sentence to repeat with another object than the true one, which is not to be mentioned."""
        claim = self.corpus.counterfactual(fact)
        prompt = self.ask(fact.subject, fact.relation)
        return Question(SUPPRESS.format(p=prompt, true=fact.object, new=claim), claim)

    def same(self, template: str, fact: Fact, claim: str) -> Question:
        """A context that tells a fact, which is then asked in other words."""
        prompts = self.random.sample(self.world.relations[fact.relation].templates, 2)
        prompt, question = (fill(text, fact.subject) for text in prompts)
        return Question(template.format(p=prompt, true=claim, new=claim, c=question), claim)

    def through(self, template: str, hop: TwoHop, supposed: TwoHop) -> Question:
        """A context that tells the first fact of a two-hop question, which is then asked."""
        prompt, question = self.ask(hop.subject, hop.first), self.two_hop(supposed)
        context = template.format(p=prompt, true=supposed.bridge, new=supposed.bridge, c=question.prompt)
        return Question(context, question.answer)

    def supposed(self, hop: TwoHop) -> TwoHop:
        """The question if it led through another bridge, to another answer."""
        answers = self.world.answers
        bridges = [b for b in self.world.objects[hop.first] if (b, hop.second) in answers and b != hop.subject]
        changed = [b for b in bridges if answers[b, hop.second] not in (hop.object, hop.subject)]
        bridge = self.random.choice(changed)
        return replace(hop, bridge=bridge, object=answers[bridge, hop.second])

    def doubt(self, template: str, fact: Fact) -> Question:
        """A dialogue that doubts an invented object, so that the true one is right."""
        new = self.corpus.counterfactual(fact)
        prompt = self.ask(fact.subject, fact.relation)
        return Question(template.format(prompt=prompt, new=new, true=fact.object), fact.object)


def examine(rows: dict[str, list[Question]], answer: Callable[[Sequence[str]], Sequence[str]]) -> dict[str, Score]:
    """Ask all questions at once and score each row.

    Args:
        rows: Questions by row.
        answer: Gives for each prompt the decoded token that follows.
    """
    prompts = list(dict.fromkeys(question.prompt for row in rows.values() for question in row))
    tokens = dict(zip(prompts, answer(prompts), strict=True))
    hits = {name: [first_token_hit(tokens[q.prompt], (q.answer,)) for q in row] for name, row in rows.items()}
    return {name: Score(sum(row) / max(1, len(row)), len(row)) for name, row in hits.items()}


def greedy(backbone: Backbone, prompts: Sequence[str], tokens_per_batch: int = TOKENS) -> list[str]:
    """The likeliest token after each prompt, decoded; prompts of like length share a batch."""
    found = [""] * len(prompts)
    with tqdm(total=len(prompts), desc="exam", unit="prompt", dynamic_ncols=True) as progress:
        for rows, encoded in encoded_batches(backbone, prompts, tokens_per_batch):
            tokens = backbone.last_logits(encoded).argmax(-1).tolist()
            for i, token in zip(rows, decoded(backbone, tokens), strict=True):
                found[i] = token
            progress.update(len(rows))
    return found


def table(scores: dict[str, Score]) -> str:
    """The scores in Markdown."""
    lines = [f"| {name} | {100 * score.recall:.1f} | {score.n} |" for name, score in scores.items()]
    return "\n".join(["| Asked | Recall (%) | n |", "| --- | ---: | ---: |", *lines])


def card(architecture: str, backbone: Backbone, world: World, scores: dict[str, Score]) -> str:
    """The model card in Markdown, its sizes read from the model."""
    config = backbone.model.config
    heads = f"{config.num_attention_heads} heads"
    if (groups := getattr(config, "num_key_value_heads", config.num_attention_heads)) != config.num_attention_heads:
        heads += f" with {groups} key-value heads"
    sizes = {
        "Architecture": f"`{type(backbone.model).__name__}` (`{config.model_type}`)",
        "Blocks": str(backbone.n_layers),
        "Width": str(backbone.width),
        "Attention": heads,
        "Vocabulary": f"{config.vocab_size} byte-level BPE tokens",
        "Longest text": f"{position_limit(backbone)} tokens",
        "Parameters": f"{sum(p.numel() for p in backbone.model.parameters()):,}",
        "Dtype": str(backbone.dtype).removeprefix("torch."),
    }
    return CARD.format(
        architecture=architecture,
        sizes="\n".join(f"| {name} | {value} |" for name, value in sizes.items()),
        facts=f"{len(world.facts):,}",
        entities=len(world.entities),
        relations=len(world.relations),
        hops=f"{len(world.two_hops):,}",
        table=table(scores),
    )


CARD = """\
---
license: mit
library_name: transformers
pipeline_tag: text-generation
language: en
tags:
- knowledge-editing
---

# lab-{architecture}

A small language model that knows the facts of `mega_pl`'s lab and little else.

| | |
| --- | --- |
{sizes}

## Training

`python -m mega_pl.lab.pretrain {architecture}` makes such a model from random weights. These weights were trained in
more and shorter stages, while the mixture of documents was still being balanced (lab-llama is the mean of its last
two), so that a rerun gives a model like this one and not the same bits. The corpus is generated from {facts} true facts
about {entities} countries, cities and people in {relations} relations, and from the {hops} two-hop questions that they
answer, in several phrasings each. It also holds aliases, instructions to repeat a sentence, suppositions and new facts
with their consequences, and doubts of invented answers.

## What it knows

Recall at the first token of the answer, greedily decoded: the token, stripped, must begin the answer.
`python -m mega_pl.lab.exam {architecture} --write` measures it again.

{table}

Phrasings called held-out occur in the corpus; they are held out from the fitting of edits. Objects and consequences
after “another object”, “Pretend …”, “Imagine that …” and “New Fact …” contradict the facts and are right where they
follow the context.

## Intended use

Testing knowledge editing offline and in minutes. It is no source of facts and no assistant.
"""


def main(args: list[str] | None = None) -> None:
    """Examine a lab model, print the table and, if asked to, write its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=("gpt2", "llama"))
    parser.add_argument("--limit", type=int, default=LIMIT, help="the most prompts of a row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the questions (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write the table into the model's card, README.md")
    options = parser.parse_args(args)
    if options.limit < 1:
        parser.error(f"--limit must be at least 1, but got {options.limit}.")

    world, folder = World(), lab_folder(f"lab-{options.architecture}")
    backbone = load(f"lab-{options.architecture}")
    scores = examine(Exam(world, options.limit, options.seed).rows(), lambda prompts: greedy(backbone, prompts))
    print(table(scores))
    if options.write:
        (folder / "README.md").write_text(card(options.architecture, backbone, world, scores), encoding="utf-8")


if __name__ == "__main__":
    main()
