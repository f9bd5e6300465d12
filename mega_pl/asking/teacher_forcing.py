"""Teacher forcing: how probable a model finds an answer, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch

from mega_pl.asking.batches import TOKENS, check_room, encoded_ids, in_batches
from mega_pl.asking.edited import BARE, Edited
from mega_pl.backbone import Backbone, PaddingSide, prompt_lengths
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import joint


@dataclass(frozen=True)
class TeacherForced:
    """How a model takes an answer, each of its tokens after the prompt and the right tokens before it.

    Args:
        ids: The answer's token ids.
        log_probs: The log-probability of each, in nats.
        predicted: The most probable id at each place.
        fired: The edit that the prompt got; "" if none did or edits are not routed.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    predicted: tuple[int, ...]
    fired: str = ""

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of the tokens, in nats."""
        return -fmean(self.log_probs)

    @property
    def matches(self) -> tuple[bool, ...]:
        """Whether each token is the most probable one."""
        return tuple(a == b for a, b in zip(self.ids, self.predicted, strict=True))


def teacher_forced(
    backbone: Backbone,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    edited: Edited = BARE,
    padding_side: PaddingSide = "left",
    tokens_per_batch: int = TOKENS,
) -> list[TeacherForced]:
    """Force answers after prompts.

    Prompt and answer are read in one pass, which is told where the prompt ends: an edit that routes by the prompt, and
    acts on its last token and inside its object, does what it does when the model writes.

    Args:
        backbone: The model, within its edits.
        prompts: N texts.
        answers: N answers, each to follow its prompt after a space; their ids are those of `Backbone.answer_ids`.
        edited: The edits in force; they say how a prompt is asked.
        padding_side: Of the texts in a batch; the answers do not depend on it.
        tokens_per_batch: The most tokens of a batch, each pair with its prompt.

    Returns:
        What the model makes of each pair, in their order.

    Raises:
        ValueError: If the lengths differ, an answer is blank or merges with its prompt, or a text is too long.
    """
    if len(prompts) != len(answers):
        raise MegaValueError(
            f"`prompts` and `answers` must be equally long, but got {len(prompts)} and {len(answers)}."
        )
    texts = [edited.prompt(prompt) for prompt in prompts]
    ids, lengths = answer_ids(backbone, texts, answers)
    check_room(backbone, texts, [start + len(own) for start, own in zip(lengths, ids, strict=True)], "its answer")
    pairs = list(zip(encoded_ids(backbone, texts), ids, strict=True))
    whole = [len(start) + len(answer) for start, answer in pairs]
    return in_batches(pairs, whole, partial(_force_batch, backbone, edited, padding_side), tokens_per_batch)


@torch.no_grad()
def _force_batch(
    backbone: Backbone, edited: Edited, padding_side: PaddingSide, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[TeacherForced]:
    """Force the ids of answers after those of the prompts of one batch."""
    encoded = backbone.pad([[*start, *ids] for start, ids in pairs], padding_side)
    with prompt_lengths([len(start) for start, _ in pairs]):
        logits = backbone.model(**encoded.inputs, use_cache=False).logits
    fired = edited.fired or [None] * len(pairs)
    forced = []
    for row, last, (_, ids), edit in zip(logits, encoded.last.tolist(), pairs, fired, strict=True):
        of_answer = row[last - len(ids) : last].float()
        chosen = of_answer.gather(-1, torch.tensor(ids, device=row.device)[:, None])[:, 0] - of_answer.logsumexp(-1)
        predicted = of_answer.argmax(-1).tolist()
        forced.append(TeacherForced(tuple(ids), tuple(chosen.tolist()), tuple(predicted), edit or ""))
    return forced


def answer_ids(backbone: Backbone, prompts: Sequence[str], answers: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """The ids of answers after their prompts, by the rule of `Backbone.answer_ids`, tokenised together.

    Returns:
        The ids of each answer, and the number of tokens of each prompt.

    Raises:
        ValueError: If an answer is blank or merges with its prompt.
    """
    before = encoded_ids(backbone, prompts)
    pairs = zip(prompts, answers, strict=True)
    whole = encoded_ids(backbone, [f"{prompt}{joint(prompt)}{answer}" for prompt, answer in pairs])
    ids = [
        # where the rule does not hold, the backbone says why
        text[len(start) :] if answer.strip() and text[: len(start)] == start else backbone.answer_ids(prompt, answer)
        for prompt, answer, start, text in zip(prompts, answers, before, whole, strict=True)
    ]
    return ids, [len(start) for start in before]
