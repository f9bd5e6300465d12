"""The protocols in one shape, so that several methods can be compared under several of them."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mega_pl.asking import BARE, Continuation, Edited, NextToken, TeacherForced
from mega_pl.backbone import Backbone
from mega_pl.data.sake import Test, sake_tests
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
from mega_pl.evaluation.persistence import PERSISTENCE
from mega_pl.evaluation.protocol import Protocol
from mega_pl.evaluation.relation_specificity import RELATION_SPECIFICITY
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
from mega_pl.evaluation.wild import WILD
from mega_pl.metrics import Row, score_sake

T = TypeVar("T")
A = TypeVar("A")


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
    for protocol in (
        *(SAKE, ROME, EASYEDIT, RIPPLEEDITS, GENERATION, MEDIATED, CONFIDENCE, CROSSLINGUAL, CONTEXT),
        WILD,
        RELATION_SPECIFICITY,
        PERSISTENCE,
    )
}
"""The protocols by name."""
