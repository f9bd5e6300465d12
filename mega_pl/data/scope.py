"""The questions that an edit's scope covers, and those that it must leave alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from mega_pl.backbone import Backbone
from mega_pl.data.prompts import PromptConfig, phrasings
from mega_pl.edits.request import EditRequest

Item = TypeVar("Item")

MOST_MENTIONS = 6
"""The most other names through which an edit's subject is asked for, for each way to mention it."""


@dataclass(frozen=True)
class Question:
    """One question in several phrasings.

    Args:
        owner: Index of the edit that answers it, or -1 for a question that no edit may answer.
        subject: What it is about, by its own name.
        prompts: Its phrasings.
    """

    owner: int
    subject: str
    prompts: tuple[str, ...]


def scope_questions(backbone: Backbone, requests: Sequence[EditRequest], config: PromptConfig) -> list[Question]:
    """Collect the questions of all edits; those owned by an edit win over the same words left alone elsewhere.

    An edit owns its phrasings, by its subject's name and by the aliases that the backbone gives when asked, its
    implications, and its phrasings with the subject named through another entity. It disowns its contrasts and its
    own question asked of an entity that its subject leads back to, such as a spouse.

    Args:
        backbone: The bare model; it is asked for aliases and for the entities that name a subject.
        requests: The edits of a bank.
        config: How phrasings are multiplied.
    """
    names = _names(backbone, requests)
    questions = [q for i, (r, n) in enumerate(zip(requests, names, strict=True)) for q in _owned(i, r, n, config)]
    owned = {prompt for question in questions for prompt in question.prompts}
    disowned = [q for r, n in zip(requests, names, strict=True) for q in _disowned(r, n)]
    return questions + [q for q in disowned if owned.isdisjoint(q.prompts)]


@dataclass(frozen=True)
class _Names:
    """What the backbone knows about the names of a subject.

    Args:
        aliases: Other names of it.
        phrases: For each entity that leads to it, the noun phrases that name it through that entity.
        rivals: Those of these entities that it leads back to.
    """

    aliases: tuple[str, ...]
    phrases: dict[str, tuple[str, ...]]
    rivals: tuple[str, ...]


def _owned(owner: int, request: EditRequest, names: _Names, config: PromptConfig) -> Iterator[Question]:
    subject, templates = request.subject, _templates(request)
    yield Question(owner, subject, phrasings(request, config))
    for group in request.implications:
        yield Question(owner, subject, _fill(group, subject))
    for alias in names.aliases:
        yield Question(owner, subject, _fill(templates, alias))
    through = [
        _capitalised(template.replace("{}", phrases[i % len(phrases)]))
        for phrases in names.phrases.values()
        for i, template in enumerate(templates)
    ]
    if through:
        yield Question(owner, subject, tuple(through))


def _disowned(request: EditRequest, names: _Names) -> Iterator[Question]:
    for group in request.contrasts:
        yield Question(-1, request.subject, _fill(group, request.subject))
    for rival in names.rivals:
        yield Question(-1, rival, _fill(_templates(request), rival))


def _names(backbone: Backbone, requests: Sequence[EditRequest]) -> list[_Names]:
    """Ask the backbone; candidates are all names in the requests and what the subjects themselves lead to."""
    subjects = list(dict.fromkeys(request.subject for request in requests))
    known = list(dict.fromkeys([*subjects, *(t for r in requests for t in (r.target_true, r.target_new))]))
    asked: dict[str, dict[str, tuple[str, ...]]] = {}
    for mention in dict.fromkeys(mention for request in requests for mention in request.mentions):
        if mention.ask not in asked:
            found = _asked(backbone, mention.ask, subjects if mention.is_alias else known)
            led = [] if mention.is_alias else [a for s in subjects for a in found[s][:1] if a not in found]
            asked[mention.ask] = found | _asked(backbone, mention.ask, list(dict.fromkeys(led)))
    return [_names_of(request, asked) for request in requests]


def _names_of(request: EditRequest, asked: dict[str, dict[str, tuple[str, ...]]]) -> _Names:
    subject = request.subject
    aliases: list[str] = []
    phrases: dict[str, tuple[str, ...]] = {}
    rivals: list[str] = []
    for mention in request.mentions:
        found = asked[mention.ask]
        if mention.is_alias:
            aliases += [name for name in found[subject] if name != subject]
            continue
        others = [name for name, answer in found.items() if answer[:1] == (subject,) and name != subject]
        for other in others[:MOST_MENTIONS]:
            phrases[other] = (*phrases.get(other, ()), mention.phrase.replace("{}", other))
        rivals += [other for other in others if found[subject][:1] == (other,)]
    return _Names(tuple(aliases), phrases, tuple(dict.fromkeys(rivals)))


def _asked(backbone: Backbone, ask: str, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    return dict(zip(names, answers(backbone, [ask.replace("{}", name) for name in names]), strict=True))


@torch.no_grad()
def answers(
    backbone: Backbone, prompts: Sequence[str], *, least: float = 0.1, tokens: int = 12, batch: int = 128
) -> list[tuple[str, ...]]:
    """What the model answers: each first token of at least ``least`` probability, continued greedily.

    Args:
        backbone: The bare model.
        prompts: Questions that end before the answer.
        least: Least probability of an answer's first token.
        tokens: The most tokens of an answer; it ends before the first full stop or line break.
        batch: Prompts a forward pass.

    Returns:
        For each prompt its answers, the likeliest first.
    """
    flat: list[tuple[int, str]] = []
    for some in _chunks(range(len(prompts)), batch):
        chances, ids = backbone.last_logits(backbone.encode([prompts[i] for i in some])).softmax(-1).topk(5)
        for i, row, tokens_of_row in zip(some, chances.tolist(), ids.tolist(), strict=True):
            flat += [(i, _text(backbone, t)) for chance, t in zip(row, tokens_of_row, strict=True) if chance >= least]
    texts = [start for _, start in flat]
    for _ in range(tokens - 1):
        active = [j for j, text in enumerate(texts) if not _ended(text, backbone)]
        for rows in _chunks(active, batch):
            encoded = backbone.encode([prompts[flat[j][0]] + texts[j] for j in rows])
            for j, token in zip(rows, backbone.last_logits(encoded).argmax(-1).tolist(), strict=True):
                texts[j] += _text(backbone, token)
    found: list[list[str]] = [[] for _ in prompts]
    for (i, _), text in zip(flat, texts, strict=True):
        answer = _cut(text, backbone)
        if answer and answer not in found[i]:
            found[i].append(answer)
    return [tuple(names) for names in found]


def _text(backbone: Backbone, token: int) -> str:
    return str(backbone.tokenizer.decode([token]))


def _ended(text: str, backbone: Backbone) -> bool:
    return any(end in text for end in (".", "\n", backbone.tokenizer.eos_token))


def _cut(text: str, backbone: Backbone) -> str:
    for end in (".", "\n", backbone.tokenizer.eos_token):
        text = text.split(end)[0]
    return text.strip()


def _templates(request: EditRequest) -> tuple[str, ...]:
    return request.phrasings or (request.prompt,)


def _fill(templates: Iterable[str], subject: str) -> tuple[str, ...]:
    return tuple(template.replace("{}", subject) for template in templates)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[i : i + size] for i in range(0, len(items), size))
