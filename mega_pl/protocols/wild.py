"""Whole answers as they come in use: written greedily, ended by a stop rule, and compared with the object as a whole.

The protocol WILD of "The Mirage of Model Editing" (arXiv:2502.11177): at most 50 new tokens, which end before the first
full stop, line break or end-of-sequence token; an answer is right if it equals the object once case, punctuation,
articles and extra blanks are gone, or if a judge says so. As published, a name with a full stop in it is never reached.

By form and kind, every test counting once: "exact" is the share of answers that are the new object by any of its names
(`plain`); "contains" of those that hold one as a whole; "old" of those that hold the old object, parts of the new one
aside (better low); "judged", where there is a judge, of those that it takes for right.
"""

import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from mega_pl.asking import Edited, chat_prompt, continuations
from mega_pl.backbone import Backbone
from mega_pl.edits import EditCase
from mega_pl.functional.text import canonical, find_all, without_names
from mega_pl.protocols.base import Protocol
from mega_pl.protocols.cases import new_names, question_of
from mega_pl.protocols.generation import GenerationKind
from mega_pl.protocols.measures import Mean, Measure
from mega_pl.protocols.rows import EvalRow, Outcomes, outcomes

WildForm = Literal["completion", "question", "chat"]
"""How a wording is put: as it is, in the frame of `QUESTION`, or as a user's turn in the model's chat template."""

Judge = Callable[[str, str, str], bool]
"""Says whether an answer is right, from the question, the new object and the answer; it may ask another model."""

QUESTION = "Please answer the question:\n\nQ: {}\nA:"
"""The frame of a question in WILD."""

STOPS = (".", "\n")
"""Where an answer ends, the end-of-sequence token aside."""

NEW_TOKENS = 50
"""The most tokens of an answer."""

_MARKS = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


@dataclass(frozen=True, kw_only=True)
class WildTest:
    """One wording of an edit's question in one form.

    Args:
        edit_id: The edit that it belongs to.
        form: How it is put.
        kind: The edit prompt or a paraphrase.
        wording: What is put.
        new: The new object, then its other names.
        old: The object before the edit.
    """

    edit_id: str
    form: WildForm
    kind: GenerationKind
    wording: str
    new: tuple[str, ...]
    old: str


@dataclass(frozen=True, kw_only=True)
class WildAnswer:
    """What a model writes.

    Args:
        text: All of it; `answer_of` cuts the answer out.
        fired: The edit that the prompt got; "" if none did or edits are not routed.
        has_template: Whether the test could be put; not in a chat where the tokenizer has no chat template.
    """

    text: str = ""
    fired: str = ""
    has_template: bool = True


WildRow = EvalRow[WildTest, WildAnswer]


def wild_tests(case: EditCase) -> tuple[WildTest, ...]:
    """The tests of a case: its edit prompt and its paraphrases in every form.

    In a question and in a chat the edit prompt becomes `question_of` the request. Paraphrases stay as they are: they
    are questions in zsRE and WikiBigEdit, and in CounterFact sentences to be completed.
    """
    return tuple(_tests(case))


def _tests(case: EditCase) -> Iterator[WildTest]:
    request = case.request
    make = partial(WildTest, edit_id=request.edit_id, new=new_names(case), old=request.target_true)
    for form in get_args(WildForm):
        yield make(form=form, kind="rewrite", wording=request.filled if form == "completion" else question_of(request))
        yield from (make(form=form, kind="paraphrase", wording=text) for text in case.paraphrase_prompts)


def ask_wild(
    backbone: Backbone, edited: Edited, tests: Sequence[WildTest], *, new_tokens: int = NEW_TOKENS
) -> list[WildAnswer]:
    """Let a model answer tests. Where there is no chat template, those in a chat stay unasked.

    Args:
        backbone: The model, within its edits.
        edited: The edits in force; they say how a prompt is asked.
        tests: What to ask.
        new_tokens: The most tokens of an answer.

    Raises:
        ValueError: If a text is too long for the model.
    """
    put = {test: _prompt(backbone, test) for test in tests if test.form != "chat" or backbone.tokenizer.chat_template}
    written = continuations(backbone, list(put.values()), new_tokens, edited=edited, stops=STOPS)
    answers = {test: WildAnswer(text=new.text, fired=new.fired) for test, new in zip(put, written, strict=True)}
    return [answers.get(test, WildAnswer(has_template=False)) for test in tests]


def _prompt(backbone: Backbone, test: WildTest) -> str:
    if test.form == "chat":
        return chat_prompt(backbone, [test.wording])
    return QUESTION.format(test.wording) if test.form == "question" else test.wording


def answer_of(text: str) -> str:
    """The answer in what a model writes: all before the first stop, without the blanks around it.

    >>> answer_of(" Rome. It lies")
    'Rome'
    """
    return min((text.split(stop)[0] for stop in STOPS), key=len).strip()


def plain(text: str) -> str:
    """The form in which whole answers are compared: without case, punctuation, articles and extra blanks.

    A text of nothing else keeps them, so that the object "A" is not the empty answer.

    >>> plain(" The U.S.A.,  at last!")
    'usa at last'
    """
    return " ".join(_ARTICLES.sub(" ", canonical(text).translate(_MARKS)).split()) or canonical(text)


def holds(answer: str, names: Sequence[str]) -> bool:
    """Whether an answer holds one of some names as a whole, both in their `plain` form."""
    return any(find_all(plain(answer), plain(name)) for name in names)


def holds_old(answer: str, new: Sequence[str], old: str) -> bool:
    """Whether an answer holds the old object where no name of the new one stands, as "York" in "New York" does."""
    return holds(without_names(plain(answer), [plain(name) for name in new]), (old,))


def _is_new(test: WildTest, answer: WildAnswer) -> bool:
    return plain(answer_of(answer.text)) in map(plain, test.new)


def _holds_new(test: WildTest, answer: WildAnswer) -> bool:
    return holds(answer_of(answer.text), test.new)


def _holds_old(test: WildTest, answer: WildAnswer) -> bool:
    return holds_old(answer_of(answer.text), test.new, test.old)


def _is_right(judge: Judge, test: WildTest, answer: WildAnswer) -> bool:
    return judge(test.wording, test.new[0], answer_of(answer.text))


def _of(
    form: WildForm, kind: GenerationKind, judge: Callable[[WildTest, WildAnswer], bool], rows: Sequence[WildRow]
) -> Outcomes:
    own = (row for row in rows if row.test.form == form and row.test.kind == kind)
    return outcomes((row for row in own if row.bare.has_template), judge)


def _measures(judge: Judge | None = None) -> dict[str, Measure]:
    found: dict[str, Measure] = {}
    for form in get_args(WildForm):
        for kind in get_args(GenerationKind):
            of = partial(partial, _of, form, kind)
            found[f"{form}_{kind}_exact"] = Mean(of(_is_new))
            found[f"{form}_{kind}_contains"] = Mean(of(_holds_new))
            found[f"{form}_{kind}_old"] = Mean(of(_holds_old), higher_is_better=False)
            if judge is not None:
                found[f"{form}_{kind}_judged"] = Mean(of(partial(_is_right, judge)))
    return found


def judged_by(judge: Judge) -> Protocol[WildTest, WildAnswer, WildRow]:
    """The protocol with columns "judged" beside those of exact match, as published tables have them.

    Args:
        judge: Asked about both models' answers, one at a time, after they are written. Where metrics are pickled it has
            to be a function of a module.
    """
    headline = [name for exact in PROTOCOL.headline for name in (exact, f"{exact.removesuffix('exact')}judged")]
    return replace(PROTOCOL, measures=partial(_measures, judge), headline=tuple(headline))


PROTOCOL: Protocol[WildTest, WildAnswer, WildRow] = Protocol(
    name="wild",
    tests=wild_tests,
    ask=ask_wild,
    answer=WildAnswer,
    measures=_measures,
    headline=tuple(f"{form}_{kind}_exact" for form in get_args(WildForm) for kind in get_args(GenerationKind)),
)
