"""The protocol of ROME and MEMIT (arXiv:2202.05262, arXiv:2210.07229): likelihoods of both objects, and texts.

Both compare the new object o* with the true one o by their mean negative log-likelihood over target tokens, so that
P(o) below is exp(−nll(o)), the geometric mean of the tokens' probabilities:

- efficacy, paraphrase and attribute score: share of prompts with P(o*) > P(o), and magnitude: mean of P(o*) − P(o),
  after the edit prompt, paraphrases, and prompts about other subjects whose object is o* anyway;
- neighborhood score and magnitude: the same with the objects exchanged, after prompts about subjects whose object is o;
- score: the harmonic mean S of the scores of efficacy, paraphrase and neighborhood;
- exact: MEMIT's accuracy, every token of the right object is the most probable one after the prompt and those before;
- fluency: generation entropy GE of texts about the subject with their prompts, in bits (`generation_entropy`).

All are macro means over edits, as fractions; the papers' tables show a hundred times as much. ROME's consistency (RS)
is not measured: it compares texts with snippets by Wikidata identifiers, which edits do not carry.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Literal

from mega_pl.asking import Edited, Sampling, continuations, teacher_forced, token_counts
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.functional.text import generation_entropy
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.measures import Combined, Mean, Measure
from mega_pl.protocols.rows import EvalRow, Outcomes, outcomes

RomeKind = Literal["rewrite", "paraphrase", "neighborhood", "attribute", "generation"]
"""The prompts of a CounterFact record."""

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


RomeRow = EvalRow[RomeTest, RomeAnswer]


def success(test: RomeTest, answer: RomeAnswer) -> bool:
    """Whether P(o*) > P(o), or P(o) > P(o*) after a neighbour."""
    new, true = -fmean(answer.new), -fmean(answer.true)
    return true < new if test.kind == "neighborhood" else new < true


def magnitude(test: RomeTest, answer: RomeAnswer) -> float:
    """P(o*) − P(o), or P(o) − P(o*) after a neighbour."""
    lead = math.exp(fmean(answer.new)) - math.exp(fmean(answer.true))
    return -lead if test.kind == "neighborhood" else lead


def exactness(test: RomeTest, answer: RomeAnswer) -> bool:
    """Whether every token of the right object is the most probable one."""
    return answer.exact


def fluency(test: RomeTest, answer: RomeAnswer) -> float:
    """Entropy of a text with its prompt, in bits."""
    return generation_entropy(test.prompt + answer.text)


def _outcomes(kind: RomeKind, judge: Callable[[RomeTest, RomeAnswer], float], rows: Sequence[RomeRow]) -> Outcomes:
    return outcomes([row for row in rows if row.test.kind == kind], judge)


def _mean(kind: RomeKind, judge: Callable[[RomeTest, RomeAnswer], float]) -> Mean:
    return Mean(partial(_outcomes, kind, judge), over="edits")


def _measures() -> dict[str, Measure]:
    kinds: dict[str, RomeKind] = {
        "efficacy": "rewrite",
        "paraphrase": "paraphrase",
        "neighborhood": "neighborhood",
        "attribute": "attribute",
    }
    found: dict[str, Measure] = {}
    for name, kind in kinds.items():
        found[f"{name}_score"] = _mean(kind, success)
        found[f"{name}_magnitude"] = _mean(kind, magnitude)
    exact: tuple[RomeKind, ...] = ("rewrite", "paraphrase", "neighborhood")
    found["score"] = Combined((_mean(kind, success) for kind in exact), "harmonic")
    found |= {f"{kind}_exact": _mean(kind, exactness) for kind in exact}
    return found | {"fluency": _mean("generation", fluency)}


PROTOCOL: Protocol[RomeTest, RomeAnswer, RomeRow] = Protocol(
    name="rome",
    tests=rome_tests,
    ask=ask_rome,
    answer=RomeAnswer,
    measures=_measures,
    headline=("score", "neighborhood_score", "fluency"),
)
