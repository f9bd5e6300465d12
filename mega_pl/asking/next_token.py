"""What a model says right after a prompt, and how probable it finds the beginnings of some answers there."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from mega_pl.asking.batches import TOKENS, encoded_batches, in_batches, token_counts
from mega_pl.asking.edited import Edited
from mega_pl.asking.teacher_forcing import answer_ids
from mega_pl.backbone import Backbone
from mega_pl.errors import MegaValueError


@dataclass(frozen=True)
class NextToken:
    """What a model says right after a prompt.

    Args:
        prediction: Decoded argmax token.
        ids: The first id of each answer that was asked about.
        log_probs: The log-probability of each, in nats.
        fired: The edit that the prompt got; "" if none did or edits are not routed.
    """

    prediction: str
    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    fired: str = ""


def next_tokens(
    backbone: Backbone, edited: Edited, prompts: Sequence[str], answers: Sequence[Sequence[str]]
) -> list[NextToken]:
    """Ask what follows prompts.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        prompts: N texts.
        answers: For each the answers whose first tokens are of interest; each follows its prompt after a space.

    Returns:
        What the model says to each prompt, in their order.

    Raises:
        ValueError: If the lengths differ, an answer is blank or merges with its prompt, or a prompt is too long.
    """
    if len(prompts) != len(answers):
        raise MegaValueError(
            f"`prompts` and `answers` must be equally long, but got {len(prompts)} and {len(answers)}."
        )
    texts = [edited.prompt(prompt) for prompt in prompts]
    pairs = [(prompt, answer) for prompt, group in zip(texts, answers, strict=True) for answer in group]
    firsts = iter(answer_ids(backbone, [p for p, _ in pairs], [a for _, a in pairs])[0])
    wanted = [tuple(next(firsts)[0] for _ in group) for group in answers]
    questions = list(zip(texts, wanted, strict=True))
    return in_batches(questions, token_counts(backbone, texts), partial(_ask, backbone, edited))


def _ask(backbone: Backbone, edited: Edited, questions: Sequence[tuple[str, tuple[int, ...]]]) -> Iterator[NextToken]:
    """Ask prompts, each with the ids of interest, in one batch."""
    logits = backbone.last_logits(backbone.encode([prompt for prompt, _ in questions]))
    fired = edited.fired or [None] * len(questions)
    said = decoded(backbone, logits.argmax(-1).tolist())
    for (_, ids), row, token, edit in zip(questions, logits.log_softmax(-1), said, fired, strict=True):
        yield NextToken(token, ids, tuple(row[list(ids)].tolist()), edit or "")


def decoded(backbone: Backbone, tokens: Iterable[int]) -> list[str]:
    """Some tokens, each decoded by itself."""
    return [str(backbone.tokenizer.decode([token])) for token in tokens]


@torch.no_grad()
def next_logits(backbone: Backbone, edited: Edited, prompts: Sequence[str]) -> Iterator[tuple[int, Tensor, str]]:
    """The logits of what follows each prompt, batch by batch.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        prompts: N texts.

    Yields:
        The place of a prompt, its logits (V,), and the edit that it got; "" if none did or edits are not routed.

    Raises:
        ValueError: If a prompt is too long.
    """
    for rows, encoded in encoded_batches(backbone, [edited.prompt(prompt) for prompt in prompts]):
        logits = backbone.last_logits(encoded)
        fired = edited.fired or [None] * len(rows)
        yield from ((i, row, edit or "") for i, row, edit in zip(rows, logits, fired, strict=True))


def argmax_tokens(backbone: Backbone, prompts: Sequence[str], *, tokens_per_batch: int = TOKENS) -> list[int]:
    """The likeliest token after each prompt.

    Args:
        backbone: The model.
        prompts: N texts that end before the answer.
        tokens_per_batch: The most tokens of a batch.
    """
    tokens = torch.empty(len(prompts), dtype=torch.long)
    for rows, encoded in encoded_batches(backbone, prompts, tokens_per_batch):
        tokens[rows] = backbone.last_logits(encoded).argmax(-1).cpu()
    return tokens.tolist()


def next_log_probs(
    backbone: Backbone, prompts: Sequence[str], tokens: Tensor, *, tokens_per_batch: int = TOKENS
) -> Tensor:
    """Log-probability (N,) of a token of each prompt's own right after it, float32 on the CPU.

    Args:
        backbone: The model.
        prompts: N texts.
        tokens: (N,) long.
        tokens_per_batch: The most tokens of a batch.
    """
    found = torch.empty(len(prompts))
    for rows, encoded in encoded_batches(backbone, prompts, tokens_per_batch):
        logits = backbone.last_logits(encoded)
        index = tokens[rows].to(logits.device)
        found[rows] = (logits.gather(1, index[:, None])[:, 0] - logits.logsumexp(1)).cpu()
    return found
