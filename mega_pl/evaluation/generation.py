"""Free-running answers: what a model writes after the edit prompt and its paraphrases when no token is given to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

from torch import Tensor

from mega_pl.asking import NEW_TOKENS, Continuation, Edited, continuations
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.evaluation.trials import Trial, measured
from mega_pl.metrics.generation import GenerationKind, at_start, comes_back, in_first_sentence
from mega_pl.metrics.scores import Score, rate_score


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


def new_names(case: EditCase) -> tuple[str, ...]:
    """The new object of a case, then its other names.

    Those are what the tests that ask the edited fact under another name of the subject accept besides it. A name of one
    character is left out unless it is a digit.
    """
    new = case.request.target_new
    groups = [probe.answers for probe in case.subject_aliasing]
    queries = (query for test in case.ripple if test.axis == "Subject_Aliasing" for query in test.queries)
    groups += [names for query in queries for names in query.answers]
    others = (name for group in groups if new in group for name in group)
    return tuple(dict.fromkeys([new, *(name for name in others if len(name) > 1 or name.isdigit())]))


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


def score_generation(trials: Sequence[Trial[GenerationTest, Continuation]], *, seed: int = 0) -> dict[str, Score]:
    """Score continuations.

    For each kind of prompt: shares that begin with the new object, or name it in their first sentence, by its name
    (exact) or by any name (alias); and of those that the edited model lets name it there by any name, the share that
    name the old object later (relapse, which is better low). Every test counts once; n counts tests.

    Args:
        trials: One a test, in any order.
        seed: Of the bootstrap.

    Returns:
        The scores under the keys of `GENERATION_METRICS`.
    """
    scores: dict[str, Score] = {}
    for kind in get_args(GenerationKind):
        of_kind = [trial for trial in trials if trial.test.kind == kind]
        for place, judge in {"start": at_start, "sentence": in_first_sentence}.items():
            for reach, count in {"exact": 1, "alias": None}.items():
                scores[f"{kind}_{reach}_{place}"] = rate_score(
                    *measured(of_kind, partial(_named, judge, count)), seed=seed
                )
        named = _named(in_first_sentence, None, [t.test for t in of_kind], [t.edited for t in of_kind]).tolist()
        kept = [trial for trial, keep in zip(of_kind, named, strict=True) if keep]
        scores[f"{kind}_relapse"] = rate_score(*measured(kept, _relapsed), seed=seed)
    return scores


def _named(
    judge: Callable[[Sequence[str], Sequence[Sequence[str]]], Tensor],
    count: int | None,
    tests: list[GenerationTest],
    answers: list[Continuation],
) -> Tensor:
    """Whether continuations name the new object by one of its first `count` names, or of all, where `judge` looks."""
    return judge([answer.text for answer in answers], [test.new[:count] for test in tests])


def _relapsed(tests: list[GenerationTest], answers: list[Continuation]) -> Tensor:
    texts = [answer.text for answer in answers]
    return comes_back(texts, [test.new for test in tests], [(test.old,) for test in tests])[0]
