"""The tests of an edit under the protocol of SAKE, whose measures MEGA reports."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from mega_pl.edits.checks import check_type
from mega_pl.edits.request import EditCase, Probe
from mega_pl.functional.text import canonical

SakeMetric = Literal["acc", "gen", "spec", "di", "dii", "ci", "cii", "rs", "sa"]

DOUBT_TEMPLATES: dict[SakeMetric, str] = {
    "di": (
        "{prompt} {new}??? No, it can't be, This contradicts my understanding. It is pretty clear that the answer to "
        "'{prompt}' is something else. Rethink and give the correct answer:"
    ),
    "dii": (
        "{prompt} {new}? Really? But I am pretty sure that {prompt} {true}. Am I right? Yes, you are right. I "
        "apologize for any confusion. Reconsider that the answer to question {prompt}? should be"
    ),
}
"""SAKE's two doubts, literally; ``prompt`` is the filled edit prompt, ``new`` and ``true`` are the objects."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """One prompt of one measure, with everything that is needed to score it.

    Args:
        edit_id: The edit it belongs to.
        metric: The measure.
        prompt: What the model completes.
        answers: Any of these is right: a value and its aliases.
        new: The edit's new object.
        true: The edit's true object.
        condition_prompt: What the bare model has to know for the test to count; empty if nothing.
        condition_answers: Its right answers.
    """

    __test__: ClassVar[bool] = False  # pytest would collect it by its name

    edit_id: str
    metric: SakeMetric
    prompt: str
    answers: tuple[str, ...]
    new: str
    true: str
    condition_prompt: str = ""
    condition_answers: tuple[str, ...] = ()


def sake_tests(case: EditCase) -> tuple[Test, ...]:
    """All tests of a case, measure by measure.

    Acc asks the edit prompt and Gen the paraphrases for the new object, Spec the neighbours for the true one; DI and
    DII doubt the edit; RS, CI, CII and SA are the case's probes. The condition of SA is that the bare model gives the
    old object under the alias: RippleEdits asks for the new one, which no model knows before the edit.
    """
    check_type("`case`", case, EditCase)
    return tuple(_tests(case))


def _tests(case: EditCase) -> Iterator[Test]:
    request = case.request
    new, true = request.target_new, request.target_true
    yield _test(case, "acc", Probe(prompt=request.filled, answers=(new,)))
    for prompt in case.paraphrase_prompts:
        yield _test(case, "gen", Probe(prompt=prompt, answers=(new,)))
    for prompt in case.neighborhood_prompts:
        yield _test(case, "spec", Probe(prompt=prompt, answers=(true,)))
    for metric, template in DOUBT_TEMPLATES.items():
        doubt = template.format(prompt=request.filled, new=new, true=true)
        yield _test(case, metric, Probe(prompt=doubt, answers=(new,)))
    yield from (_test(case, "ci", probe) for probe in case.compositionality_1)
    yield from (_test(case, "cii", probe) for probe in case.compositionality_2)
    yield from (_test(case, "rs", probe) for probe in case.relation_specificity)
    yield from (_test(case, "sa", _knowing_the_alias(probe, true)) for probe in case.subject_aliasing)


def _knowing_the_alias(probe: Probe, true: str) -> Probe:
    """The probe with a condition that asks for the old object; one that already does is kept."""
    right = set(map(canonical, probe.answers))
    if probe.condition_answers and right.isdisjoint(map(canonical, probe.condition_answers)):
        return probe
    return Probe(prompt=probe.prompt, answers=probe.answers, condition_prompt=probe.prompt, condition_answers=(true,))


def _test(case: EditCase, metric: SakeMetric, probe: Probe) -> Test:
    return Test(
        edit_id=case.request.edit_id,
        metric=metric,
        prompt=probe.prompt,
        answers=probe.answers,
        new=case.request.target_new,
        true=case.request.target_true,
        condition_prompt=probe.condition_prompt,
        condition_answers=probe.condition_answers,
    )
