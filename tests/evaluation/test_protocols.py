"""Every protocol in the shape that a comparison of methods goes through."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from mega_pl.asking import BARE
from mega_pl.evaluation import PROTOCOLS, SAKE, Protocol, Trial
from mega_pl.metrics import (
    easyedit_metrics,
    generation_metrics,
    rippleedits_metrics,
    rome_metrics,
    sake_metrics,
)
from mega_pl.metrics.confidence import confidence_metrics
from mega_pl.metrics.crosslingual import crosslingual_metrics
from mega_pl.metrics.mediated import mediated_metrics

COLUMNS = {
    "sake": {*sake_metrics().keys(), "average"},
    "rome": {*rome_metrics().keys(), "reference_score"},
    "easyedit": set(easyedit_metrics().keys()),
    "rippleedits": {*rippleedits_metrics().keys(), "average"},
    "generation": set(generation_metrics().keys()),
    "mediated": set(mediated_metrics().keys()),
    "confidence": set(confidence_metrics().keys()),
    "crosslingual": set(crosslingual_metrics().keys()),
    "context": {
        *("acc", "acc_neutral", "acc_fact", "acc_old_fact", "acc_chat", "acc_pronoun", "fired", "stale", "changed"),
        *("changed_other_subject", "changed_same_subject", "changed_direct", "changed_neutral", "changed_chat"),
        *("changed_true", "changed_new"),
    },
    "wild": {
        f"{form}_{kind}_{measure}"
        for form in ("completion", "question", "chat")
        for kind in ("rewrite", "paraphrase")
        for measure in ("exact", "contains", "old")
    },
    "relation_specificity": {"unchanged", "kept", "fired"},
    "persistence": {
        *("first", "last", "sure", "kept", "flipped"),
        *(f"{name}_{turn}" for name in ("kept", "flipped") for turn in (1, 3, 10)),
    },
}
AnyProtocol = Protocol[Any, Any, Any]
EVERY = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)


def test_each_has_columns_of_their_own():
    assert list(PROTOCOLS) == list(COLUMNS)
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert set(protocol.score([])) == COLUMNS[name]
        assert all(score.n == 0 for score in protocol.score([]).values())
        assert {*protocol.headline, *protocol.lower_is_better} <= set(protocol.score([]))


@pytest.mark.parametrize(("name", "metrics"), [("generation", generation_metrics), ("confidence", confidence_metrics)])
def test_protocols_and_metric_classes_agree_on_what_is_better_low(name, metrics):
    low = {column for column, metric in metrics().items() if not metric.higher_is_better}
    assert set(PROTOCOLS[name].lower_is_better) == low
    assert low


@EVERY
def test_methods_are_compared_on_one_set_of_bare_answers(backbone, cases, editors, protocol: AnyProtocol):
    bare = protocol.bare(backbone, cases)
    digest, rows, scores = backbone.digest(), {}, {}
    for editor in editors:
        with editor.edit(backbone, [case.request for case in cases]) as edited:
            rows[editor.name] = protocol.rows(backbone, edited, cases, bare)
        scores[editor.name] = protocol.score(rows[editor.name])
        assert len(rows[editor.name]) == len(bare) == sum(len(protocol.tests(case)) for case in cases)
        assert set(scores[editor.name]) == COLUMNS[protocol.name]
        lines = [json.dumps(asdict(row), allow_nan=False) for row in rows[editor.name]]
        assert json.loads(lines[0])["test"]["edit_id"] == "france"
    assert backbone.digest() == digest
    assert rows["idle"] != rows["shaken"] != rows["in-context"]
    for name, score in scores["idle"].items():
        assert score.value == score.bare or score.n == 0, name
        for other in ("shaken", "in-context"):  # the bare model is the same one wherever the same tests are kept
            if protocol is not SAKE and scores[other][name].n == score.n:
                assert scores[other][name].bare == score.bare or score.n == 0, name
    if protocol is not SAKE:
        assert all(isinstance(row, Trial) for of_method in rows.values() for row in of_method)


@EVERY
def test_cases_together_are_cases_alone(backbone, cases, editors, protocol: AnyProtocol):
    together = protocol.bare(backbone, cases)
    alone = [answer for case in cases for answer in protocol.bare(backbone, [case])]
    assert len(together) == len(alone)
    for pair in zip(together, alone, strict=True):
        for name, (a, b) in {name: [asdict(answer)[name] for answer in pair] for name in asdict(pair[0])}.items():
            numbers = isinstance(a, float) or (isinstance(a, tuple) and any(isinstance(item, float) for item in a))
            assert a == (pytest.approx(b, rel=1e-4, abs=1e-5) if numbers else b), name


def test_refusals(backbone, cases):
    protocol = PROTOCOLS["easyedit"]
    bare = protocol.bare(backbone, cases)
    with pytest.raises(ValueError, match=r"`bare` must hold an answer for each of \d+ tests, but got 1"):
        protocol.rows(backbone, BARE, cases, bare[:1])
