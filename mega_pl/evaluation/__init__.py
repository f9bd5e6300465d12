"""The tests of each protocol, asked of the bare and the edited model, and the scores of what they answer."""

from mega_pl.evaluation.prediction import Prediction, predict
from mega_pl.evaluation.protocol import Protocol
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
)
from mega_pl.evaluation.sake import Mode, ask, routing
from mega_pl.evaluation.trials import Trial

__all__ = [
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
    "Mode",
    "Prediction",
    "Protocol",
    "Trial",
    "ask",
    "predict",
    "routing",
]
