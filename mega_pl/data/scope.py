"""The questions that an edit's scope covers, and those that it must leave alone."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from mega_pl.backbone import Backbone
from mega_pl.data.asking import acquaintances, answers, likeliest, names
from mega_pl.data.prompts import PromptConfig, phrasings
from mega_pl.edits.request import SLOT, EditRequest

MOST_MENTIONS = 32
"""The most other names through which an edit's subject is asked for, for each way to mention it."""

ALIKE = 0.7
"""Share of the questions about a subject that a name must be answered alike to be taken for an alias."""

STRANGER_PHRASINGS = 2
"""Phrasings of a question through a name that leads elsewhere."""

MOST_NEIGHBOURS = 64
"""The most other subjects of whom the question of some edits is asked."""

DRAWS_A_NEIGHBOUR = 4
"""Texts to draw for each of them; some draws repeat a name or give none."""


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
    question asked of others of whom the backbone thinks, of an entity that its subject leads back to, such as a
    spouse, and through an entity that leads elsewhere.

    Args:
        backbone: The bare model; it is asked for aliases, for others, and for the entities that name a subject.
        requests: The edits of a bank.
        config: How phrasings are multiplied.
    """
    named = _names(backbone, requests, config)
    questions = [q for i, (r, n) in enumerate(zip(requests, named, strict=True)) for q in _owned(i, r, n, config)]
    owned = {prompt for question in questions for prompt in question.prompts}
    disowned = dict.fromkeys(q for r, n in zip(requests, named, strict=True) for q in _disowned(r, n))
    disowned |= dict.fromkeys(_neighbours(backbone, requests, config))
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


def neighbourhoods(requests: Iterable[EditRequest]) -> dict[str, list[EditRequest]]:
    """The edits that ask the same of others, by the phrasing through which these are drawn.

    It is the shortest with words on both sides of the subject; an edit without such a phrasing is left out.
    """
    found: dict[str, list[EditRequest]] = {}
    for request in requests:
        around = [t for t in _templates(request) if all(part.strip() for part in t.split(SLOT))]
        if around:
            found.setdefault(min(around, key=len), []).append(request)
    return found


def _neighbours(backbone: Backbone, requests: Sequence[EditRequest], config: PromptConfig) -> Iterator[Question]:
    """The edits' own questions about others that the model knows, but for names that may be one of their subjects.

    That is a name that shares a word with a subject, or about which the model answers alike what the edit of a subject
    leaves alone; and subjects of the bank have questions of their own.
    """
    subjects = {request.subject for request in requests}
    for around, group in neighbourhoods(requests).items():
        drawn = names(backbone, around, draws=min(config.draws, DRAWS_A_NEIGHBOUR * MOST_NEIGHBOURS), seed=config.seed)
        words = {word for request in group for word in request.subject.split()}
        others = [name for name in drawn if name not in subjects and words.isdisjoint(name.split())][:MOST_NEIGHBOURS]
        about = [[contrast[0] for contrast in request.contrasts] for request in group]
        alike = {name for some in _alike(backbone, group, about, [others] * len(group)) for name in some}
        templates = sorted({template for request in group for template in _templates(request)})
        for name in others:
            if name not in alike:
                yield Question(-1, name, _fill(templates, name))


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
            if not mention.is_alias:
                led = [a for s in subjects for a in found[s][:1] if a not in found]
                found |= _asked(backbone, mention.ask, led)
                found |= acquaintances(backbone, mention.ask, draws=config.draws, seed=config.seed)
            asked[mention.ask] = found
    candidates = [
        {a for m in r.mentions if m.is_alias for a in asked[m.ask][r.subject]}.difference(known) for r in requests
    ]
    about = [[r.prompt, *(group[0] for group in (*r.contrasts, *r.implications))] for r in requests]
    aliases = _alike(backbone, requests, about, [sorted(some) for some in candidates])
    edited = {(request.subject, template) for request in requests for template in _templates(request)}
    return [_names_of(r, of_request, asked, edited) for r, of_request in zip(requests, aliases, strict=True)]


def _alike(
    backbone: Backbone,
    requests: Sequence[EditRequest],
    templates: Sequence[Sequence[str]],
    candidates: Sequence[Iterable[str]],
) -> list[tuple[str, ...]]:
    """Of each edit's candidates those about which the model answers what it answers about the subject, mostly."""
    rows = list(zip(requests, templates, map(tuple, candidates), strict=True))
    asked = dict.fromkeys(p for r, some, named in rows for n in (r.subject, *named) for p in _fill(some, n))
    told = dict(zip(asked, likeliest(backbone, list(asked)), strict=True))
    found = []
    for request, some, named in rows:
        own = [told[prompt] for prompt in _fill(some, request.subject)]
        alike = {n: sum(a == told[p] for a, p in zip(own, _fill(some, n), strict=True)) for n in named}
        found.append(tuple(n for n in named if own and alike[n] >= ALIKE * len(own)))
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


def _asked(backbone: Backbone, ask: str, named: Iterable[str]) -> dict[str, tuple[str, ...]]:
    distinct = list(dict.fromkeys(named))
    return dict(zip(distinct, answers(backbone, [ask.replace("{}", name) for name in distinct]), strict=True))


def _templates(request: EditRequest) -> tuple[str, ...]:
    return tuple(dict.fromkeys((request.prompt, *request.phrasings)))


def _fill(templates: Iterable[str], subject: str) -> tuple[str, ...]:
    return tuple(template.replace("{}", subject) for template in templates)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
