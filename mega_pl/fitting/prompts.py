"""Prompt distributions: what an edit's maps and its scope are fitted on."""

import random
import re
from dataclasses import dataclass

from mega_pl.asking import chat_prompt
from mega_pl.backbone import Backbone
from mega_pl.edits.checks import check_type
from mega_pl.edits.request import EditRequest
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import joint

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
        chat: Whether every phrasing is also what a user says in the model's chat template, where it has one: answers
            there begin as sentences do, and not with the object, unless an edit has learned it.
        seed: Seed of the choice of prefixes.
    """

    prefixes: int = 3
    forced_source: bool = True
    bare_implications: bool = True
    chat: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_type("`prefixes`", self.prefixes, int)
        if not 0 <= self.prefixes <= len(PREFIXES):
            raise MegaValueError(f"`prefixes` must lie in [0, {len(PREFIXES)}], but got {self.prefixes}.")


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """The prompts of one edit's maps.

    Args:
        source: End in the old answer: every phrasing, forced phrasing and implication.
        target: Force the new answer.
        answers: The answer that each target prompt forces; empty where only the model knows what follows.
        facts: How many of the source prompts, from the first one, end where an object of the fact should follow.
        edit_id: Name of the edit, for messages.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    answers: tuple[str, ...]
    facts: int
    edit_id: str = ""


QUESTION = re.compile(r"(?:Q|Question):\s*(.*\S)\s+(?:A|Answer):")
"""A question in a frame that an answer follows; a user says it without."""


def expand(request: EditRequest, config: PromptConfig, backbone: Backbone | None = None) -> PromptSet:
    """Make an edit's prompt distributions (SAKE, and its implications for questions that build on the fact).

    Args:
        request: The edit.
        config: How prompts are multiplied.
        backbone: The model in whose chat template phrasings are put too; None for none.
    """
    plain = phrasings(request, config)
    filled, true, new = request.filled, request.target_true, request.target_new
    implications = [template.replace("{}", request.subject) for group in request.implications for template in group]
    target = [_context(SUPPRESS, p=p, true=true, new=new) for p in plain]
    target += [_context(PRETEND, p=filled, new=new, c=c) for c in implications]
    source = list(plain)
    if config.forced_source:
        source += [_context(REPEAT, p=p, o=true) for p in plain]
    if config.chat and backbone is not None and backbone.tokenizer.chat_template:
        source += [chat_prompt(backbone, [QUESTION.sub(r"\1", text)]) for text in _wordings(request)]
    facts = len(source)
    source += [_context(CONSIDER, p=filled, true=true, c=c) for c in implications]
    if config.bare_implications:
        source += implications
    answers = [new] * len(plain) + [""] * len(implications)
    return PromptSet(
        source=tuple(source), target=tuple(target), answers=tuple(answers), facts=facts, edit_id=request.edit_id
    )


def _context(template: str, *, p: str, **texts: str) -> str:
    """A context filled in, with what joins the prompt and its object instead of a space."""
    return template.replace("{p} {", "{p}" + joint(p) + "{").format(p=p, **texts)


def phrasings(request: EditRequest, config: PromptConfig) -> tuple[str, ...]:
    """The edit's own questions: every phrasing, alone and after some neutral sentences."""
    draw = random.Random(f"{config.seed} {request.edit_id}")
    prompts = []
    for prompt in _wordings(request):
        prompts += [prompt, *(f"{prefix} {prompt}" for prefix in draw.sample(PREFIXES, config.prefixes))]
    return tuple(prompts)


def _wordings(request: EditRequest) -> list[str]:
    """The edit's prompt and phrasings, filled."""
    return [template.replace("{}", request.subject) for template in dict.fromkeys((request.prompt, *request.phrasings))]
