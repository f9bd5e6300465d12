"""One torchmetrics class a measure, grouped by protocol; a protocol never shares a column with another.

The measures of ROME, EasyEdit, RippleEdits and of free generation are in modules of those names.
"""

from mega_pl.metrics.easyedit import easyedit_metrics
from mega_pl.metrics.functional import (
    bootstrap_interval,
    edit_means,
    first_token_hit,
    first_token_hits,
    harmonic_mean,
    specificity_hits,
)
from mega_pl.metrics.generation import generation_metrics
from mega_pl.metrics.means import MacroMean
from mega_pl.metrics.rippleedits import rippleedits_metrics
from mega_pl.metrics.rome import rome_metrics
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
from mega_pl.metrics.sake_scores import Row, common_rows, literal_sa, score_sake
from mega_pl.metrics.scores import Score

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
    "MacroMean",
    "Row",
    "Score",
    "Spec",
    "SuccessRate",
    "bootstrap_interval",
    "common_rows",
    "easyedit_metrics",
    "edit_means",
    "first_token_hit",
    "first_token_hits",
    "generation_metrics",
    "harmonic_mean",
    "literal_sa",
    "rippleedits_metrics",
    "rome_metrics",
    "sake_metrics",
    "score_sake",
    "specificity_hits",
]
