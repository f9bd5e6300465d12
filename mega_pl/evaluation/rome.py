"""The protocol of ROME and MEMIT: teacher-forced likelihoods of both objects, and texts about the subject."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import get_args

import torch
from torch import Tensor

from mega_pl.asking import Edited, Sampling, continuations, teacher_forced, token_counts
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.evaluation.trials import Trial, measured
from mega_pl.functional.text import Tfidf
from mega_pl.metrics.fluency import Fluency, ReferenceScore
from mega_pl.metrics.rome import EXACT, LIKELIHOODS, SCORE_PARTS, RomeKind, RomeLikelihood
from mega_pl.metrics.scores import NOT_AVAILABLE, Score, harmonic_score, macro_score

TOTAL_TOKENS = 100
"""How long ROME's texts are, their prompts included."""


@dataclass(frozen=True, kw_only=True)
class RomeTest:
    """One prompt of a CounterFact record.

    Args:
        edit_id: The edit that it belongs to.
        kind: Which list of the record it stands in.
        prompt: What is asked.
        new: The edit's new object.
        true: Its true object.
        index: Place in its list; a prompt that is to be continued may come twice, and is then continued in two ways.
    """

    edit_id: str
    kind: RomeKind
    prompt: str
    new: str
    true: str
    index: int


@dataclass(frozen=True, kw_only=True)
class RomeAnswer:
    """What a model makes of a test.

    Args:
        new: Log-probabilities of the new object's tokens, in nats; empty where a text is written.
        true: The same for the true object.
        exact: Whether every token of the object that is right after the prompt is the most probable one.
        text: What the model writes after the prompt; empty where likelihoods are asked.
        fired: The edit that the prompt got; "" if none did or edits are not routed.
    """

    new: tuple[float, ...] = ()
    true: tuple[float, ...] = ()
    exact: bool = False
    text: str = ""
    fired: str = ""


def rome_tests(case: EditCase) -> tuple[RomeTest, ...]:
    """The tests of a case, list by list."""
    return tuple(_tests(case))


def _tests(case: EditCase) -> Iterator[RomeTest]:
    request = case.request
    lists: dict[RomeKind, tuple[str, ...]] = {
        "rewrite": (request.filled,),
        "paraphrase": case.paraphrase_prompts,
        "neighborhood": case.neighborhood_prompts,
        "attribute": case.attribute_prompts,
        "generation": case.generation_prompts,
    }
    for kind, prompts in lists.items():
        for index, prompt in enumerate(prompts):
            yield RomeTest(
                edit_id=request.edit_id,
                kind=kind,
                prompt=prompt,
                new=request.target_new,
                true=request.target_true,
                index=index,
            )


def ask_rome(
    backbone: Backbone,
    edited: Edited,
    tests: Sequence[RomeTest],
    *,
    total_tokens: int = TOTAL_TOKENS,
    seed: int = 0,
) -> list[RomeAnswer]:
    """Ask tests of a model.

    A text is drawn from the five most probable tokens at each step. Its draws are those of the seed, the edit and the
    test's place, so that the bare and the edited model get the same ones.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.
        total_tokens: The most tokens of a text with its prompt; demonstrations before the prompt do not count.
        seed: Of the draws.

    Returns:
        An answer for each test.

    Raises:
        ValueError: If an object merges with its prompt, or a text is too long for the model.
    """
    forced = [i for i, test in enumerate(tests) if test.kind != "generation"]
    written = [i for i, test in enumerate(tests) if test.kind == "generation"]
    answers = dict(zip(forced, _likelihoods(backbone, edited, [tests[i] for i in forced]), strict=True))
    prompts = [tests[i].prompt for i in written]
    budgets = [max(1, total_tokens - count) for count in token_counts(backbone, prompts)]
    sampling = Sampling(tuple(f"{seed} {tests[i].edit_id} {tests[i].index}" for i in written))
    texts = continuations(backbone, prompts, budgets, edited=edited, sampling=sampling)
    answers.update(zip(written, (RomeAnswer(text=text.text, fired=text.fired) for text in texts), strict=True))
    return [answers[i] for i in range(len(tests))]


def _likelihoods(backbone: Backbone, edited: Edited, tests: Sequence[RomeTest]) -> list[RomeAnswer]:
    pairs = [(test.prompt, target) for test in tests for target in (test.new, test.true)]
    forced = teacher_forced(backbone, [p for p, _ in pairs], [answer for _, answer in pairs], edited=edited)
    return [
        RomeAnswer(
            new=new.log_probs,
            true=true.log_probs,
            exact=all((true if test.kind == "neighborhood" else new).matches),
            fired=new.fired,
        )
        for test, new, true in zip(tests, forced[::2], forced[1::2], strict=True)
    ]


def score_rome(
    trials: Sequence[Trial[RomeTest, RomeAnswer]],
    *,
    references: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> dict[str, Score]:
    """Score trials under ROME's and MEMIT's protocol.

    Every column is a macro mean over edits as a fraction, but the fluency, which is in bits; n counts edits.

    Args:
        trials: One a test, in any order; all of an edit.
        references: By edit id the texts that ROME compares with, about subjects whose object is the new one
            (CounterFact's attribute snippets). The document frequencies are those of all texts given, whether their
            edits were asked or not; ROME's are those of its whole file. Without any the score is not available.
        seed: Of the bootstrap.

    Returns:
        The scores under the keys of `rome_metrics`.
    """
    of = {kind: [trial for trial in trials if trial.test.kind == kind] for kind in get_args(RomeKind)}
    scores = {
        name: macro_score(*measured(of[kind], partial(_likelihood, metric)), seed=seed)
        for name, (kind, metric) in LIKELIHOODS.items()
    }
    parts = [measured(of[kind], partial(_likelihood, metric)) for kind, metric in SCORE_PARTS.items()]
    scores["score"] = harmonic_score(parts, seed=seed)
    scores |= {name: macro_score(*measured(of[kind], _exact), seed=seed) for name, (kind, _) in EXACT.items()}
    scores["fluency"] = macro_score(*measured(of["generation"], _fluency), seed=seed)
    scores["reference_score"] = _reference_score(of["generation"], references or {}, seed)
    return scores


def _likelihood(metric: type[RomeLikelihood], tests: list[RomeTest], answers: list[RomeAnswer]) -> Tensor:
    new = torch.tensor([-fmean(answer.new) for answer in answers], dtype=torch.float64)
    true = torch.tensor([-fmean(answer.true) for answer in answers], dtype=torch.float64)
    return metric.outcomes(new, true)


def _exact(tests: list[RomeTest], answers: list[RomeAnswer]) -> Tensor:
    return torch.tensor([answer.exact for answer in answers], dtype=torch.bool)


def _fluency(tests: list[RomeTest], answers: list[RomeAnswer]) -> Tensor:
    """Of the texts with their prompts, as ROME has them."""
    return Fluency.outcomes([test.prompt + answer.text for test, answer in zip(tests, answers, strict=True)])


def _reference_score(
    trials: Sequence[Trial[RomeTest, RomeAnswer]], references: Mapping[str, Sequence[str]], seed: int
) -> Score:
    """The reference score of the edits that have texts and references."""
    texts: dict[str, tuple[list[str], list[str]]] = {}
    for trial in trials:
        edited, bare = texts.setdefault(trial.test.edit_id, ([], []))
        edited.append(trial.test.prompt + trial.edited.text)
        bare.append(trial.test.prompt + trial.bare.text)
    edits = [edit for edit in texts if references.get(edit)]
    if not edits:
        return NOT_AVAILABLE
    metric = ReferenceScore(Tfidf.fit(dict.fromkeys(text for group in references.values() for text in group)))
    wanted = [" ".join(references[edit]) for edit in edits]
    after, before = (metric.outcomes([" ".join(texts[edit][side]) for edit in edits], wanted) for side in (0, 1))
    return macro_score(after, before, edits, seed=seed)
