"""What becomes of edits: whether the model writes each new object whole once the edits are in force."""

import warnings

import torch

from mega_pl.asking import in_batches
from mega_pl.backbone import Backbone
from mega_pl.edits import EditBank

NAMED = 5
"""Edits that a warning names."""


@torch.no_grad()
def missed_objects(backbone: Backbone, bank: EditBank) -> dict[str, str]:
    """The edits whose prompt is not continued by their new object, each with what comes instead.

    The prompt is continued greedily, each edit routed to its own prompt, and the ids of the object are compared.

    Args:
        backbone: The bare model.
        bank: The edits.
    """
    edits = list(range(len(bank)))
    prompts = [request.filled for request in bank.requests]
    starts = [list(ids) for ids in backbone.tokenizer(prompts)["input_ids"]]
    objects = [backbone.answer_ids(request.filled, request.target_new) for request in bank.requests]
    lengths = [len(start) + len(ids) for start, ids in zip(starts, objects, strict=True)]
    longest = max(map(len, objects))
    with bank.apply(backbone, guard=False) as use:

        def write(group: list[int]) -> list[list[int]]:
            use.fix([bank.ids[edit] for edit in group])
            encoded = backbone.pad([starts[edit] for edit in group])
            written = backbone.model.generate(
                input_ids=encoded.input_ids,
                attention_mask=encoded.attention_mask,
                max_new_tokens=longest,
                do_sample=False,
                pad_token_id=backbone.tokenizer.pad_token_id,
            )
            new: list[list[int]] = written[:, encoded.input_ids.shape[1] :].tolist()
            return new

        texts = in_batches(edits, lengths, write)
    return {
        bank.ids[edit]: backbone.continuation(starts[edit], ids[: len(objects[edit]) + 1]).strip()
        for edit, ids in zip(edits, texts, strict=True)
        if ids[: len(objects[edit])] != objects[edit]
    }


def warn_of_missed(bank: EditBank) -> None:
    """Name the edits of a bank whose objects do not come out, in one line."""
    if not bank.missed:
        return
    named = ", ".join(
        f"{edit_id!r} ({bank[edit_id].target_new!r}, but the model writes {text[:30]!r})"
        for edit_id, text in list(bank.missed.items())[:NAMED]
    )
    more = f" and {len(bank.missed) - NAMED} more" if len(bank.missed) > NAMED else ""
    warnings.warn(
        f"{len(bank.missed)} of {len(bank)} new objects do not come out whole after their prompts: {named}{more}.",
        stacklevel=2,
    )
