"""Comparing editors: every editor on the same tests, in every mode, and going on where it stopped."""

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import pytest
import torch
from filelock import FileLock
from matplotlib.patches import Rectangle

from mega_pl.backbone import Site, load, steer
from mega_pl.compare import Block, blocks, compare_editors, engine, heat_maps, latex, markdown, overviews, report
from mega_pl.compare.engine import Result, counts
from mega_pl.data import read
from mega_pl.editors import Edited, Editor, Mega
from mega_pl.editors.protocol import WeightEditor, Writing
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
    return read(edits_file)


@pytest.fixture
def compared(backbone, cases, tmp_path):
    """`compared(modes, editors)` compares and returns the results."""

    def run(modes, editors=EDITORS):
        return list(compare_editors(backbone, "own", cases, editors, PROTOCOLS, modes, tmp_path / "answers"))

    return run


def test_every_editor_is_judged_in_every_mode_under_every_protocol(compared):
    found = [(r.mode, r.edits, r.editor, r.protocol) for r in compared(["single", "batch"])]
    assert found == [
        (mode, 4, editor, protocol)
        for mode in ("single", "batch")
        for editor in EDITORS
        for protocol in ("sake", "easyedit")
    ]


@pytest.mark.parametrize("mode", ["growing", "sequential"])
def test_edits_that_grow_are_judged_at_one_ten_a_hundred_and_all(compared, mode):
    assert [r.edits for r in compared([mode], {"still": Pushing(0.0)})] == [1, 1, 4, 4]
    assert [counts(n) for n in (1, 9, 10, 11, 100, 3000)] == [
        [1],
        [1, 9],
        [1, 10],
        [1, 10, 11],
        [1, 10, 100],
        [1, 10, 100, 1000, 3000],
    ]


def test_without_an_order_of_its_own_an_editor_is_judged_in_sequence_as_in_growth(compared):
    growing, sequential = (compared([mode], {"pushing": EDITORS["pushing"]}) for mode in ("growing", "sequential"))
    assert [r.rows for r in sequential] == [r.rows for r in growing]
    assert growing[0].rows != growing[2].rows[: len(growing[0].rows)]  # control: more edits push farther


@pytest.mark.parametrize(("mode", "seconds"), [("single", 3.0), ("batch", 3.0 / 4)])
def test_seconds_are_those_of_putting_an_edit_into_force(backbone, cases, tmp_path, monkeypatch, mode, seconds):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    class Slow(Pushing):
        @contextmanager
        def edit(self, backbone, requests):
            clock[0] += 3.0
            with super().edit(backbone, requests) as edited:
                yield edited

    def ask(*given):
        clock[0] += 100.0
        return EVERY["sake"].ask(*given)

    protocol = replace(EVERY["sake"], ask=ask)
    (result,) = compare_editors(backbone, "own", cases, {"slow": Slow(0.0)}, [protocol], [mode], tmp_path / "answers")
    assert result.seconds == seconds


def test_answers_to_other_tests_of_the_same_cases_are_others(backbone, cases, tmp_path):
    store, usual = engine.Answers(backbone, tmp_path), replace(EVERY["sake"], adapted=True)
    fewer = replace(usual, tests=lambda case: EVERY["sake"].tests(case)[:1])
    assert store.path("bare", usual, cases) != store.path("bare", fewer, cases)
    assert store.path("bare", usual, cases) == store.path("bare", replace(usual), cases)


class Adding(WeightEditor):
    """Adds to a bias with every edit, what depends on how far it is already; keeps what it saw."""

    name = "adding"

    def __init__(self):
        self.log = []

    def __repr__(self):
        return "Adding()"

    def writing(self, backbone):
        bias = backbone.model.get_parameter("transformer.h.2.mlp.c_proj.bias")

        def write(requests):
            self.log.append([request.edit_id for request in requests])
            with torch.no_grad():
                bias.mul_(1.5).add_(torch.linspace(-1, 1, len(bias)))

        return Writing([bias], write)


def test_sequential_edits_are_put_on_top_of_each_other_once(compared, backbone, cases):
    digest, adding = backbone.digest(), Adding()
    results = compared(["sequential", "batch"], {"adding": adding})
    ids = [case.request.edit_id for case in cases]
    assert adding.log == [*([edit] for edit in ids), ids]
    assert backbone.digest() == digest
    one, four, batch = (r for r in results if r.protocol == "sake")
    assert [row["test"]["edit_id"] for row in one.rows] == [ids[0]] * len(one.rows)
    first = [row["prediction"] for row in one.rows]
    assert (
        first != [row["prediction"] for row in four.rows][: len(first)]
    )  # the later edits move the first one's answers
    assert [row["prediction"] for row in four.rows] != [row["prediction"] for row in batch.rows]


def test_an_editor_that_does_nothing_scores_as_the_bare_model(compared):
    for result in compared(["single", "batch"], {"still": Pushing(0.0)}):
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
    batch = next(r for r in compared(["batch"]) if r.editor == "pushing" and r.protocol == "sake")
    assert [row["prediction"] for row in batch.rows] != wanted  # control: four pushes are not one


def test_a_comparison_goes_on_where_it_stopped(compared, monkeypatch):
    monkeypatch.setattr(engine, "CHUNK", 2)
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
    results = compared(["batch"], {"pushing": EDITORS["pushing"], "still": EDITORS["still"]})
    tables = blocks([(backbone.name, result) for result in results])
    assert [table.title.split(": ")[1] for table in tables] == ["4 edits, batch"] * 2
    assert list(tables[0].rows) == ["bare model", "pushing", "still"]
    assert tables[0].rows["still"] == pytest.approx(tables[0].rows["bare model"], nan_ok=True)
    assert tables[0].rows["pushing"] != tables[0].rows["bare model"]
    pushing = next(r for r in results if r.editor == "pushing" and r.protocol == "sake")
    assert tables[0].rows["bare model"] == pytest.approx([s.bare for s in pushing.scores.values()], nan_ok=True)
    assert markdown(tables[0]).splitlines()[2].startswith("| bare model | ")
    assert r"\toprule" in latex(tables[0])
    assert "_" not in latex(tables[1]).replace(r"\_", "").split("\n", 1)[1]
    assert len(heat_maps(tables).axes) == 2


def test_every_figure_shows_what_was_found(compared, backbone):
    results = [(backbone.name, result) for result in compared(["batch", "growing"])]
    picture = report.averages(results)
    assert picture is not None
    panels = picture.axes
    assert len([axes for axes in panels if axes.get_visible()]) == 6  # batch, 1 and all, of two protocols
    wanted = [r.scores["average"].value for _, r in results if r.mode == "batch" and r.protocol == "sake"]
    assert panels[0].lines[0].get_xdata().tolist() == pytest.approx(wanted)  # type: ignore[union-attr]
    assert [axes.get_xlabel() for axes in panels[:2]] == ["average", "rewrite_acc"]
    nothing = replace(results[0][1], scores={"acc": Score(nan, 0, (nan, nan), nan)})
    assert report.averages([(backbone.name, nothing)]) is None  # no test of it, no panel
    assert "acc" not in report.overviews([(backbone.name, nothing)])[0].columns
    lines = report.growth(results)
    assert lines is not None
    assert [axes.get_title().split(": ")[1] for axes in lines.axes] == ["growing"] * 2
    assert report.growth(results[:1]) is None
    assert report.routing(results) is None  # nothing is routed
    entry = {
        "acc": {"right": 0.5, "wrong_edit": 0.25, "silent": 0.25, "n": 4},
        "spec": {"right": 0.75, "wrong_edit": 0.25, "silent": 0.75, "n": 4},  # none is right
        "ci": {"right": 0.0, "wrong_edit": 0.0, "silent": 0.0, "n": 0},
    }
    figure = report.routing([(backbone.name, replace(results[0][1], routing=entry))])
    assert figure is not None
    (axes,) = figure.axes
    widths = [patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle)]
    assert widths == [0.5, 0.75, 0.25, 0.25, 0.25, 0.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["acc", "spec"]


def test_an_axis_holds_every_score(backbone):
    scores = {"fluency": Score(5.1, 4, (4.9, 5.3), 5.0), "correlation": Score(-0.5, 4, (-0.9, 0.1), 0.0)}
    for score in scores.values():
        result = Result("own", "batch", 4, "still", "rome", {"x": score}, [], 0.5)
        picture = report.averages([(backbone.name, result)])
        assert picture is not None
        low, high = picture.axes[0].get_xlim()
        assert low < min(0, score.ci95[0])
        assert high > max(1, score.ci95[1])
    low, high = report.bars(scores, {}).axes[0].get_ylim()
    assert low <= -0.5
    assert high >= 5.1


def test_an_oracle_without_anybody_who_tells_is_refused_before_any_work(backbone, cases, tmp_path):
    with pytest.raises(ValueError, match=r"an oracle must have a protocol that says .* but 'o' has none; add"):
        list(compare_editors(backbone, "own", cases, {"o": Mega(routing="oracle")}, [EASYEDIT], ["single"], tmp_path))
    assert not list(tmp_path.glob("*.json"))


def test_an_overview_has_the_headlines_of_all_protocols(compared, backbone):
    results = compared(["batch"])
    (table,) = overviews([(backbone.name, result) for result in results])
    assert table.title.endswith("own: 4 edits, batch")
    sake = (
        "acc",
        "gen",
        "spec",
        "di",
        "dii",
        "rs",
        "average",
    )  # the bare model knows nothing that CI, CII, SA build on
    assert table.columns == (*(f"sake {n}" for n in sake), *(f"easyedit {n}" for n in EASYEDIT.headline), "s/edit")
    assert list(table.rows) == ["bare model", *EDITORS]
    for result in results:
        values, bare = table.rows[result.editor], table.rows["bare model"]
        for column, value, before in zip(table.columns[:-1], values, bare, strict=False):
            protocol, name = column.split()
            if protocol == result.protocol:
                score = result.scores[name]
                assert (value, before) == pytest.approx((score.value, score.bare), nan_ok=True)


def test_tables_know_which_columns_are_better_low(backbone):
    scores = dict.fromkeys(("rewrite_relapse", "rewrite_alias_sentence"), Score(0.2, 5, (0.1, 0.3), 0.0))
    columns = GENERATION.headline, GENERATION.lower_is_better
    result = Result("own", "single", 5, "still", "generation", scores, [], 0.5, *columns)
    low = {"rewrite_relapse", "paraphrase_relapse"}
    assert blocks([(backbone.name, result)])[0].lower_is_better == low
    sake = Result("own", "single", 5, "still", "sake", {"acc": scores["rewrite_relapse"]}, [], 0.5)
    full = replace(result, scores=dict.fromkeys(GENERATION.headline, scores["rewrite_relapse"]))
    (table,) = overviews([(backbone.name, full), (backbone.name, sake)])
    assert table.lower_is_better == {f"generation {name}" for name in low}


def test_colours_of_the_figure():
    columns = ("sake acc", "generation rewrite_relapse", "rome fluency", "sake cii")
    low = frozenset({"generation rewrite_relapse", "context changed"})
    block = Block("t", columns, {"bare model": (0.2, 0.2, 5.1, float("nan"))}, (1, 1, 1, 0), low)
    image = heat_maps([block]).axes[0].images[0].get_array()
    assert image is not None
    assert image.tolist() == [[0.2, 0.8, 0.5, 0.5]]


def test_processes_share_the_work_and_wait_for_what_others_hold(compared, tmp_path, monkeypatch):
    """A piece that another process holds is waited for; when it is dead, its piece is done here."""
    monkeypatch.setattr(engine, "CHUNK", 2)
    wanted = compared(["single"])
    files = sorted((tmp_path / "answers").glob("pushing-sake-*.json"))
    assert len(files) == 2
    text = files[0].read_text("utf-8")
    files[0].unlink()
    lock = FileLock(engine.lock_of(files[0]))
    lock.acquire()
    waits: list[int] = []

    def other_process(_):
        waits.append(len(waits))
        if len(waits) == 2:
            files[0].write_text(text, "utf-8")
            lock.release()

    monkeypatch.setattr(time, "sleep", other_process)
    monkeypatch.setattr(Pushing, "edit", lambda *_: pytest.fail("done twice"))
    again = compared(["single"])
    assert waits == [0, 1]
    assert [r.rows for r in again] == [r.rows for r in wanted]
