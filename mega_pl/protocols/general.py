"""General behaviour: questions and plain text that are about no edit must be answered as before.

Each edit is asked some of one fixed list of prompts, drawn by its id: edits one at a time get different ones, and many
edits together get all of them, each asked once. For a frozen model with routed edits "fired" is the rate of misfires,
and where nothing fires nothing changes.

Every test counts once. "unchanged" is the share of prompts whose next token is the bare model's, also by kind;
"divergence" the mean Kullback-Leibler divergence of the bare model's next-token distribution from the edited one's, in
nats; "fired" the share of prompts on which any edit fired, where edits are routed. The last two are better low.
Intervals come from drawing prompts instead of edits, as edits together share the answer to one.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.resources import files
from typing import Literal, get_args

import torch
from torch import Tensor

from mega_pl.asking import BARE, Edited, next_logits
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.errors import MegaValueError
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.measures import Mean, Measure
from mega_pl.protocols.rows import EvalRow, Outcomes

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


GeneralRow = EvalRow[GeneralTest, GeneralAnswer]


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
    backbone: Backbone, edited: Edited, tests: Sequence[GeneralTest], *, bare: Mapping[str, Tensor]
) -> list[GeneralAnswer]:
    """Ask tests of a model, a prompt that comes twice once.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.
        bare: What `bare_distributions` gave, since a model with edits cannot be compared with what it was.

    Raises:
        ValueError: If `bare` lacks a prompt, or one is too long.
    """
    prompts = list(dict.fromkeys(test.prompt for test in tests))
    for prompt in prompts:
        if prompt not in bare:
            raise MegaValueError(
                f"`bare` must hold what the bare model says after each prompt, but lacks {prompt[:40]!r}; "
                "prepare the protocol with the bare model first."
            )
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


def _unchanged(kinds: Sequence[GeneralKind], rows: Sequence[GeneralRow]) -> Outcomes:
    own = [row for row in rows if row.test.kind in kinds]
    return _by_prompt(own, [row.edited.token == row.bare.token for row in own], 1.0)


def _divergence(rows: Sequence[GeneralRow]) -> Outcomes:
    return _by_prompt(rows, [row.edited.divergence for row in rows], 0.0)


def _fired(rows: Sequence[GeneralRow]) -> Outcomes:
    routed = [row for row in rows if row.edited.routed]
    return _by_prompt(routed, [bool(row.edited.fired) for row in routed], 0.0)


def _by_prompt(rows: Sequence[GeneralRow], edited: Sequence[float], bare: float) -> Outcomes:
    """Outcomes that are drawn by their prompts, with the value that the bare model has by definition."""
    values = torch.tensor(edited, dtype=torch.float64)
    return Outcomes(values, torch.full_like(values, bare), [row.test.prompt for row in rows])


def _measures() -> dict[str, Measure]:
    kinds: tuple[GeneralKind, ...] = get_args(GeneralKind)
    return {
        "unchanged": Mean(partial(_unchanged, kinds)),
        **{f"unchanged_{kind}": Mean(partial(_unchanged, (kind,))) for kind in kinds},
        "divergence": Mean(_divergence, higher_is_better=False),
        "fired": Mean(_fired, higher_is_better=False),
    }


def _adapt(backbone: Backbone, cases: Sequence[EditCase]) -> "Protocol[GeneralTest, GeneralAnswer, GeneralRow]":
    """The protocol with what the bare model says after each prompt of the list."""
    return replace(PROTOCOL, ask=partial(ask_general, bare=bare_distributions(backbone)), adapted=True)


PROTOCOL: Protocol[GeneralTest, GeneralAnswer, GeneralRow] = Protocol(
    name="general",
    tests=general_tests,
    ask=partial(ask_general, bare={}),
    answer=GeneralAnswer,
    measures=_measures,
    headline=("unchanged", "divergence", "fired"),
    adapt=_adapt,
)
