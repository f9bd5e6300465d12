"""What several protocols read off a case, and how several ask."""

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Protocol

from mega_pl.asking import Edited, NextToken, next_tokens
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase, EditRequest
from mega_pl.edits.request import SLOT


def new_names(case: EditCase) -> tuple[str, ...]:
    """The new object of a case, then its other names.

    Those are what the tests that ask the edited fact under another name of the subject accept besides it. A name of one
    character is left out unless it is a digit.
    """
    new = case.request.target_new
    groups = [probe.answers for probe in case.subject_aliasing]
    queries = (query for test in case.ripple if test.axis == "Subject_Aliasing" for query in test.queries)
    groups += [names for query in queries for names in query.answers]
    others = (name for group in groups if new in group for name in group)
    return tuple(dict.fromkeys([new, *(name for name in others if len(name) > 1 or name.isdigit())]))


def relation_of(request: EditRequest) -> str:
    """The relation of an edit, which its template stands for where it names none."""
    return request.relation or request.prompt


@cache
def questions() -> Mapping[str, str]:
    """By relation a question with one ``{}``; none is a phrasing or a cue of the template bank, which edits see."""
    return tomllib.loads(files("mega_pl.data").joinpath("templates", "questions.toml").read_text(encoding="utf-8"))


def question_of(request: EditRequest) -> str:
    """The edit's question: its prompt if that asks, else the question of its relation, else the prompt to be completed.

    >>> question_of(EditRequest(prompt="{} is from", subject="Ann", target_new="Rome", target_true="Oslo"))
    'Ann is from'
    """
    own = request.prompt if request.prompt.endswith("?") else questions().get(request.relation, request.prompt)
    return own.replace(SLOT, request.subject)


class ObjectTest(Protocol):
    """A prompt, and the objects that it may be answered with."""

    @property
    def prompt(self) -> str:
        """What the model completes."""

    @property
    def new(self) -> tuple[str, ...]:
        """The new object, then its other names."""

    @property
    def true(self) -> str:
        """The true object."""


def ask_objects(backbone: Backbone, edited: Edited, tests: Sequence[ObjectTest]) -> list[NextToken]:
    """Ask tests of a model: the token after each prompt, and the log-probabilities of the new and the true object.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.

    Raises:
        ValueError: If an object merges with its prompt, or a prompt is too long.
    """
    return next_tokens(backbone, edited, [t.prompt for t in tests], [(t.new[0], t.true) for t in tests])
