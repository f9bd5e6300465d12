"""What a model says right after a prompt, and how probable it finds the beginnings of some answers there."""

from collections.abc import Sequence
from dataclasses import dataclass

from mega_pl.backbone import Backbone
from mega_pl.editors.protocol import Edited
from mega_pl.evaluation.batching import batches, encoded_ids
from mega_pl.evaluation.forcing import answer_ids


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
        raise ValueError(f"`prompts` and `answers` must be equally long, but got {len(prompts)} and {len(answers)}.")
    asked = [edited.prompt(prompt) for prompt in prompts]
    pairs = [(prompt, answer) for prompt, group in zip(asked, answers, strict=True) for answer in group]
    firsts = iter(answer_ids(backbone, [p for p, _ in pairs], [a for _, a in pairs])[0])
    wanted = [tuple(next(firsts)[0] for _ in group) for group in answers]
    said: dict[int, NextToken] = {}
    for batch in batches([len(ids) for ids in encoded_ids(backbone, asked)]):
        logits = backbone.last_logits(backbone.encode([asked[i] for i in batch]))
        fired = edited.fired or [None] * len(batch)
        for i, row, best, edit in zip(batch, logits.log_softmax(-1), logits.argmax(-1).tolist(), fired, strict=True):
            token = str(backbone.tokenizer.decode([best]))
            said[i] = NextToken(token, wanted[i], tuple(row[list(wanted[i])].tolist()), edit or "")
    return [said[i] for i in range(len(asked))]
