"""Teacher forcing: how probable a model finds an answer, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor
from transformers import Cache

from mega_pl.asking.batches import TOKENS, check_room, encoded_ids, in_batches
from mega_pl.asking.edited import BARE, Edited
from mega_pl.backbone import Backbone, Encoded, PaddingSide


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

    The prompt is read first and the answer through its cache, as in generation: an edit that routes by the prompt, or
    acts on its last token, does what it does when the model writes. A prompt that comes several times in a batch is
    read once.

    Args:
        backbone: The model, within its edits.
        prompts: N texts.
        answers: N answers, each to follow its prompt after a space; their ids are those of `Backbone.answer_ids`.
        edited: The edits in force; they say how a prompt is asked.
        padding_side: Of the prompts in a batch; the answers do not depend on it, save where attention slides over a
            window shorter than the padded prompts: there only left is exact.
        tokens_per_batch: The most tokens of a batch, each pair with its prompt.

    Returns:
        What the model makes of each pair, in their order.

    Raises:
        ValueError: If the lengths differ, an answer is blank or merges with its prompt, or a text is too long.
    """
    if len(prompts) != len(answers):
        raise ValueError(f"`prompts` and `answers` must be equally long, but got {len(prompts)} and {len(answers)}.")
    asked = [edited.prompt(prompt) for prompt in prompts]
    ids, lengths = answer_ids(backbone, asked, answers)
    check_room(backbone, asked, [start + len(own) for start, own in zip(lengths, ids, strict=True)], "its answer")
    pairs = list(zip(asked, ids, strict=True))
    return in_batches(pairs, lengths, partial(_force_batch, backbone, edited, padding_side), tokens_per_batch)


def _force_batch(
    backbone: Backbone, edited: Edited, padding_side: PaddingSide, pairs: Sequence[tuple[str, list[int]]]
) -> list[TeacherForced]:
    """Force the ids of answers after the prompts of one batch; a prompt that comes several times is read once."""
    row = {prompt: r for r, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in pairs))}
    encoded = backbone.encode(list(row), padding_side)
    return _force(backbone, edited, encoded, [row[prompt] for prompt, _ in pairs], [ids for _, ids in pairs])


def answer_ids(backbone: Backbone, prompts: Sequence[str], answers: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """The ids of answers after their prompts, by the rule of `Backbone.answer_ids`, tokenised together.

    Returns:
        The ids of each answer, and the number of tokens of each prompt.

    Raises:
        ValueError: If an answer is blank or merges with its prompt.
    """
    before = encoded_ids(backbone, prompts)
    whole = encoded_ids(backbone, [f"{prompt} {answer}" for prompt, answer in zip(prompts, answers, strict=True)])
    ids = [
        # where the rule does not hold, the backbone says why
        text[len(start) :] if answer.strip() and text[: len(start)] == start else backbone.answer_ids(prompt, answer)
        for prompt, answer, start, text in zip(prompts, answers, before, whole, strict=True)
    ]
    return ids, [len(start) for start in before]


@torch.no_grad()
def _force(
    backbone: Backbone, edited: Edited, encoded: Encoded, rows: list[int], answers: list[list[int]]
) -> list[TeacherForced]:
    """Force answers after the prompts of one batch, each after the prompt of its row."""
    sizes = torch.tensor([len(ids) for ids in answers], device=backbone.device)
    width = int(sizes.max())
    targets = torch.tensor([ids + [0] * (width - len(ids)) for ids in answers], device=backbone.device)
    logits, cache = _read(backbone, encoded)
    fired = edited.fired or [None] * len(encoded.last)
    owners = torch.tensor(rows)  # on the CPU, because layers and with them the cache may lie on several devices
    log_probs, predicted = _chances(logits[owners, None], targets[:, :1])
    if width > 1:
        cache.batch_select_indices(owners)
        mask = encoded.attention_mask[owners]
        later = _chances(_go_on(backbone, cache, mask, targets[:, :-1], sizes - 1), targets[:, 1:])
        log_probs, predicted = torch.cat([log_probs, later[0]], 1), torch.cat([predicted, later[1]], 1)
    columns = zip(answers, log_probs.tolist(), predicted.tolist(), rows, strict=True)
    return [
        TeacherForced(tuple(ids), tuple(chances[: len(ids)]), tuple(best[: len(ids)]), fired[row] or "")
        for ids, chances, best, row in columns
    ]


def _read(backbone: Backbone, encoded: Encoded) -> tuple[Tensor, Cache]:
    """The logits (B, V) after each prompt, and the cache of the prompts."""
    at_end = bool((encoded.last == encoded.input_ids.shape[1] - 1).all())
    output = backbone.model(**encoded.inputs, use_cache=True, logits_to_keep=1 if at_end else 0)
    if at_end:
        return output.logits[:, -1], output.past_key_values
    rows = torch.arange(len(encoded.last), device=output.logits.device)
    return output.logits[rows, encoded.last.to(output.logits.device)], output.past_key_values


def _go_on(backbone: Backbone, cache: Cache, mask: Tensor, ids: Tensor, sizes: Tensor) -> Tensor:
    """The logits (P, L, V) after further tokens (P, L) of which `sizes` (P,) are real, behind cached prompts."""
    # What stands behind the real tokens is read by none of them and so needs no mask, but a position that exists.
    steps = torch.arange(ids.shape[1], device=ids.device).minimum(sizes[:, None] - 1).clamp(min=0)
    logits: Tensor = backbone.model(
        input_ids=ids,
        attention_mask=torch.cat([mask, torch.ones_like(ids)], dim=1),
        position_ids=mask.sum(-1, keepdim=True) + steps,
        past_key_values=cache,
        use_cache=True,
    ).logits
    return logits


def _chances(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of ids, and the most probable ids, both (P, L) after logits (P, L, V)."""
    logits = logits.float()
    chosen = logits.gather(-1, ids.to(logits.device)[..., None])[..., 0]
    return chosen - logits.logsumexp(-1), logits.argmax(-1)
