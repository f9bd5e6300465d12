"""``--dry-run``: what can go wrong before the weights are there, and the memory that a run will take."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from mega_pl.asking import answer_ids, check_room, position_limit, token_counts
from mega_pl.asking.batches import TOKENS
from mega_pl.backbone import Backbone, load_outline, tokens_that_fit
from mega_pl.backbone.backbone import Dtype
from mega_pl.backbone.memory import cache_bytes, device_bytes, forward_bytes, weight_bytes
from mega_pl.data.datamodule import EditDataModule
from mega_pl.data.relations import relations
from mega_pl.edits import EditCase
from mega_pl.errors import MegaValueError
from mega_pl.fitting.maps import object_ids
from mega_pl.fitting.prompts import expand
from mega_pl.functional import map_bytes
from mega_pl.functional.text import counted
from mega_pl.module import MegaModule
from mega_pl.protocols import Protocol
from mega_pl.protocols.sake import SakeMetric, sake_tests

GIB = 2**30

SOMETHING = "a"
"""Follows a prompt whose answer only the model knows."""


def rehearse_fit(module: MegaModule, data: EditDataModule) -> None:
    """Check the data, the tokenizer and the sites of a fit, and print what memory it takes.

    Args:
        module: What would be fitted; its backbone is not loaded.
        data: The edits, read already.

    Raises:
        ValueError: If an answer merges with its prompt, a prompt is too long, the model lacks a site, or its weights
            do not fit into the memory of the device and no ``device_map`` spreads them.
    """
    hparams, config = module.hparams, module.config
    maps = config.maps
    outline = load_outline(hparams["model_name_or_path"], revision=hparams["revision"], dtype=hparams["dtype"])
    sites = config.sites_of(outline)
    config.router.vectors(outline)
    sets = [expand(request, config.prompts, outline) for request in data.requests]
    prompts = [(prompt, SOMETHING) for of_edit in sets for prompt in of_edit.source]
    prompts += [
        (p, answer or SOMETHING) for of_edit in sets for p, answer in zip(of_edit.target, of_edit.answers, strict=True)
    ]
    longest = _longest(outline, [*_questions(data.cases), *prompts])
    tokens, most = (
        config.tokens_per_batch or tokens_that_fit(outline),
        max(len(of_edit.source) + len(of_edit.target) for of_edit in sets),
    )
    rank = most if maps.rank is None else min(most, maps.max_rank if maps.rank < 1 else int(maps.rank))
    ranks = [min(rank, count or rank) for count in (maps.directions, maps.object_directions)]
    width, floats = outline.width, 4 * len(sites)
    held = max(sum(token_counts(outline, prompts)) for of_edit in sets for prompts in (of_edit.source, of_edit.target))
    steps = [len(object_ids(outline, r.filled, r.target_new, maps)) + 1 for r in data.requests]
    questions = sum(len(relation.references) for relation in relations().values())
    questions += len({t for r in data.requests for t in (r.prompt, *r.phrasings)})
    memory = {
        "weights": weight_bytes(outline),
        f"forward pass, {tokens} tokens": forward_bytes(outline, max(1, tokens // longest), longest),
        f"cache of an edit's prompts, {held} tokens": cache_bytes(outline, held),
        "activations of an edit": floats * most * width * max(steps),
        f"router, {questions} questions": 4 * (questions + width) * min(config.router.max_rank, width),
        f"{counted(sum(steps), 'map')} of {counted(len(sets), 'edit')}": len(sites)
        * sum(
            count * map_bytes(width, rank, maps.dtype)
            for count, rank in zip((len(steps), sum(steps) - len(steps)), ranks, strict=True)
        ),
    }
    counts = Counter(test.metric for case in data.cases for test in sake_tests(case))
    print(f"data: {_edits(data)}; tests: {', '.join(f'{name} {counts[name]}' for name in get_args(SakeMetric))}")
    print(f"prompts: {most} an edit at most; sites: {', '.join(map(str, sites))}")
    _report(outline, longest, memory, spread=hparams["device_map"] is not None)


def rehearse_comparison(
    backbones: Sequence[tuple[str, str | None, Dtype, bool]],
    data: Mapping[str, EditDataModule],
    protocols: Sequence[Protocol[Any, Any, Any]],
) -> None:
    """Check the data and the tokenizers of a comparison, and print what memory the models take, editors aside.

    Args:
        backbones: Name, revision, dtype, and whether a ``device_map`` spreads the weights.
        data: Edits and their tests by name, read already.
        protocols: Who would judge.

    Raises:
        ValueError: As for `rehearse_fit`.
    """
    for name, module in data.items():
        counts = {
            p.name: len(p.all_tests(module.cases)) or ("once the model is there" if p.adapt else 0) for p in protocols
        }
        print(f"data: {name}, {_edits(module)}; tests: {', '.join(f'{p} {n}' for p, n in counts.items())}")
    for model, revision, dtype, spread in backbones:
        outline = load_outline(model, revision=revision, dtype=dtype)
        longest = _longest(outline, [pair for module in data.values() for pair in _questions(module.cases)])
        prompts = max(1, TOKENS // longest)
        memory = {
            "weights": weight_bytes(outline),
            f"forward pass, {prompts} prompts of {longest} tokens": forward_bytes(outline, prompts, longest),
        }
        _report(outline, longest, memory, spread=spread)


def _questions(cases: Iterable[EditCase]) -> list[tuple[str, str]]:
    """Every test's prompt with both objects, as they are compared."""
    tests = [test for case in cases for test in sake_tests(case)]
    return [(test.prompt, answer) for test in tests for answer in (test.new, test.true)]


def _longest(outline: Backbone, pairs: Sequence[tuple[str, str]]) -> int:
    """The most tokens of a prompt, all of them having kept their ids before their answers."""
    prompts, answers = zip(*pairs, strict=True)
    ids, starts = answer_ids(outline, prompts, answers)
    check_room(outline, prompts, [start + len(own) for start, own in zip(starts, ids, strict=True)], "its answer")
    return max(starts)


def _edits(data: EditDataModule) -> str:
    left_out = f", {len(data.refusals)} records or phrasings left out" if data.refusals else ""
    return f"{counted(len(data.cases), 'edit')}{left_out}"


def _report(outline: Backbone, longest: int, memory: Mapping[str, int], *, spread: bool) -> None:
    kind, dtype = type(outline.tokenizer).__name__, str(outline.dtype).removeprefix("torch.")
    room, bos = position_limit(outline), "puts a token" if outline.prepends_bos else "puts none"
    print(f"tokenizer: {kind}, {bos} before a text; the longest prompt has {longest} of {room or 'any'} tokens")
    print(f"memory of {outline.name} in {dtype}:")
    together, there = sum(memory.values()), device_bytes()
    for name, size in (*memory.items(), ("together", together), ("on this machine's device", there)):
        print(f"  {name:<45} {size / GIB:8.2f} GiB")
    if not spread and together > there:
        raise MegaValueError(
            f"the run must fit into {there / GIB:.1f} GiB, but it takes {together / GIB:.1f}; "
            "choose float16, fewer prompts a batch, or a `device_map`."
        )
