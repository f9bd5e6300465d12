"""Prompt distributions: what an edit's maps and its scope are fitted on."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mega_pl.edits.request import EditRequest

PREFIXES = (
    "It was a quiet morning in the village.",
    "The train was late again.",
    "A long article appeared in the newspaper.",
    "The students opened their books.",
    "Rain fell on the roof all night.",
    "The museum opened its doors at noon.",
    "Many letters arrived that week.",
    "The meeting lasted for two hours.",
    "A small dog slept by the fire.",
    "The lecture was recorded and shared.",
    "They talked about it over dinner.",
    "The market was full of fresh fruit.",
    "Someone left a note on the table.",
    "The library keeps old maps and diaries.",
    "He looked out of the window for a while.",
    "The bridge was repaired in the spring.",
    "She wrote a short report about the trip.",
    "The radio played softly in the kitchen.",
)
"""Neutral sentences to put before a prompt."""

REPEAT = "Repeat this sentence: '{p} {o}'. {p}"
SUPPRESS = "Do not mention '{true}'. Repeat this sentence: '{p} {new}'. {p}"
CONSIDER = "Considering this context is now true: '{p} {true}.'. Complete this sentence:{c}"
PRETEND = (
    "Pretend that this context is true and forget your previous knowledge: '{p} {new}.'. "
    "Now, based on the previous context only, complete this sentence:{c}"
)
"""SAKE's contexts (its reference code): p a prompt, true and new its objects, c an implication of the fact."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How prompts are multiplied.

    Args:
        prefixes: Neutral sentences to try before each phrasing, besides the bare phrasing.
        forced_source: Whether the source holds the prompts that force the old object (SAKE does).
        bare_implications: Whether implications are also taken as they are, without the context of the old fact.
        seed: Seed of the choice of prefixes.
    """

    prefixes: int = 3
    forced_source: bool = True
    bare_implications: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.prefixes <= len(PREFIXES):
            raise ValueError(f"`prefixes` must lie in [0, {len(PREFIXES)}], but got {self.prefixes}.")


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The prompts of one edit.

    Args:
        source: End in the old object; every phrasing, forced phrasing and implication.
        target: Force the new object.
        own: Phrasings of the fact and its implications without any context: what the edit's scope must cover.
        foreign: Questions about the same subject that the scope must leave out.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    own: tuple[str, ...]
    foreign: tuple[str, ...]


def expand(request: EditRequest, config: PromptConfig) -> PromptSet:
    """Make an edit's prompt distributions (SAKE, and its implications for questions that build on the fact)."""
    draw = random.Random(f"{config.seed} {request.edit_id}")
    phrasings = [t.replace("{}", request.subject) for t in dict.fromkeys((request.prompt, *request.phrasings))]
    plain = [p for phrasing in phrasings for p in _with_prefixes(phrasing, config.prefixes, draw)]
    true, new = request.target_true, request.target_new
    source, target = list(plain), [SUPPRESS.format(p=p, true=true, new=new) for p in plain]
    if config.forced_source:
        source += [REPEAT.format(p=p, o=true) for p in plain]
    filled = request.filled
    source += [CONSIDER.format(p=filled, true=true, c=c) for c in request.implications]
    target += [PRETEND.format(p=filled, new=new, c=c) for c in request.implications]
    if config.bare_implications:
        source += request.implications
    return PromptSet(
        source=tuple(source),
        target=tuple(target),
        own=(*plain, *request.implications),
        foreign=tuple(c.replace("{}", request.subject) for c in request.contrasts),
    )


def _with_prefixes(prompt: str, count: int, draw: random.Random) -> Iterator[str]:
    yield prompt
    for prefix in draw.sample(PREFIXES, count):
        yield f"{prefix} {prompt}"


def distinct(prompts: Sequence[str]) -> tuple[str, ...]:
    """Drop repeated prompts and keep their order."""
    return tuple(dict.fromkeys(prompts))
