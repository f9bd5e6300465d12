"""One torchmetrics class a measure, grouped by protocol; a protocol never shares a column with another."""

from mega_pl.metrics.functional import bootstrap_interval, first_token_hit, first_token_hits, specificity_hits
from mega_pl.metrics.sake import (
    CI,
    CII,
    DI,
    DII,
    RS,
    SA,
    SAKE_METRICS,
    Acc,
    Gen,
    HitRate,
    Spec,
    SuccessRate,
    sake_metrics,
)
from mega_pl.metrics.scores import Row, Score, score_sake

__all__ = [
    "CI",
    "CII",
    "DI",
    "DII",
    "RS",
    "SA",
    "SAKE_METRICS",
    "Acc",
    "Gen",
    "HitRate",
    "Row",
    "Score",
    "Spec",
    "SuccessRate",
    "bootstrap_interval",
    "first_token_hit",
    "first_token_hits",
    "sake_metrics",
    "score_sake",
    "specificity_hits",
]
