"""Comparing editors: every editor on the same tests, in every mode, and going on where it stopped."""

import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from mega_pl import comparison
from mega_pl.backbone import Site, load, steer
from mega_pl.commands.compare import Block, blocks, draw, latex, markdown, overviews
from mega_pl.comparison import Result, compare_editors
from mega_pl.data import read_jsonl
from mega_pl.editors import Edited, Editor
from mega_pl.protocols import PROTOCOLS as EVERY
from mega_pl.protocols import Protocol, Score


@dataclass(frozen=True)
class Pushing(Editor):
    """Moves every prompt's stream by an amount that depends on how many edits are in force."""

    size: float
    name = "pushing"

    @contextmanager
    def edit(self, backbone, requests):
        push = torch.linspace(-1, 1, backbone.width) * self.size * len(requests)
        with steer(backbone.model, {Site(2, "resid_post"): lambda x: x + push}):
            yield Edited()


SAKE, EASYEDIT, GENERATION = EVERY["sake"], EVERY["easyedit"], EVERY["generation"]
EDITORS = {"still": Pushing(0.0), "pushing": Pushing(3.0)}
PROTOCOLS: list[Protocol[Any, Any, Any]] = [SAKE, EASYEDIT]


@pytest.fixture
def backbone(roomy_folder):
    return load(str(roomy_folder("gpt2")))


@pytest.fixture
def cases(edits_file):
    return read_jsonl(edits_file)


@pytest.fixture
def compared(backbone, cases, tmp_path):
    """`compared(modes, editors)` compares and returns the results."""

    def run(modes, editors=EDITORS):
        return list(compare_editors(backbone, "own", cases, editors, PROTOCOLS, modes, tmp_path / "answers"))

    return run


def test_every_editor_is_judged_in_every_mode_under_every_protocol(compared):
    found = [(r.mode, r.edits, r.editor, r.protocol) for r in compared(["single", "together"])]
    assert found == [
        (mode, 4, editor, protocol)
        for mode in ("single", "together")
        for editor in EDITORS
        for protocol in ("sake", "easyedit")
    ]


def test_sequential_edits_are_judged_after_one_ten_a_hundred_and_all(compared):
    assert [r.edits for r in compared(["sequential"], {"still": Pushing(0.0)})] == [1, 1, 4, 4]


def test_an_editor_that_does_nothing_scores_as_the_bare_model(compared):
    for result in compared(["single", "together"], {"still": Pushing(0.0)}):
        for score in result.scores.values():
            if score.n:
                assert score.value == score.bare


def test_rows_are_those_of_a_loop_over_edits(compared, backbone, cases):
    editor = EDITORS["pushing"]
    single = next(r for r in compared(["single"]) if r.editor == "pushing" and r.protocol == "sake")
    wanted = []
    for case in cases:
        bare = SAKE.bare(backbone, [case])
        with editor.edit(backbone, [case.request]) as edited:
            wanted += [row.prediction for row in SAKE.rows(backbone, edited, [case], bare)]
    assert [row["prediction"] for row in single.rows] == wanted
    together = next(r for r in compared(["together"]) if r.editor == "pushing" and r.protocol == "sake")
    assert [row["prediction"] for row in together.rows] != wanted  # control: four pushes are not one


def test_a_comparison_goes_on_where_it_stopped(compared, monkeypatch):
    monkeypatch.setattr(comparison, "CHUNK", 2)
    whole = compared(["single"])

    class Broken(Pushing):
        @contextmanager
        def edit(self, backbone, requests):
            raise AssertionError("asked again")
            yield

    broken = {name: Broken(editor.size) for name, editor in EDITORS.items()}
    monkeypatch.setattr(Broken, "__repr__", lambda self: f"Pushing(size={self.size})")
    monkeypatch.setattr(Pushing, "__repr__", lambda self: f"Pushing(size={self.size})")
    again = compared(["single"], broken)
    assert json.dumps([r.rows for r in again]) == json.dumps([r.rows for r in whole])
    with pytest.raises(AssertionError, match="asked again"):  # control: other settings have to be asked
        compared(["single"], {"pushing": Broken(1.0)})


def test_no_edits_are_refused(backbone, tmp_path):
    with pytest.raises(ValueError, match="`data` must hold at least one edit, but 'own' has none"):
        list(compare_editors(backbone, "own", [], EDITORS, PROTOCOLS, ["single"], tmp_path))


def test_tables_show_the_bare_model_first_and_every_method(compared, backbone):
    results = compared(["together"], {"pushing": EDITORS["pushing"], "still": EDITORS["still"]})
    tables = blocks([(backbone, result) for result in results])
    assert [table.title.split(": ")[1] for table in tables] == ["4 edits, together"] * 2
    assert list(tables[0].rows) == ["bare model", "pushing", "still"]
    assert tables[0].rows["still"] == pytest.approx(tables[0].rows["bare model"], nan_ok=True)
    assert tables[0].rows["pushing"] != tables[0].rows["bare model"]
    pushing = next(r for r in results if r.editor == "pushing" and r.protocol == "sake")
    assert tables[0].rows["bare model"] == pytest.approx([s.bare for s in pushing.scores.values()], nan_ok=True)
    assert markdown(tables[0]).splitlines()[2].startswith("| bare model | ")
    assert r"\toprule" in latex(tables[0])
    assert "_" not in latex(tables[1]).replace(r"\_", "").split("\n", 1)[1]
    assert len(draw(tables).axes) == 2


def test_an_overview_has_the_headlines_of_all_protocols(compared, backbone):
    results = compared(["together"])
    (table,) = overviews([(backbone, result) for result in results])
    assert table.title.endswith("own: 4 edits, together")
    sake = [f"sake {name}" for name in ("acc", "gen", "spec", "di", "dii", "ci", "cii", "rs", "sa", "average")]
    assert table.columns == (*sake, *(f"easyedit {name}" for name in EASYEDIT.headline))
    assert list(table.rows) == ["bare model", *EDITORS]
    for result in results:
        values, bare = table.rows[result.editor], table.rows["bare model"]
        for column, value, before in zip(table.columns, values, bare, strict=True):
            protocol, name = column.split()
            if protocol == result.protocol:
                score = result.scores[name]
                assert (value, before) == pytest.approx((score.value, score.bare), nan_ok=True)


def test_tables_know_which_columns_are_better_low(backbone):
    scores = dict.fromkeys(("rewrite_relapse", "rewrite_alias_sentence"), Score(0.2, 5, (0.1, 0.3), 0.0))
    result = Result("own", "single", 5, "still", "generation", scores, [])
    low = {"rewrite_relapse", "paraphrase_relapse"}
    assert blocks([(backbone, result)])[0].lower_is_better == low
    sake = replace(result, protocol="sake", scores={"acc": scores["rewrite_relapse"]})
    full = replace(result, scores=dict.fromkeys(GENERATION.headline, scores["rewrite_relapse"]))
    (table,) = overviews([(backbone, full), (backbone, sake)])
    assert table.lower_is_better == {f"generation {name}" for name in low}


def test_colours_of_the_figure():
    columns = ("sake acc", "generation rewrite_relapse", "rome fluency", "sake cii")
    low = frozenset({"generation rewrite_relapse", "context changed"})
    block = Block("t", columns, {"bare model": (0.2, 0.2, 5.1, float("nan"))}, (1, 1, 1, 0), low)
    image = draw([block]).axes[0].images[0].get_array()
    assert image is not None
    assert image.tolist() == [[0.2, 0.8, 0.5, 0.5]]
