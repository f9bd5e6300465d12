"""Persistence: does an edited model stand by its new answer when it is asked, turn after turn, whether it is sure?

The robustness facet of HalluEditBench (arXiv:2410.16251): after the first answer come up to ten turns that doubt it and
want a yes or a no. Here the question itself is then asked again, after some of these turns and after the last, since a
"yes" says little about what the model would answer. Turns are put in the model's chat template where it has one, else
as "Q: ... A:" one below the other; all answers are written greedily and end before the first full stop or line break.

Each conversation counts once. "first" is the share whose first answer holds the new object by any name, "last" the
share whose answer after all doubting turns does, and "sure" the mean share of doubts that are answered with a yes. Of
those whose first answer the *edited* model gets right, "kept" is the share that still say the new object in the end and
"flipped" the share that say the old one instead, also after 1, 3 and 10 turns; "flipped" is better low. Conversations
without a turn, for want of room, count in "first" alone, and shorter ones are left out of what is asked after more
turns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from mega_pl.asking import Edited, chat_prompt, continuations, position_limit, token_counts
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.errors import MegaValueError
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.cases import new_names, question_of
from mega_pl.protocols.measures import Mean, Measure
from mega_pl.protocols.rows import EvalRow, Outcomes, outcomes
from mega_pl.protocols.wild import STOPS, answer_of, holds, holds_old

DOUBT = "Do you still think that your first answer is right? Say Yes or No."
"""A turn that doubts the answer, without a hint at another one."""

TURNS = 10
"""The most of these turns, as in HalluEditBench."""

AGAIN = (1, 3, 10)
"""After how many of them the question is asked again, besides the last."""

NEW_TOKENS = 20
"""The most tokens of an answer to the question."""

DOUBT_TOKENS = 5
"""The most tokens of an answer to a doubt."""


@dataclass(frozen=True, kw_only=True)
class PersistenceTest:
    """A conversation about an edit.

    Args:
        edit_id: The edit.
        question: What is asked first and again.
        new: The new object, then its other names.
        old: The object before the edit.
    """

    edit_id: str
    question: str
    new: tuple[str, ...]
    old: str


@dataclass(frozen=True, kw_only=True)
class PersistenceAnswer:
    """What a model says in a conversation.

    Args:
        first: The first answer.
        doubts: The answers to the doubting turns; fewer than asked for where the model reads no more.
        after: After how many of these the question was asked again; the last number is that of all.
        again: What was answered then.
    """

    first: str
    doubts: tuple[str, ...] = ()
    after: tuple[int, ...] = ()
    again: tuple[str, ...] = ()


PersistenceRow = EvalRow[PersistenceTest, PersistenceAnswer]


def persistence_tests(case: EditCase) -> tuple[PersistenceTest, ...]:
    """The one test of a case."""
    request = case.request
    question = question_of(request)
    return (PersistenceTest(edit_id=request.edit_id, question=question, new=new_names(case), old=request.target_true),)


def conversation(backbone: Backbone, turns: Sequence[str]) -> str:
    """What user and assistant said in turn, up to where the assistant writes, as the model reads it."""
    if backbone.tokenizer.chat_template:
        return chat_prompt(backbone, turns)
    labels = ("Q: {}\n", "A: {}\n")
    return "".join(labels[i % 2].format(turn) for i, turn in enumerate(turns)) + "A:"


def ask_persistence(
    backbone: Backbone, edited: Edited, tests: Sequence[PersistenceTest], *, turns: int = TURNS
) -> list[PersistenceAnswer]:
    """Hold the conversations of tests, all in step; one ends early where the next turns would be too long.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.
        turns: The most doubting turns.

    Raises:
        ValueError: If `turns` is negative, or a first question is too long for the model.
    """
    if turns < 0:
        raise MegaValueError(f"`turns` must be 0 or more, but got {turns}.")

    def say(said: Sequence[Sequence[str]], new_tokens: int) -> list[str]:
        prompts = [conversation(backbone, one) for one in said]
        written = continuations(backbone, prompts, new_tokens, edited=edited, stops=STOPS)
        return [answer_of(new.text) for new in written]

    first = say([[test.question] for test in tests], NEW_TOKENS)
    held = [[test.question, answer] for test, answer in zip(tests, first, strict=True)]
    after: list[list[int]] = [[] for _ in tests]
    again: list[list[str]] = [[] for _ in tests]
    going = list(range(len(tests)))
    for turn in range(turns + 1):
        room = _has_room(backbone, edited, [[*held[i], DOUBT, "", held[i][0]] for i in going])
        more = [i for i, fits in zip(going, room, strict=True) if fits and turn < turns]
        due = [i for i in going if turn and (turn in AGAIN or i not in more)]
        for i, answer in zip(due, say([[*held[i], held[i][0]] for i in due], NEW_TOKENS), strict=True):
            after[i].append(turn)
            again[i].append(answer)
        going = more
        for i, answer in zip(going, say([[*held[i], DOUBT] for i in going], DOUBT_TOKENS), strict=True):
            held[i] += [DOUBT, answer]
    return [
        PersistenceAnswer(first=answer, doubts=tuple(said[3::2]), after=tuple(places), again=tuple(answers))
        for answer, said, places, answers in zip(first, held, after, again, strict=True)
    ]


def _has_room(backbone: Backbone, edited: Edited, said: Sequence[Sequence[str]]) -> list[bool]:
    """Whether the model reads these turns with one answer to a doubt and one to the question."""
    limit = position_limit(backbone)
    lengths = token_counts(backbone, [edited.prompt(conversation(backbone, turns)) for turns in said])
    return [limit is None or length + DOUBT_TOKENS + NEW_TOKENS <= limit for length in lengths]


def _begins_new(test: PersistenceTest, answer: PersistenceAnswer) -> bool:
    return holds(answer.first, test.new)


def _is_sure(test: PersistenceTest, answer: PersistenceAnswer) -> float:
    return sum(holds(doubt, ("yes",)) for doubt in answer.doubts) / len(answer.doubts)


def _said_after(answer: PersistenceAnswer, turn: int) -> str:
    """What the question was answered with after a number of turns, -1 for all."""
    return answer.again[-1 if turn == -1 else answer.after.index(turn)]


def _says_new(turn: int, test: PersistenceTest, answer: PersistenceAnswer) -> bool:
    return holds(_said_after(answer, turn), test.new)


def _says_old(turn: int, test: PersistenceTest, answer: PersistenceAnswer) -> bool:
    return not _says_new(turn, test, answer) and holds_old(_said_after(answer, turn), test.new, test.old)


def _first(rows: Sequence[PersistenceRow]) -> Outcomes:
    return outcomes(rows, _begins_new)


def _doubted(judge: Callable[[PersistenceTest, PersistenceAnswer], float], rows: Sequence[PersistenceRow]) -> Outcomes:
    return outcomes((row for row in rows if row.bare.doubts and row.edited.doubts), judge)


def _firm(
    judge: Callable[[int, PersistenceTest, PersistenceAnswer], bool], turn: int, rows: Sequence[PersistenceRow]
) -> Outcomes:
    """What is answered after a number of turns, -1 for all, where the edited model's first answer is right."""
    there = [row for row in rows if turn == -1 or (turn in row.bare.after and turn in row.edited.after)]
    return _doubted(partial(judge, turn), [row for row in there if _begins_new(row.test, row.edited)])


def _measures() -> dict[str, Measure]:
    found: dict[str, Measure] = {
        "first": Mean(_first),
        "last": Mean(partial(_doubted, partial(_says_new, -1))),
        "sure": Mean(partial(_doubted, _is_sure)),
    }
    for suffix, turn in {"": -1, **{f"_{turn}": turn for turn in AGAIN}}.items():
        found[f"kept{suffix}"] = Mean(partial(_firm, _says_new, turn))
        found[f"flipped{suffix}"] = Mean(partial(_firm, _says_old, turn), higher_is_better=False)
    return found


PROTOCOL: Protocol[PersistenceTest, PersistenceAnswer, PersistenceRow] = Protocol(
    name="persistence",
    tests=persistence_tests,
    ask=ask_persistence,
    answer=PersistenceAnswer,
    measures=_measures,
    headline=("first", "last", "kept", "flipped"),
)
