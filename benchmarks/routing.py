"""Routing alone: which prompts of a benchmark find their edit, which fire that should not, and what a decision costs.

    python benchmarks/routing.py --model FOLDER --popular popular_rippleedits.json --counterfact counterfact.json

Every row is a router: its own evidence, the subject's name alone, the relation alone. Of prompts that should find their
edit, the share that finds it; of those that should find none, the share that is left alone. A prompt that asks for what
another edit of the bank changes is counted in a column of its own.
"""

import argparse
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from mega_pl import Backbone, EditCase, load
from mega_pl.asking import answers, chat_prompt, in_batches, token_counts
from mega_pl.data import DataFile, read, with_phrasings
from mega_pl.data.relations import Relation, relations
from mega_pl.edits import NO_EDIT, ContentRouter, Route, RouterConfig
from mega_pl.edits.conflicts import conflicts
from mega_pl.edits.request import SLOT, Probe
from mega_pl.edits.routing import Prompts
from mega_pl.edits.routing.subjects import SubjectFinder, composed, names_of

TOKENS = 1024
"""Tokens of a batch, whose prompts are routed together."""

Expected = tuple[int, str]
"""The edit that a prompt should find, or `NO_EDIT`, and the prompt."""


def main(args: Sequence[str] | None = None) -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as in mega_pl.load")
    parser.add_argument("--counterfact", type=Path, help="records of CounterFact")
    parser.add_argument("--popular", type=Path, help="records of RippleEdits")
    parser.add_argument("--easyedit", type=Path, help="records of CounterFact in EasyEdit's flat schema")
    parser.add_argument("--wikibigedit", type=Path, help="records of WikiBigEdit")
    parser.add_argument("--start", type=int, default=0, help="the first edit of each")
    parser.add_argument("--limit", type=int, default=None, help="edits of each")
    parser.add_argument(
        "--held-out",
        type=int,
        default=30,
        help="relations taken out of the template bank, by whose phrasings CounterFact's subjects are asked about too",
    )
    parser.add_argument("--encoder", default=None, help="folder or hub name of a sentence encoder")
    parser.add_argument("--no-answer", action="store_true", help="without the model's next token")
    parser.add_argument("--chat", action="store_true", help="put every prompt as a user's turn in the chat template")
    parser.add_argument(
        "--relation-only", action="store_true", help="with the row of the relation alone, which is slow"
    )
    options = parser.parse_args(args)
    backbone = load(options.model)
    config = RouterConfig(encoder=options.encoder, answer=not options.no_answer, noun_phrases=not options.no_answer)
    put = partial(in_chat, backbone) if options.chat else list
    ask = partial(answered, None if options.no_answer else backbone)
    formats = {
        "counterfact": ("counterfact", counterfact_prompts),
        "popular": ("rippleedits", popular_prompts),
        "easyedit": ("easyedit", flat_prompts),
        "wikibigedit": ("wikibigedit", flat_prompts),
    }
    for name, (format, prompts_of) in formats.items():
        path = getattr(options, name)
        if path is None:
            continue
        stop = None if options.limit is None else options.start + options.limit
        everyone = read(DataFile(path, format), on_bad="skip", ask=ask)
        found = everyone[options.start : stop]
        wrong = conflicts([case.request for case in found])
        cases = with_phrasings(case for i, case in enumerate(found) if i not in wrong)
        bank = list(relations().values())
        print(f"{name}: {len(cases)} edits, {len(wrong)} left out because they conflict with others\n")
        prompts = prompts_of(cases, everyone)
        measure(backbone, cases, bank, config, prompts, put, relation_only=options.relation_only)
        if name == "counterfact" and options.held_out:
            kept, held_out = split(bank, options.held_out)
            names = {relation.name for relation in kept}
            cases = [case for case in cases if case.request.relation in names]
            print(f"{len(held_out)} relations held out, {len(cases)} edits of the others\n")
            prompts = counterfact_prompts(cases, cases) | {
                "held-out relations": held_out_prompts(cases, kept, held_out)
            }
            measure(backbone, cases, kept, config, prompts, put, relation_only=options.relation_only)


def answered(backbone: Backbone | None, prompts: Sequence[str]) -> list[str]:
    """What the bare model says, the object before a new fact; nothing is asked where no answer counts."""
    if backbone is None:
        return ["nothing"] * len(prompts)
    return [next(iter(found), "nothing") for found in answers(backbone, prompts, least=0.0, tokens=4)]


def in_chat(backbone: Backbone, prompts: Sequence[str]) -> list[str]:
    """Prompts as what a user says, before the answer."""
    return [chat_prompt(backbone, [prompt]) for prompt in prompts]


def split(bank: Sequence[Relation], count: int) -> tuple[list[Relation], list[Relation]]:
    """The relations that stay and those that are held out, drawn by a seed."""
    names = {relation.name for relation in random.Random(0).sample(bank, count)}
    return [r for r in bank if r.name not in names], [r for r in bank if r.name in names]


def held_out_prompts(
    cases: Sequence[EditCase], kept: Sequence[Relation], held_out: Sequence[Relation]
) -> list[Expected]:
    """Questions about each subject by every phrasing of the held-out relations that lead from the same types."""
    types = {relation.name: set(relation.subjects) for relation in kept}
    return [
        (NO_EDIT, phrasing.replace("{}", case.request.subject))
        for case in cases
        for relation in held_out
        if not types[case.request.relation].isdisjoint(relation.subjects)
        for phrasing in relation.phrasings
    ]


def counterfact_prompts(cases: Sequence[EditCase], everyone: Sequence[EditCase]) -> dict[str, list[Expected]]:
    """By kind the prompts of some cases of a file and the edit that each is about, or `NO_EDIT`."""
    return {
        "edit": [(i, case.request.filled) for i, case in enumerate(cases)],
        "paraphrase": [(i, p) for i, case in enumerate(cases) for p in case.paraphrase_prompts],
        "neighborhood": [(NO_EDIT, p) for case in cases for p in case.neighborhood_prompts],
    }


def popular_prompts(cases: Sequence[EditCase], everyone: Sequence[EditCase]) -> dict[str, list[Expected]]:
    """The same; what is asked of an edited fact by the edit's own prompt is no question of another fact."""
    own = {case.request.filled for case in cases}
    specificity = [probe.prompt for case in cases for probe in case.relation_specificity]
    return {
        "edit": [(i, case.request.filled) for i, case in enumerate(cases)],
        "relation specificity": [(NO_EDIT, p) for p in specificity],
        "the same, not edited": [(NO_EDIT, p) for p in specificity if p not in own],
        "compositionality 1": [(i, p.prompt) for i, case in enumerate(cases) for p in case.compositionality_1],
        "alias": [(i, p.prompt) for i, case in enumerate(cases) for p in case.subject_aliasing],
    }


def flat_prompts(cases: Sequence[EditCase], everyone: Sequence[EditCase]) -> dict[str, list[Expected]]:
    """The same; a locality question is stale where it asks by its own edit's relation about another edit's subject.

    The records name no relation: two templates are of one where an edit of one has a locality question of the other.
    """
    groups: dict[str, str] = {}

    def group(template: str) -> str:
        while groups.get(template, template) != template:
            template = groups[template]
        return template

    def mentions(finder: SubjectFinder, probe: Probe) -> Iterator[tuple[str, tuple[int, ...]]]:
        text = composed(probe.prompt)
        for mention in finder(text):
            yield f"{text[: mention.start]}{SLOT}{text[mention.end :]}", finder.owners[mention.name]

    finders = [SubjectFinder(names_of([c.request.subject for c in of], [()] * len(of))) for of in (everyone, cases)]
    for case in everyone:
        for probe in case.locality:
            for template, _ in mentions(finders[0], probe):
                groups[group(template)] = group(case.request.prompt)
    named = [
        (probe.prompt, case.request.prompt, [i for _, owners in mentions(finders[1], probe) for i in owners])
        for case in cases
        for probe in case.locality
    ]
    stale = [any(group(cases[i].request.prompt) == group(own) for i in others) for _, own, others in named]
    return {
        "edit": [(i, case.request.filled) for i, case in enumerate(cases)],
        "rephrased": [(i, p) for i, case in enumerate(cases) for p in case.paraphrase_prompts],
        "locality": [(NO_EDIT, prompt) for (prompt, _, _), old in zip(named, stale, strict=True) if not old],
        "locality, stale": [(NO_EDIT, prompt) for (prompt, _, _), old in zip(named, stale, strict=True) if old],
    }


def measure(
    backbone: Backbone,
    cases: Sequence[EditCase],
    bank: Sequence[Relation],
    config: RouterConfig,
    prompts: dict[str, list[Expected]],
    put: Callable[[Sequence[str]], list[str]],
    *,
    relation_only: bool,
) -> None:
    """Print a table of one benchmark."""
    start = time.perf_counter()
    own = ContentRouter.fit(backbone, [case.request for case in cases], bank, config)
    print(f"router fitted in {time.perf_counter() - start:.1f} s\n")
    print("| router | " + " | ".join(prompts) + " | ms a prompt |\n|" + " --- |" * (len(prompts) + 2))
    routers = {"own": own, "subject only": own.only("subject")}
    for name, router in (routers | {"relation only": own.only("relation")} if relation_only else routers).items():
        start = time.perf_counter()
        routes = {kind: routed(backbone, router, put([text for _, text in of])) for kind, of in prompts.items()}
        spent = 1e3 * (time.perf_counter() - start) / sum(map(len, prompts.values()))
        right = [
            f"{sum(r.edit == edit for r, (edit, _) in zip(routes[kind], of, strict=True)) / max(len(of), 1):.3f}"
            for kind, of in prompts.items()
        ]
        print(f"| {name} | {' | '.join(right)} | {spent:.2f} |", flush=True)
    print("| prompts | " + " | ".join(str(len(of)) for of in prompts.values()) + " | |")
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB\n", flush=True)


def routed(backbone: Backbone, router: ContentRouter, texts: Sequence[str]) -> list[Route]:
    """The routes of texts."""

    def read(batch: Sequence[str]) -> list[Route]:
        encoded = backbone.encode(batch)
        return router.route(Prompts(backbone, encoded.inputs, encoded.last))

    return in_batches(texts, token_counts(backbone, texts), read, TOKENS)


if __name__ == "__main__":
    main()
