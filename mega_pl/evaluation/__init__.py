"""Asking the bare and the edited model the tests of a protocol, and scoring what they answer."""

from mega_pl.evaluation.batching import BARE
from mega_pl.evaluation.forcing import TeacherForced, teacher_forced
from mega_pl.evaluation.prediction import Prediction, predict
from mega_pl.evaluation.protocols import (
    CONFIDENCE,
    CONTEXT,
    CROSSLINGUAL,
    EASYEDIT,
    GENERATION,
    MEDIATED,
    PROTOCOLS,
    RIPPLEEDITS,
    ROME,
    SAKE,
    Protocol,
)
from mega_pl.evaluation.sake import Mode, ask, routing
from mega_pl.evaluation.trials import Trial
from mega_pl.evaluation.writing import Continuation, Sampling, continuations

__all__ = [
    "BARE",
    "CONFIDENCE",
    "CONTEXT",
    "CROSSLINGUAL",
    "EASYEDIT",
    "GENERATION",
    "MEDIATED",
    "PROTOCOLS",
    "RIPPLEEDITS",
    "ROME",
    "SAKE",
    "Continuation",
    "Mode",
    "Prediction",
    "Protocol",
    "Sampling",
    "TeacherForced",
    "Trial",
    "ask",
    "continuations",
    "predict",
    "routing",
    "teacher_forced",
]
