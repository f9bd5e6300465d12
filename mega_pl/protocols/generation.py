"""Free-running answers: what a model writes after the edit prompt and its paraphrases when no token is given to it.

A continuation is judged as text. An object is named by its name or by an alias, as a whole and in its case
(`find_name`), and within the first sentence if its name begins before that ends (`sentence_end`). For each kind of
prompt: shares that begin with the new object (start), or name it in their first sentence, by its name (exact) or by any
name (alias); and of those that the edited model lets name it there by any name, the share that revert to the old object
later (relapse, which is better low). Every test counts once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from mega_pl.asking import NEW_TOKENS, Continuation, Edited, continuations
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.functional.text import find_name, sentence_end, starts_with_name, without_names
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.cases import new_names
from mega_pl.protocols.measures import Mean, Measure
from mega_pl.protocols.rows import EvalRow, Outcomes, outcomes

GenerationKind = Literal["rewrite", "paraphrase"]
"""The prompts that are continued: the edit prompt and its paraphrases."""


@dataclass(frozen=True, kw_only=True)
class GenerationTest:
    """One prompt to be continued.

    Args:
        edit_id: The edit that it belongs to.
        kind: The edit prompt or a paraphrase.
        prompt: What is continued.
        new: The new object, then its other names.
        old: The object before the edit.
    """

    edit_id: str
    kind: GenerationKind
    prompt: str
    new: tuple[str, ...]
    old: str


def generation_tests(case: EditCase) -> tuple[GenerationTest, ...]:
    """The tests of a case: the edit prompt, then its paraphrases."""
    request, names = case.request, new_names(case)
    prompts: list[tuple[GenerationKind, str]] = [("rewrite", request.filled)]
    prompts += [("paraphrase", prompt) for prompt in case.paraphrase_prompts]
    return tuple(
        GenerationTest(edit_id=request.edit_id, kind=kind, prompt=prompt, new=names, old=request.target_true)
        for kind, prompt in prompts
    )


def ask_generation(
    backbone: Backbone, edited: Edited, tests: Sequence[GenerationTest], *, new_tokens: int = NEW_TOKENS
) -> list[Continuation]:
    """Write on greedily after the prompts of tests; a continuation for each test.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.
        new_tokens: The most tokens to write.

    Raises:
        ValueError: If a text is too long for the model.
    """
    return continuations(backbone, [test.prompt for test in tests], new_tokens, edited=edited)


GenerationRow = EvalRow[GenerationTest, Continuation]


def named_early(text: str, names: Sequence[str]) -> int | None:
    """Where the first mention of some names ends that begins in the first sentence; None if there is none."""
    found = find_name(text, names)
    return found[1] if found is not None and found[0] < sentence_end(text) else None


def reverts(text: str, new: Sequence[str], old: Sequence[str]) -> bool:
    """Whether a text that names the new object in its first sentence names the old one after it.

    An old name that is part of a new one, as "York" of "New York", does not count where the whole stands.

    >>> reverts(" Rome. It was Paris before.", ["Rome"], ["Paris"])
    True

    Args:
        text: A continuation.
        new: The names of the new object.
        old: The names of the old one.
    """
    end = named_early(text, new)
    return end is not None and find_name(without_names(text[end:], new), old) is not None


def _starts(count: int | None, test: GenerationTest, answer: Continuation) -> bool:
    """Whether a continuation begins with one of the first `count` names of the new object, or of all."""
    return starts_with_name(answer.text, test.new[:count])


def _names_early(count: int | None, test: GenerationTest, answer: Continuation) -> bool:
    return named_early(answer.text, test.new[:count]) is not None


def _reverts(test: GenerationTest, answer: Continuation) -> bool:
    return reverts(answer.text, test.new, (test.old,))


def _of_kind(
    kind: GenerationKind, judge: Callable[[GenerationTest, Continuation], bool], rows: Sequence[GenerationRow]
) -> Outcomes:
    return outcomes((row for row in rows if row.test.kind == kind), judge)


def _relapse(kind: GenerationKind, rows: Sequence[GenerationRow]) -> Outcomes:
    return _of_kind(kind, _reverts, [row for row in rows if _names_early(None, row.test, row.edited)])


def _measures() -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    for kind in get_args(GenerationKind):
        for place, judge in {"start": _starts, "sentence": _names_early}.items():
            for reach, count in {"exact": 1, "alias": None}.items():
                found[f"{kind}_{reach}_{place}"] = Mean(partial(_of_kind, kind, partial(judge, count)))
        found[f"{kind}_relapse"] = Mean(partial(_relapse, kind), higher_is_better=False)
    return found


PROTOCOL: Protocol[GenerationTest, Continuation, GenerationRow] = Protocol(
    name="generation",
    tests=generation_tests,
    ask=ask_generation,
    answer=Continuation,
    measures=_measures,
    headline=("rewrite_alias_sentence", "paraphrase_alias_sentence", "rewrite_relapse"),
)
