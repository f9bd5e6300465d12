"""Every protocol's measures as live metrics: batches cut anywhere, several processes, and single mistakes in a row."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from mega_pl.protocols import PROTOCOLS, Score
from tests.protocols import (
    test_confidence,
    test_context_protocol,
    test_crosslingual,
    test_easyedit_protocol,
    test_general,
    test_generation_protocol,
    test_linearity,
    test_mediated,
    test_persistence,
    test_relation_specificity,
    test_residue,
    test_ripple_protocol,
    test_rome_protocol,
    test_sake_scores,
    test_wild,
)


def context_rows(seed: int) -> list[Any]:
    draw = random.Random(seed)
    return [test_context_protocol.random_row(draw) for _ in range(200)]


ROWS: dict[str, Callable[[int], list[Any]]] = {
    "confidence": partial(test_confidence.hand_made, edits=6),
    "context": context_rows,
    "crosslingual": test_crosslingual.random_rows,
    "easyedit": test_easyedit_protocol.random_rows,
    "general": test_general.random_rows,
    "generation": partial(test_generation_protocol.random_rows, edits=90),
    "linearity": test_linearity.random_rows,
    "mediated": test_mediated.random_rows,
    "persistence": test_persistence.random_rows,
    "relation_specificity": test_relation_specificity.random_rows,
    "residue": test_residue.random_rows,
    "rippleedits": test_ripple_protocol.random_rows,
    "rome": test_rome_protocol.random_rows,
    "sake": test_sake_scores.random_rows,
    "wild": test_wild.random_rows,
}
EVERY = pytest.mark.parametrize("name", ROWS)


def assert_same(found: dict[str, Score], wanted: dict[str, Score]) -> None:
    assert list(found) == list(wanted)
    for column, score in wanted.items():
        assert found[column].n == score.n, column
        numbers = [(s.value, s.bare, *s.ci95) for s in (found[column], score)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-12, nan_ok=True), column


def test_every_protocol_has_rows() -> None:
    assert set(ROWS) == set(PROTOCOLS)
    for name, make in ROWS.items():
        scores = PROTOCOLS[name].score(make(1))
        assert all(score.n for score in scores.values()), name  # so that nothing below is told by nan alone


@EVERY
def test_batches_may_be_cut_anywhere(name: str) -> None:
    protocol, rows = PROTOCOLS[name], ROWS[name](1)
    whole = protocol.score(rows, seed=3)
    for size in (1, 7):
        metrics = protocol.metrics()
        for i in range(0, len(rows), size):
            metrics.update(rows[i : i + size])
        assert_same(protocol.scores(metrics, seed=3), whole)
        values = metrics.compute()
        assert set(values) == set(whole)
        assert {column: value.item() for column, value in values.items()} == pytest.approx(
            {column: score.value for column, score in whole.items()}, abs=1e-12
        )


@EVERY
def test_a_collection_lives_as_torchmetrics_has_it(name: str) -> None:
    protocol, rows = PROTOCOLS[name], ROWS[name](2)
    metrics, whole = protocol.metrics(), protocol.score(rows)
    assert not metrics._enable_compute_groups  # which would merge measures whose first batches agree
    metrics.update(rows)
    assert_same(protocol.scores(pickle.loads(pickle.dumps(metrics))), whole)
    metrics.reset()
    assert all(score.n == 0 for score in protocol.scores(metrics).values())
    metrics.update(rows)
    assert_same(protocol.scores(metrics), whole)


def answered_by_the_other(name: str, row: Any) -> Any:
    """A row in which the edited model says what the bare one says, and where it can be the other way round."""
    if name == "sake":
        pairs = {"prediction": "bare_prediction", "new_probability": "bare_new", "true_probability": "bare_true"}
        both = pairs | {bare: edited for edited, bare in pairs.items()}
        return replace(row, **{to: getattr(row, source) for to, source in both.items()})
    if name == "context":  # where the bare model is asked more
        return replace(row, edited=replace(row.edited, prediction=row.bare.prediction))
    if name == "rippleedits":
        return replace(row, edited=replace(row.edited, texts=row.bare.texts))
    return replace(row, edited=row.bare, bare=row.edited)


SYMMETRIC = {
    "context": {"fired"},
    "easyedit": {"relation_specificity_acc", "forgetfulness_acc", "locality_acc"},
    "general": {"unchanged", "unchanged_question", "unchanged_text"},
    "linearity": {"faithfulness", "constant"},
    "mediated": {"description_other", "renaming_other", "aside"},
    "relation_specificity": {"unchanged"},
    "residue": {"chance"},
}
"""The columns that do not tell one model from the other by these fields."""


@EVERY
def test_both_models_may_not_be_mixed_up(name: str) -> None:
    rows = ROWS[name](3)
    right = PROTOCOLS[name].score(rows)
    wrong = PROTOCOLS[name].score([answered_by_the_other(name, row) for row in rows])
    same = {column for column, score in right.items() if wrong[column].value == score.value}
    assert same == SYMMETRIC.get(name, set())


def take_part(rank: int, folder: str) -> dict[str, Any]:
    """Be one of two processes: update with a share, and return what the metrics of both say."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        found = {}
        for name, make in ROWS.items():
            metrics, rows = PROTOCOLS[name].metrics(), make(4)
            share = rows[: len(rows) // 3] if rank == 0 else rows[len(rows) // 3 :]
            for i in range(0, len(share), 5):
                metrics.update(share[i : i + 5])
            again = [PROTOCOLS[name].scores(metrics, seed=1) for _ in range(2)]
            assert again[0] == again[1]  # the states are a process's own again
            empty = PROTOCOLS[name].metrics()
            if rank == 1:
                empty.update(rows)
            found[name] = [
                {column: (s.value, s.n, *s.ci95, s.bare) for column, s in scores.items()}
                for scores in (again[0], PROTOCOLS[name].scores(empty, seed=1))
            ]
    finally:
        dist.destroy_process_group()
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    return found


def test_two_real_processes_say_what_one_says(tmp_path: Path) -> None:
    other = mp.get_context("spawn").Process(target=take_part, args=(1, str(tmp_path)))
    other.start()
    take_part(0, str(tmp_path))
    other.join()
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text("utf-8"))
        for name, make in ROWS.items():
            whole = PROTOCOLS[name].score(make(4), seed=1)
            for scores in found[name]:  # each with a share; all with one of them
                assert list(scores) == list(whole)
                for column, s in whole.items():
                    wanted = (s.value, s.n, *s.ci95, s.bare)
                    assert scores[column] == pytest.approx(wanted, abs=1e-12, nan_ok=True), (name, column)
