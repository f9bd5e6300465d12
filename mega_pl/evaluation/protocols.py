"""The protocols in one shape, so that several methods can be compared under several of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mega_pl.asking import BARE, Continuation, Edited, NextToken, TeacherForced
from mega_pl.backbone import Backbone
from mega_pl.data.sake import Test, sake_tests
from mega_pl.edits import EditCase
from mega_pl.errors import MegaValueError
from mega_pl.evaluation.confidence import ConfidenceTest, ask_confidence, confidence_tests, score_confidence
from mega_pl.evaluation.context import (
    CHANGED,
    ContextAnswer,
    ContextTest,
    ContextTrial,
    ask_context,
    ask_context_bare,
    context_tests,
    score_context,
)
from mega_pl.evaluation.crosslingual import (
    CrosslingualAnswer,
    CrosslingualTest,
    ask_crosslingual,
    crosslingual_tests,
    score_crosslingual,
)
from mega_pl.evaluation.easyedit import EasyEditTest, ask_easyedit, easyedit_tests, score_easyedit
from mega_pl.evaluation.generation import GenerationTest, ask_generation, generation_tests, score_generation
from mega_pl.evaluation.mediated import MediatedTest, ask_mediated, mediated_tests, score_mediated
from mega_pl.evaluation.rippleedits import (
    RippleAnswer,
    RippleQuestion,
    ask_ripple,
    ask_ripple_bare,
    ripple_tests,
    score_ripple,
)
from mega_pl.evaluation.rome import RomeAnswer, RomeTest, ask_rome, rome_tests, score_rome
from mega_pl.evaluation.sake import Answer, ask_bare, ask_edited, sake_row
from mega_pl.evaluation.trials import Trial
from mega_pl.metrics import Row, Score, score_sake

T = TypeVar("T")
A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Protocol(Generic[T, A, R]):
    """A way to judge edits, with columns of its own.

        bare = protocol.bare(backbone, cases)
        with editor.edit(backbone, requests) as edited:
            rows = protocol.rows(backbone, edited, cases, bare)
        scores = protocol.score(rows)

    Args:
        name: The protocol in files and tables.
        tests: The tests of a case; none where the case lacks what the protocol asks.
        ask_bare: Asks tests of the bare model, conditions included.
        ask: Asks tests of a model with edits in force.
        answer: What is asked gives, a dataclass of strings, numbers and tuples of them.
        row: Makes a row of a test and of what the bare and the edited model answer; `dataclasses.asdict` of it is
            ready for JSON.
        score: Makes scores of rows.
        headline: The columns that stand beside other protocols' in one table; all where none are named.
        lower_is_better: The columns that are better low.
    """

    name: str
    tests: Callable[[EditCase], Sequence[T]]
    ask_bare: Callable[[Backbone, Sequence[T]], list[A]]
    ask: Callable[[Backbone, Edited, Sequence[T]], list[A]]
    answer: type[A]
    row: Callable[[T, A, A], R]
    score: Callable[[Sequence[R]], dict[str, Score]]
    headline: tuple[str, ...] = ()
    lower_is_better: tuple[str, ...] = ()

    def bare(self, backbone: Backbone, cases: Sequence[EditCase]) -> list[A]:
        """What the bare model answers to the tests of cases; the same for every method."""
        return self.ask_bare(backbone, self._all(cases))

    def rows(self, backbone: Backbone, edited: Edited, cases: Sequence[EditCase], bare: Sequence[A]) -> list[R]:
        """Ask the tests of cases of the edited model.

        Args:
            backbone: The model, within its edits.
            edited: The edits in force.
            cases: What to ask about.
            bare: What `bare` gave for these cases.

        Returns:
            A row for each test.

        Raises:
            ValueError: If `bare` belongs to other cases.
        """
        tests = self._all(cases)
        if len(bare) != len(tests):
            raise MegaValueError(f"`bare` must hold an answer for each of {len(tests)} tests, but got {len(bare)}.")
        return [self.row(*columns) for columns in zip(tests, bare, self.ask(backbone, edited, tests), strict=True)]

    def _all(self, cases: Sequence[EditCase]) -> list[T]:
        return [test for case in cases for test in self.tests(case)]


def _bare(ask: Callable[[Backbone, Edited, Sequence[T]], list[A]]) -> Callable[[Backbone, Sequence[T]], list[A]]:
    return lambda backbone, tests: ask(backbone, BARE, tests)


SAKE: Protocol[Test, Answer, Row] = Protocol(
    name="sake", tests=sake_tests, ask_bare=ask_bare, ask=ask_edited, answer=Answer, row=sake_row, score=score_sake
)
ROME: Protocol[RomeTest, RomeAnswer, Trial[RomeTest, RomeAnswer]] = Protocol(
    name="rome",
    tests=rome_tests,
    ask_bare=_bare(ask_rome),
    ask=ask_rome,
    answer=RomeAnswer,
    row=Trial,
    score=score_rome,
    headline=("score", "neighborhood_score", "fluency"),
)
EASYEDIT: Protocol[EasyEditTest, TeacherForced, Trial[EasyEditTest, TeacherForced]] = Protocol(
    name="easyedit",
    tests=easyedit_tests,
    ask_bare=_bare(ask_easyedit),
    ask=ask_easyedit,
    answer=TeacherForced,
    row=Trial,
    score=score_easyedit,
    headline=("rewrite_acc", "rephrase_acc", "portability_acc", "locality_acc"),
)
RIPPLEEDITS: Protocol[RippleQuestion, RippleAnswer, Trial[RippleQuestion, RippleAnswer]] = Protocol(
    name="rippleedits",
    tests=ripple_tests,
    ask_bare=ask_ripple_bare,
    ask=ask_ripple,
    answer=RippleAnswer,
    row=Trial,
    score=score_ripple,
    headline=("average",),
)
GENERATION: Protocol[GenerationTest, Continuation, Trial[GenerationTest, Continuation]] = Protocol(
    name="generation",
    tests=generation_tests,
    ask_bare=_bare(ask_generation),
    ask=ask_generation,
    answer=Continuation,
    row=Trial,
    score=score_generation,
    headline=("rewrite_alias_sentence", "paraphrase_alias_sentence", "rewrite_relapse"),
    lower_is_better=("rewrite_relapse", "paraphrase_relapse"),
)
MEDIATED: Protocol[MediatedTest, NextToken, Trial[MediatedTest, NextToken]] = Protocol(
    name="mediated",
    tests=mediated_tests,
    ask_bare=_bare(ask_mediated),
    ask=ask_mediated,
    answer=NextToken,
    row=Trial,
    score=score_mediated,
)
CONFIDENCE: Protocol[ConfidenceTest, NextToken, Trial[ConfidenceTest, NextToken]] = Protocol(
    name="confidence",
    tests=confidence_tests,
    ask_bare=_bare(ask_confidence),
    ask=ask_confidence,
    answer=NextToken,
    row=Trial,
    score=score_confidence,
    lower_is_better=("prefix_variation", "surface_variation", "paraphrase_variation", "alias_gap"),
)
CROSSLINGUAL: Protocol[CrosslingualTest, CrosslingualAnswer, Trial[CrosslingualTest, CrosslingualAnswer]] = Protocol(
    name="crosslingual",
    tests=crosslingual_tests,
    ask_bare=_bare(ask_crosslingual),
    ask=ask_crosslingual,
    answer=CrosslingualAnswer,
    row=Trial,
    score=score_crosslingual,
)
CONTEXT: Protocol[ContextTest, ContextAnswer, ContextTrial] = Protocol(
    name="context",
    tests=context_tests,
    ask_bare=ask_context_bare,
    ask=ask_context,
    answer=ContextAnswer,
    row=Trial,
    score=score_context,
    headline=("acc", "acc_pronoun", "changed", "changed_same_subject", "fired"),
    lower_is_better=("changed", *(f"changed_{kind}" for kind in CHANGED), "fired"),
)

PROTOCOLS: dict[str, Protocol[Any, Any, Any]] = {
    protocol.name: protocol
    for protocol in (SAKE, ROME, EASYEDIT, RIPPLEEDITS, GENERATION, MEDIATED, CONFIDENCE, CROSSLINGUAL, CONTEXT)
}
"""The protocols by name."""
