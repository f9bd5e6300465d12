"""Every protocol in the shape that a comparison of methods goes through."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from statistics import fmean
from typing import Any

import pytest

from mega_pl import protocols
from mega_pl.asking import BARE
from mega_pl.protocols import PROTOCOLS, EvalRow, Mean, Protocol, get_protocol

CONFIDENCE = [f"{kind}_{name}" for name in ("mean", "variation") for kind in ("prefix", "surface", "paraphrase")]
COLUMNS: dict[str, list[str]] = {
    "sake": ["acc", "gen", "spec", "di", "dii", "ci", "cii", "rs", "sa", "average"],
    "rome": [
        *("efficacy_score", "efficacy_magnitude", "paraphrase_score", "paraphrase_magnitude"),
        *("neighborhood_score", "neighborhood_magnitude", "attribute_score", "attribute_magnitude", "score"),
        *("rewrite_exact", "paraphrase_exact", "neighborhood_exact", "fluency"),
    ],
    "easyedit": [
        *("rewrite_acc", "rephrase_acc", "subject_aliasing_acc", "reasoning_acc", "logical_generalization_acc"),
        *("portability_acc", "relation_specificity_acc", "forgetfulness_acc", "locality_acc"),
    ],
    "rippleedits": [
        *("edit_success", "relation_specificity", "logical_generalization", "subject_aliasing", "compositionality_i"),
        *("compositionality_ii", "forgetfulness", "average"),
    ],
    "generation": [
        f"{kind}_{name}"
        for kind in ("rewrite", "paraphrase")
        for name in ("exact_start", "alias_start", "exact_sentence", "alias_sentence", "relapse")
    ],
    "mediated": [
        *("description", "description_followed", "renaming", "renaming_followed", "description_other"),
        *("renaming_other", "aside"),
    ],
    "confidence": ["plain", *CONFIDENCE, "separation", "log_odds", "agreement", "alias_gap"],
    "crosslingual": [
        f"{language}_{name}" for language in ("de", "fr", "zh") for name in ("success", "exact", "consistency")
    ],
    "context": [
        *("acc", "acc_neutral", "acc_fact", "acc_old_fact", "acc_chat", "acc_pronoun", "changed"),
        *("changed_other_subject", "changed_same_subject", "changed_direct", "changed_neutral", "changed_chat"),
        *("changed_true", "changed_new", "fired", "stale"),
    ],
    "linearity": ["faithfulness", "constant", "success", "correlation"],
    "relation_specificity": ["unchanged", "kept", "fired"],
    "general": ["unchanged", "unchanged_question", "unchanged_text", "divergence", "fired"],
    "persistence": [
        *("first", "last", "sure"),
        *(f"{name}{turn}" for turn in ("", "_1", "_3", "_10") for name in ("kept", "flipped")),
    ],
    "residue": [
        *(
            f"{name}_{depth}"
            for depth in ("quarter", "half", "three_quarters", "last")
            for name in ("old", "new", "ahead")
        ),
        "chance",
    ],
    "wild": [
        f"{form}_{kind}_{name}"
        for form in ("completion", "question", "chat")
        for kind in ("rewrite", "paraphrase")
        for name in ("exact", "contains", "old")
    ],
}
"""The columns in the order of `metrics.json`."""

LOWER = {
    "generation": {"rewrite_relapse", "paraphrase_relapse"},
    "confidence": {"prefix_variation", "surface_variation", "paraphrase_variation", "alias_gap"},
    "context": {"fired", *(column for column in COLUMNS["context"] if column.startswith("changed"))},
    "relation_specificity": {"fired"},
    "general": {"divergence", "fired"},
    "persistence": {"flipped", "flipped_1", "flipped_3", "flipped_10"},
    "residue": {"old_three_quarters", "old_last", "ahead_three_quarters", "ahead_last"},
    "wild": {column for column in COLUMNS["wild"] if column.endswith("old")},
}
"""The columns that are better low."""

AnyProtocol = Protocol[Any, Any, Any]
ASKED = [name for name in PROTOCOLS if name not in ("linearity", "residue")]  # which need more than two cases
EVERY = pytest.mark.parametrize("protocol", [PROTOCOLS[name] for name in ASKED], ids=ASKED)


def test_a_protocol_is_a_module_with_columns_of_its_own():
    assert set(PROTOCOLS) == set(COLUMNS)
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        scores = protocol.score([])
        assert list(scores) == COLUMNS[name]
        assert all(score.n == 0 for score in scores.values())
        assert set(protocol.headline) <= set(scores)
        assert protocol.lower_is_better == LOWER.get(name, set())


NEW = """
from mega_pl.protocols.generation import PROTOCOL as GENERATION
from dataclasses import replace

PROTOCOL = replace(GENERATION, name="invented")
"""


def test_a_new_protocol_is_a_new_file(tmp_path, monkeypatch):
    (tmp_path / "invented.py").write_text(NEW, encoding="utf-8")
    (tmp_path / "helper.py").write_text("THING = 1\n", encoding="utf-8")
    monkeypatch.setattr(protocols, "__path__", [*protocols.__path__, str(tmp_path)])
    try:
        found = protocols.discover()
        assert set(found) == {*PROTOCOLS, "invented"}
        assert found["invented"].name == "invented"
    finally:
        for name in ("invented", "helper"):
            sys.modules.pop(f"mega_pl.protocols.{name}", None)


def test_an_unknown_protocol_is_refused():
    assert get_protocol("rome") is PROTOCOLS["rome"]
    with pytest.raises(ValueError, match=r"a protocol must be one of confidence, context, .*, but got 'roem'"):
        get_protocol("roem")


@EVERY
def test_methods_are_compared_on_one_set_of_bare_answers(backbone, cases, editors, protocol: AnyProtocol):
    protocol = protocol.prepare(backbone, cases)
    bare = protocol.bare(backbone, cases)
    digest, rows, scores = backbone.digest(), {}, {}
    for editor in editors:
        with editor.edit(backbone, [case.request for case in cases]) as edited:
            rows[editor.name] = protocol.rows(backbone, edited, cases, bare)
        scores[editor.name] = protocol.score(rows[editor.name])
        assert len(rows[editor.name]) == len(bare) == sum(len(protocol.tests(case)) for case in cases)
        assert list(scores[editor.name]) == COLUMNS[protocol.name]
        lines = [json.dumps(asdict(row), allow_nan=False) for row in rows[editor.name]]
        assert json.loads(lines[0])["test"]["edit_id"] == "france"
    assert backbone.digest() == digest
    assert rows["idle"] != rows["shaken"] != rows["in-context"]
    for name, score in scores["idle"].items():
        # a divergence is 0 up to what rounding differs between batches
        assert abs(score.value - score.bare) < 1e-6 or score.n == 0, name
        for other in ("shaken", "in-context"):  # the bare model is the same one wherever the same tests are kept
            if protocol.name != "sake" and scores[other][name].n == score.n:
                assert scores[other][name].bare == score.bare or score.n == 0, name
    if protocol.name != "sake":
        assert all(isinstance(row, EvalRow) for of_method in rows.values() for row in of_method)


@EVERY
def test_rows_say_what_each_answer_is_worth(backbone, cases, editors, protocol: AnyProtocol):
    protocol = protocol.prepare(backbone, cases)
    with editors[1].edit(backbone, [case.request for case in cases]) as edited:
        rows = protocol.rows(backbone, edited, cases, protocol.bare(backbone, cases))
    outcomes = [protocol.outcomes(row) for row in rows]
    json.dumps(outcomes, allow_nan=False)
    scores, checked = protocol.score(rows), 0
    for name, measure in protocol.measures().items():
        if not isinstance(measure, Mean) or measure.within or measure.deferred or not scores[name].n:
            continue
        worth: dict[str, list[float]] = {}
        for row, of_row in zip(rows, outcomes, strict=True):
            if name in of_row:
                worth.setdefault(row.test.edit_id if measure.over == "edits" else "", []).append(of_row[name])
        assert fmean(map(fmean, worth.values())) == pytest.approx(scores[name].value)
        checked += 1
    assert checked or protocol.name in ("confidence", "linearity", "residue")  # over more than a row


@EVERY
def test_cases_together_are_cases_alone(backbone, cases, editors, protocol: AnyProtocol):
    protocol = protocol.prepare(backbone, cases)
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
