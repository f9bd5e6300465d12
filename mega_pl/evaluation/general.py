"""General behaviour: questions and plain text that are about no edit must be answered as before.

Each edit is asked some of one fixed list of prompts, drawn by its id: edits one at a time get different ones, and many
edits together get all of them, each asked once. For a frozen model with routed edits "fired" is the rate of misfires,
and where nothing fires nothing changes.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from typing import Literal, get_args

import torch
from torch import Tensor

from mega_pl.asking import BARE, Edited
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.evaluation.protocol import Protocol
from mega_pl.evaluation.relation_specificity import next_logits
from mega_pl.evaluation.trials import Trial
from mega_pl.metrics.scores import Score, rate_score

GeneralKind = Literal["question", "text"]
"""What is put: a question, or the beginning of a sentence."""

COUNT = 10
"""How many prompts an edit is asked."""


@dataclass(frozen=True, kw_only=True)
class GeneralTest:
    """A prompt that is about no edit.

    Args:
        edit_id: The edit that drew it.
        kind: What it is.
        prompt: What is asked.
    """

    edit_id: str
    kind: GeneralKind
    prompt: str


@dataclass(frozen=True, kw_only=True)
class GeneralAnswer:
    """What a model says right after a prompt.

    Args:
        token: Id of the argmax token; two that are parts of a character may be decoded alike.
        prediction: The token decoded.
        divergence: Kullback-Leibler divergence of the bare model's distribution from this one, in nats.
        fired: The edit that the prompt got; "" if none did or edits are not routed.
        routed: Whether edits are routed, so that `fired` tells something.
    """

    token: int
    prediction: str
    divergence: float
    fired: str = ""
    routed: bool = False


GeneralTrial = Trial[GeneralTest, GeneralAnswer]


@cache
def general_prompts() -> tuple[str, ...]:
    """The list of prompts; a question is put as "Q: ... A:", so that what follows it is an answer."""
    text = files("mega_pl.data").joinpath("templates", "general.txt").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return tuple(f"Q: {line}\nA:" if line.endswith("?") else line for line in lines)


def general_tests(case: EditCase, *, count: int = COUNT, seed: int = 0) -> tuple[GeneralTest, ...]:
    """The tests of a case.

    Args:
        case: The case.
        count: How many prompts it is asked.
        seed: Of their choice, together with the edit's id.
    """
    edit_id = case.request.edit_id
    drawn = random.Random(f"{seed} {edit_id}").sample(general_prompts(), count)
    return tuple(
        GeneralTest(edit_id=edit_id, kind="question" if prompt.startswith("Q: ") else "text", prompt=prompt)
        for prompt in drawn
    )


def bare_distributions(backbone: Backbone) -> dict[str, Tensor]:
    """By prompt of the list the log-probabilities (V,) of the bare model's next token, in float32 on the CPU."""
    prompts = general_prompts()
    return {prompts[i]: log_probs(logits) for i, logits, _ in next_logits(backbone, BARE, prompts)}


def log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities in float32 on the CPU."""
    return logits.float().log_softmax(-1).cpu()


def ask_general(
    bare: Mapping[str, Tensor], backbone: Backbone, edited: Edited, tests: Sequence[GeneralTest]
) -> list[GeneralAnswer]:
    """Ask tests of a model, a prompt that comes twice once.

    Args:
        bare: What `bare_distributions` gave.
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.

    Raises:
        ValueError: If a prompt is too long.
    """
    prompts = list(dict.fromkeys(test.prompt for test in tests))
    answers: dict[str, GeneralAnswer] = {}
    for i, logits, fired in next_logits(backbone, edited, prompts):
        token = int(logits.argmax())
        answers[prompts[i]] = GeneralAnswer(
            token=token,
            prediction=str(backbone.tokenizer.decode([token])),
            divergence=divergence(bare[prompts[i]], log_probs(logits)),
            fired=fired,
            routed=edited.fired is not None,
        )
    return [answers[test.prompt] for test in tests]


def divergence(log_p: Tensor, log_q: Tensor) -> float:
    """KL(p ‖ q) = Σ p (log p − log q) in nats, of log-probabilities (V,); what p never says counts nothing."""
    log_p, log_q = log_p.double(), log_q.double()
    return float((log_p.exp() * (log_p - log_q))[log_p > -torch.inf].sum().clamp(min=0))


def score_general(trials: Sequence[GeneralTrial], *, seed: int = 0) -> dict[str, Score]:
    """Score trials; every test counts once, and n counts tests.

    "unchanged" is the share of prompts whose next token is the bare model's, also by kind; "divergence" the mean
    Kullback-Leibler divergence from the bare model's next-token distribution in nats; "fired" the share of prompts on
    which any edit fired, where edits are routed. The last two are better low. Intervals come from drawing prompts, as
    edits together share the answer to one.

    Args:
        trials: One a test, in any order.
        seed: Of the bootstrap.
    """
    scores = {"unchanged": _mean(trials, _is_unchanged, 1.0, seed)}
    for kind in get_args(GeneralKind):
        of_kind = [trial for trial in trials if trial.test.kind == kind]
        scores[f"unchanged_{kind}"] = _mean(of_kind, _is_unchanged, 1.0, seed)
    scores["divergence"] = _mean(trials, lambda trial: trial.edited.divergence, 0.0, seed)
    routed = [trial for trial in trials if trial.edited.routed]
    return scores | {"fired": _mean(routed, lambda trial: bool(trial.edited.fired), 0.0, seed)}


def _is_unchanged(trial: GeneralTrial) -> bool:
    return trial.edited.token == trial.bare.token


def _mean(trials: Sequence[GeneralTrial], measure: Callable[[GeneralTrial], float], bare: float, seed: int) -> Score:
    """The mean of a measure with the value that the bare model has by definition."""
    values = torch.tensor([float(measure(trial)) for trial in trials])
    return rate_score(values, torch.full_like(values, bare), [trial.test.prompt for trial in trials], seed=seed)


def general(bare: Mapping[str, Tensor]) -> Protocol[GeneralTest, GeneralAnswer, GeneralTrial]:
    """The protocol, for one backbone.

    Args:
        bare: What `bare_distributions` gave for it, since a model with edits cannot be compared with what it was.
    """
    return Protocol(
        name="general",
        tests=general_tests,
        ask_bare=lambda backbone, tests: ask_general(bare, backbone, BARE, tests),
        ask=partial(ask_general, bare),
        answer=GeneralAnswer,
        row=Trial,
        score=score_general,
        headline=("unchanged", "divergence", "fired"),
        lower_is_better=("divergence", "fired"),
    )
