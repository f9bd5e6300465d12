"""Other names of subjects: the bare model is asked for them, and a name is kept that it answers alike about."""

from collections.abc import Sequence
from dataclasses import replace

from mega_pl.asking import answers, argmax_tokens
from mega_pl.backbone import Backbone
from mega_pl.data.relations import relations
from mega_pl.edits.request import SLOT, EditRequest
from mega_pl.edits.routing.subjects import FUNCTION_WORDS, fold

QUESTION = "{} is also known as"
"""What the model completes with another name."""

QUESTIONS = 8
"""The most questions about a subject that are asked of a candidate, too."""

ALIKE = 0.7
"""Share of them that must be answered alike."""


def with_known_aliases(backbone: Backbone, requests: Sequence[EditRequest]) -> list[EditRequest]:
    """Add the aliases that the backbone gives for each edit's subject and answers alike about.

    A candidate is a name with a capital letter that no edit has as its subject or object. It is an alias if the
    likeliest token is the same for both names after `ALIKE` of the edit's own questions, its contrasts, and questions
    by relations of the template bank that lead from the same type.

    Args:
        backbone: The bare model.
        requests: The edits.
    """
    subjects = list(dict.fromkeys(request.subject for request in requests))
    taken = {fold(name) for r in requests for name in (r.subject, r.target_new, r.target_true)}
    found = dict(zip(subjects, answers(backbone, [QUESTION.replace(SLOT, s) for s in subjects]), strict=True))
    candidates = {s: [n for n in names if _is_name(n) and fold(n) not in taken] for s, names in found.items()}
    questions = [_questions(request) if candidates[request.subject] else () for request in requests]
    prompts = dict.fromkeys(
        template.replace(SLOT, name)
        for request, templates in zip(requests, questions, strict=True)
        for template in templates
        for name in (request.subject, *candidates[request.subject])
    )
    token = dict(zip(prompts, argmax_tokens(backbone, list(prompts)), strict=True))

    def is_alike(request: EditRequest, templates: Sequence[str], name: str) -> bool:
        pairs = [(token[t.replace(SLOT, request.subject)], token[t.replace(SLOT, name)]) for t in templates]
        return sum(own == other for own, other in pairs) >= ALIKE * len(pairs)

    return [
        replace(
            request,
            aliases=(*request.aliases, *(n for n in candidates[request.subject] if is_alike(request, templates, n))),
        )
        for request, templates in zip(requests, questions, strict=True)
    ]


def _is_name(text: str) -> bool:
    return text[:1].isupper() and fold(text) not in FUNCTION_WORDS


def _questions(request: EditRequest) -> tuple[str, ...]:
    bank = relations()
    kinds = set(bank[request.relation].subjects) if request.relation in bank else set()
    alike = (r.phrasings[0] for r in bank.values() if not kinds.isdisjoint(r.subjects))
    given = (request.prompt, *request.phrasings[:1], *(group[0] for group in request.contrasts))
    return tuple(dict.fromkeys((*given, *alike)))[:QUESTIONS]
