"""Routing alone: which prompts of a benchmark find their edit, which fire that should not, and what a decision costs.

    python benchmarks/routing.py --model FOLDER --popular popular_rippleedits.json --counterfact counterfact.json

Every row is a router: its own evidence, the subject's name alone, the relation alone.
"""

import argparse
import resource
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from mega_pl import Backbone, EditCase, load
from mega_pl.data import read_counterfact, with_phrasings
from mega_pl.data.relations import relations
from mega_pl.data.rippleedits import read_rippleedits
from mega_pl.edits import NO_EDIT, ContentRouter, Route, RouterConfig
from mega_pl.edits.request import conflicts
from mega_pl.edits.routing import Prompts

BATCH = 64
"""Prompts that are routed together."""


def main(args: Sequence[str] | None = None) -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as in mega_pl.load")
    parser.add_argument("--counterfact", type=Path, help="records of CounterFact")
    parser.add_argument("--popular", type=Path, help="records of RippleEdits")
    parser.add_argument("--limit", type=int, default=None, help="edits of each")
    parser.add_argument("--encoder", default=None, help="folder or hub name of a sentence encoder")
    parser.add_argument("--no-answer", action="store_true", help="without the model's next token")
    options = parser.parse_args(args)
    backbone = load(options.model)
    config = RouterConfig(encoder=options.encoder, answer=not options.no_answer, noun_phrases=not options.no_answer)
    if options.counterfact:
        cases = with_phrasings(islice(read_counterfact(options.counterfact), options.limit))
        measure(backbone, cases, config, counterfact_prompts(cases))
    if options.popular:
        found = list(islice(read_rippleedits(options.popular, on_bad="skip"), options.limit))
        wrong = conflicts([case.request for case in found])
        cases = with_phrasings(case for i, case in enumerate(found) if i not in wrong)
        measure(backbone, cases, config, popular_prompts(cases))


def counterfact_prompts(cases: Sequence[EditCase]) -> dict[str, list[tuple[int, str]]]:
    """By kind the prompts and the edit that each is about, or `NO_EDIT`."""
    return {
        "edit": [(i, case.request.filled) for i, case in enumerate(cases)],
        "paraphrase": [(i, p) for i, case in enumerate(cases) for p in case.paraphrase_prompts],
        "neighborhood": [(NO_EDIT, p) for case in cases for p in case.neighborhood_prompts],
    }


def popular_prompts(cases: Sequence[EditCase]) -> dict[str, list[tuple[int, str]]]:
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


def measure(
    backbone: Backbone, cases: Sequence[EditCase], config: RouterConfig, prompts: dict[str, list[tuple[int, str]]]
) -> None:
    """Print a table of one benchmark."""
    start = time.perf_counter()
    own = ContentRouter.fit(backbone, [case.request for case in cases], list(relations().values()), config)
    print(f"{len(cases)} edits, router fitted in {time.perf_counter() - start:.1f} s\n")
    print("| router | " + " | ".join(prompts) + " | ms a prompt |\n|" + " --- |" * (len(prompts) + 2))
    for name, router in {
        "own": own,
        "subject only": own.only("subject"),
        "relation only": own.only("relation"),
    }.items():
        if name == "relation only" and len(cases) > 100:
            continue  # every prompt would be compared with every edit
        start = time.perf_counter()
        routes = {kind: routed(backbone, router, [text for _, text in of]) for kind, of in prompts.items()}
        spent = 1e3 * (time.perf_counter() - start) / sum(map(len, prompts.values()))
        right = [
            f"{sum(r.edit == edit for r, (edit, _) in zip(routes[kind], of, strict=True)) / len(of):.3f}"
            for kind, of in prompts.items()
        ]
        print(f"| {name} | {' | '.join(right)} | {spent:.2f} |")
    print("| prompts | " + " | ".join(str(len(of)) for of in prompts.values()) + " | |")
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB\n")


def routed(backbone: Backbone, router: ContentRouter, texts: Sequence[str]) -> list[Route]:
    """The routes of texts."""
    routes: list[Route] = []
    for start in range(0, len(texts), BATCH):
        encoded = backbone.encode(texts[start : start + BATCH])
        routes += router.route(Prompts(backbone, encoded.inputs, encoded.last))
    return routes


if __name__ == "__main__":
    main()
