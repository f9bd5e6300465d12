"""Implications of a relation that hold in the bare model: it must follow a supposed fact through a second one."""

from collections.abc import Sequence
from dataclasses import replace

from mega_pl.asking import argmax_tokens
from mega_pl.backbone import Backbone
from mega_pl.data.relations import second_hops
from mega_pl.edits.request import SLOT, EditRequest
from mega_pl.fitting.prompts import PRETEND


def with_followed_implications(backbone: Backbone, requests: Sequence[EditRequest]) -> list[EditRequest]:
    """Leave out the template bank's implications that the backbone does not follow; an author's own stay.

    An implication such as "The country to which the capital of {} belongs is" counts if, once the new fact is supposed,
    the backbone gives the token that it gives to the question about the new object alone ("The country to which Paris
    belongs is"), and another one for the true object. A model that does not follow would have its maps move questions
    to answers that mean nothing.

    Args:
        backbone: The bare model.
        requests: The edits.
    """
    questions: dict[str, None] = {}
    checks: dict[tuple[int, str], tuple[str, str, str]] = {}
    for i, request in enumerate(requests):
        alone = second_hops(request.relation)
        for template in (t for group in request.implications for t in group if t in alone):
            supposed = PRETEND.format(
                p=request.filled, new=request.target_new, c=template.replace(SLOT, request.subject)
            )
            new, true = (alone[template].replace(SLOT, name) for name in (request.target_new, request.target_true))
            checks[i, template] = (supposed, new, true)
            questions |= dict.fromkeys((supposed, new, true))
    token = dict(zip(questions, argmax_tokens(backbone, list(questions)), strict=True))
    followed = {key for key, (supposed, new, true) in checks.items() if token[supposed] == token[new] != token[true]}

    def kept(i: int, group: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(template for template in group if (i, template) not in checks or (i, template) in followed)

    return [
        replace(request, implications=tuple(filter(None, (kept(i, group) for group in request.implications))))
        for i, request in enumerate(requests)
    ]
