"""The questions that an edit's scope covers, and those that it must leave alone."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from mega_pl.backbone import Backbone
from mega_pl.data.asking import acquaintances, answers, likeliest
from mega_pl.data.prompts import PromptConfig, phrasings
from mega_pl.edits.request import EditRequest

MOST_MENTIONS = 32
"""The most other names through which an edit's subject is asked for, for each way to mention it."""

ALIKE = 0.7
"""Share of the questions about a subject that a name must be answered alike to be taken for an alias."""

STRANGER_PHRASINGS = 2
"""Phrasings of a question through a name that leads elsewhere."""


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

    An edit owns its phrasings, by its subject's name and by the aliases that the backbone gives and answers alike, its
    implications, and its phrasings with the subject named through another entity. It disowns its contrasts, its own
    question asked of an entity that its subject leads back to, such as a spouse, and its own question asked through
    an entity that leads elsewhere.

    Args:
        backbone: The bare model; it is asked for aliases and for the entities that name a subject.
        requests: The edits of a bank.
        config: How phrasings are multiplied.
    """
    named = _names(backbone, requests, config)
    questions = [q for i, (r, n) in enumerate(zip(requests, named, strict=True)) for q in _owned(i, r, n, config)]
    owned = {prompt for question in questions for prompt in question.prompts}
    disowned = dict.fromkeys(q for r, n in zip(requests, named, strict=True) for q in _disowned(r, n))
    return questions + [q for q in disowned if owned.isdisjoint(q.prompts)]


@dataclass(frozen=True)
class _Names:
    """What the backbone knows about the names of a subject.

    Args:
        aliases: Other names of it.
        phrases: For each entity that leads to it, the noun phrases that name it through that entity.
        strangers: The same phrases for entities that lead elsewhere.
        rivals: Those of the entities leading to it that it leads back to.
    """

    aliases: tuple[str, ...]
    phrases: dict[str, tuple[str, ...]]
    strangers: dict[str, tuple[str, ...]]
    rivals: tuple[str, ...]


def _owned(owner: int, request: EditRequest, names_of: _Names, config: PromptConfig) -> Iterator[Question]:
    subject, templates = request.subject, _templates(request)
    yield Question(owner, subject, phrasings(request, config))
    for group in request.implications:
        yield Question(owner, subject, _fill(group, subject))
    for alias in names_of.aliases:
        yield Question(owner, subject, _fill(templates, alias))
    for phrases in names_of.phrases.values():
        yield Question(owner, subject, _through(templates, phrases))


def _disowned(request: EditRequest, names_of: _Names) -> Iterator[Question]:
    for group in request.contrasts:
        yield Question(-1, request.subject, _fill(group, request.subject))
    for rival in names_of.rivals:
        yield Question(-1, rival, _fill(_templates(request), rival))
    for stranger, phrases in names_of.strangers.items():
        yield Question(-1, stranger, _through(_templates(request), phrases)[:STRANGER_PHRASINGS])


def _through(templates: Sequence[str], phrases: Sequence[str]) -> tuple[str, ...]:
    """Each template with the subject named through another entity, the phrases taken in turn."""
    return tuple(_capitalised(t.replace("{}", phrases[i % len(phrases)])) for i, t in enumerate(templates))


def _names(backbone: Backbone, requests: Sequence[EditRequest], config: PromptConfig) -> list[_Names]:
    """Ask the backbone; candidates are all names in the requests, what they lead to, and whom the model knows."""
    subjects = list(dict.fromkeys(request.subject for request in requests))
    known = list(dict.fromkeys([*subjects, *(t for r in requests for t in (r.target_true, r.target_new))]))
    asked: dict[str, dict[str, tuple[str, ...]]] = {}
    for mention in dict.fromkeys(mention for request in requests for mention in request.mentions):
        if mention.ask not in asked:
            found = _asked(backbone, mention.ask, subjects if mention.is_alias else known)
            led = [] if mention.is_alias else [a for s in subjects for a in found[s][:1] if a not in found]
            drawn = {} if mention.is_alias else _drawn(backbone, mention.ask, config)
            asked[mention.ask] = found | _asked(backbone, mention.ask, led) | drawn
    candidates = [
        {a for m in r.mentions if m.is_alias for a in asked[m.ask][r.subject]}.difference(known) for r in requests
    ]
    aliases = _aliases(backbone, requests, candidates)
    edited = {(request.subject, template) for request in requests for template in _templates(request)}
    return [_names_of(r, of_request, asked, edited) for r, of_request in zip(requests, aliases, strict=True)]


def _aliases(
    backbone: Backbone, requests: Sequence[EditRequest], candidates: Sequence[Collection[str]]
) -> list[tuple[str, ...]]:
    """The candidates about which the model answers what it answers about the subject, at least mostly."""
    templates = [[r.prompt, *(group[0] for group in (*r.contrasts, *r.implications))] for r in requests]
    pairs = [(i, name) for i, some in enumerate(candidates) for name in (requests[i].subject, *sorted(some))]
    told = iter(likeliest(backbone, [prompt for i, name in pairs for prompt in _fill(templates[i], name)]))
    of_pair = {pair: [next(told) for _ in templates[pair[0]]] for pair in pairs}
    found = []
    for i, some in enumerate(candidates):
        own = of_pair[i, requests[i].subject]
        alike = {name: sum(a == b for a, b in zip(own, of_pair[i, name], strict=True)) for name in some}
        found.append(tuple(name for name in sorted(some) if alike[name] >= ALIKE * len(own)))
    return found


def _names_of(
    request: EditRequest,
    aliases: tuple[str, ...],
    asked: dict[str, dict[str, tuple[str, ...]]],
    edited: Collection[tuple[str, str]],
) -> _Names:
    subject = request.subject
    phrases: dict[str, tuple[str, ...]] = {}
    strangers: dict[str, tuple[str, ...]] = {}
    rivals: list[str] = []
    for mention in request.mentions:
        if mention.is_alias:
            continue
        found = asked[mention.ask]
        # An edit of its own decides what a name leads to.
        others = [name for name in found if name != subject and (name, mention.ask) not in edited]
        leading = [name for name in others if found[name][:1] == (subject,)]
        for into, chosen in ((phrases, leading), (strangers, [name for name in others if name not in leading])):
            for other in chosen[:MOST_MENTIONS]:
                into[other] = (*into.get(other, ()), mention.phrase.replace("{}", other))
        rivals += [other for other in leading if found[subject][:1] == (other,)]
    return _Names(aliases, phrases, strangers, tuple(dict.fromkeys(rivals)))


def _drawn(backbone: Backbone, ask: str, config: PromptConfig) -> dict[str, tuple[str, ...]]:
    return acquaintances(backbone, ask, draws=config.draws, seed=config.seed)


def _asked(backbone: Backbone, ask: str, named: Iterable[str]) -> dict[str, tuple[str, ...]]:
    distinct = list(dict.fromkeys(named))
    return dict(zip(distinct, answers(backbone, [ask.replace("{}", name) for name in distinct]), strict=True))


def _templates(request: EditRequest) -> tuple[str, ...]:
    return tuple(dict.fromkeys((request.prompt, *request.phrasings)))


def _fill(templates: Iterable[str], subject: str) -> tuple[str, ...]:
    return tuple(template.replace("{}", subject) for template in templates)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
