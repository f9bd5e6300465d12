"""Evaluation against a slow twin that asks one prompt at a time and moves activations with hooks of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mega_pl.asking import Edited
from mega_pl.backbone import Backbone, load, prompt_lengths
from mega_pl.data import read, relations
from mega_pl.editors.protocol import Editor, Routed
from mega_pl.edits import ContentRouter, RoutedEdits, RouterConfig
from mega_pl.edits.routing import CentreRouter, Prompts
from mega_pl.fitting import FitConfig, MapConfig, PromptConfig, fit
from mega_pl.functional import Transport
from mega_pl.functional.text import first_token_hit
from mega_pl.protocols.sake import (
    PROTOCOL,
    UNTOUCHED,
    Mode,
    Row,
    Test,
    _predictions,
    _shared,
    ask,
    ask_bare,
    ask_edited,
    routing,
    sake_row,
    sake_tests,
)

MODES: tuple[Mode, ...] = ("own", "oracle", "subject", "relation", "always")


class Setting:
    """A tiny backbone, a bank of the four edits and their tests."""

    def __init__(self, model: Path, edits: Path) -> None:
        self.backbone = load(str(model))
        cases = read(edits)
        requests = [case.request for case in cases]
        config = FitConfig(
            sites=("resid_mid.1", "resid_mid.2"), prompts=PromptConfig(prefixes=1), maps=MapConfig(whole=False)
        )
        self.bank = fit(self.backbone, requests, config)
        self.tests = [test for case in cases for test in sake_tests(case)]


@pytest.fixture
def setting(roomy_folder: Callable[[str], Path], edits_file: Path) -> Setting:
    return Setting(roomy_folder("gpt2"), edits_file)


def forward(backbone: Backbone, prompt: str, moves: dict[int, Callable[[Tensor], Tensor]]) -> Tensor:
    """Chances (V,) after a prompt, without padding, mask or positions."""
    entered: dict[int, Tensor] = {}
    handles = []
    for i, block in enumerate(backbone.model.transformer.h):

        def enter(_: nn.Module, args: tuple[Tensor, ...], i: int = i) -> None:
            entered[i] = args[0]

        def attended(_: nn.Module, __: object, output: tuple[Tensor, ...], i: int = i) -> tuple[Tensor, ...] | None:
            if i not in moves:
                return None
            middle = entered[i][:, -1] + output[0][:, -1]
            added = output[0].clone()
            added[:, -1] += moves[i](middle) - middle
            return (added, *output[1:])

        handles += [block.register_forward_pre_hook(enter), block.attn.register_forward_hook(attended)]
    ids = torch.tensor([backbone.tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        logits: Tensor = backbone.model(ids, use_cache=False).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits.softmax(-1)


def route(setting: Setting, test: Test, mode: Mode) -> int:
    """The edit that a test goes to, alone."""
    if mode == "oracle":
        return -1 if test.metric in ("spec", "rs") else setting.bank.index(test.edit_id)
    router, encoded = setting.bank.router, setting.backbone.encode([test.prompt])
    assert isinstance(router, ContentRouter)
    if mode in ("subject", "relation"):
        router = router.only(mode)
    prompts = Prompts(setting.backbone, encoded.inputs, encoded.last)
    return router.route(prompts, forced=mode == "always")[0].edit


def move(transport: Transport, x: Tensor) -> Tensor:
    """SAKE's map of one activation (1, D)."""
    inside = x[0] @ transport.basis - transport.center
    return (x[0] + transport.shift + transport.basis @ (transport.matrix @ inside))[None]


def ask_slowly(setting: Setting, test: Test, mode: Mode) -> Row:
    backbone, bank = setting.backbone, setting.bank
    edit = route(setting, test, mode)
    maps = {} if edit < 0 else {site.layer: maps[edit] for site, maps in bank.maps.items()}
    bare = forward(backbone, test.prompt, {})
    moved = forward(backbone, test.prompt, {layer: partial(move, transport) for layer, transport in maps.items()})
    before = len(backbone.tokenizer(test.prompt)["input_ids"])
    new, true = (backbone.tokenizer(f"{test.prompt} {o}")["input_ids"][before] for o in (test.new, test.true))
    knows = True
    if test.condition_prompt:
        said = token(backbone, forward(backbone, test.condition_prompt, {})).strip()
        knows = bool(said) and any(answer.startswith(said) for answer in test.condition_answers)
    return Row(
        test=test,
        bare_prediction=token(backbone, bare),
        prediction=token(backbone, moved),
        bare_new=float(bare[new]),
        bare_true=float(bare[true]),
        new_probability=float(moved[new]),
        true_probability=float(moved[true]),
        knows=knows,
        fired="" if edit < 0 else bank.ids[edit],
    )


def token(backbone: Backbone, chances: Tensor) -> str:
    return str(backbone.tokenizer.decode([int(chances.argmax())]))


def assert_close(rows: Sequence[Row], expected: Sequence[Row]) -> None:
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        for name in ("test", "knows", "fired"):  # not the predictions: a random model's best tokens nearly tie
            assert getattr(row, name) == getattr(other, name), (name, row.test.prompt)
        for name in ("bare_new", "bare_true", "new_probability", "true_probability"):
            assert getattr(row, name) == pytest.approx(getattr(other, name), rel=1e-3, abs=1e-7), name


def test_a_padded_batch_agrees_with_one_prompt_at_a_time(setting: Setting) -> None:
    assert len({len(setting.backbone.tokenizer(t.prompt)["input_ids"]) for t in setting.tests}) > 5  # it is padded
    rows = ask(setting.backbone, setting.bank, setting.tests, MODES)
    assert list(rows) == list(MODES)
    for mode in MODES:
        assert_close(rows[mode], [ask_slowly(setting, test, mode) for test in setting.tests])


def test_the_comparison_has_something_to_compare(setting: Setting) -> None:
    rows = ask(setting.backbone, setting.bank, setting.tests, MODES)
    assert {bool(row.fired) for row in rows["own"]} == {True, False}
    assert {row.knows for row in rows["own"]} == {True, False}
    assert len({row.fired for row in rows["always"]}) > 1
    for row in rows["own"]:
        assert (row.new_probability != row.bare_new) == bool(row.fired)  # a steered row moves, a silent one not a bit
    fired = {mode: tuple(row.fired for row in rows[mode]) for mode in MODES}
    assert len(set(fired.values())) == len(MODES)  # no two modes route alike
    assert "" not in fired["always"]
    assert sum(map(bool, fired["own"])) < sum(map(bool, fired["subject"]))


def test_an_edit_prompt_and_its_paraphrases_go_to_the_edit(setting: Setting) -> None:
    rows = ask(setting.backbone, setting.bank, setting.tests, ["own"])["own"]
    assert {row.fired == row.test.edit_id for row in rows if row.test.metric == "acc"} == {True}
    assert {row.fired for row in rows if row.test.metric == "spec"} == {""}
    assert all(row.fired in ("", row.test.edit_id) for row in rows if row.test.metric == "rs")  # of its subject at most


def test_other_relations_go_to_none_where_an_edit_says_its_own(setting: Setting) -> None:
    codes = {"france": "P36", "germany": "P36", "darrieux": "P103", "italy": "P36"}
    requests = [replace(request, relation=codes[request.edit_id]) for request in setting.bank.requests]
    router = ContentRouter.fit(setting.backbone, requests, list(relations().values()), RouterConfig())
    rows = ask(setting.backbone, replace(setting.bank, router=router), setting.tests, ["own"])["own"]
    assert {row.fired == row.test.edit_id for row in rows if row.test.metric == "acc"} == {True}  # control
    assert {row.fired for row in rows if row.test.metric in ("spec", "rs")} == {""}


def test_one_kind_of_evidence_alone_needs_a_router_by_content(setting: Setting) -> None:
    centres = CentreRouter(torch.zeros(4, setting.backbone.width), torch.zeros(4), layer=0)
    bank = replace(setting.bank, router=centres)
    with pytest.raises(ValueError, match="mode 'subject' must have a router by content, but got one of kind 'centre'"):
        ask(setting.backbone, bank, setting.tests, ["subject"])
    with pytest.raises(ValueError, match="`mode` of an editor must be own, oracle or always, but got 'relation'; ask"):
        ask_edited(setting.backbone, Edited(), setting.tests, mode="relation")


def test_a_batch_agrees_with_single_prompts(setting: Setting) -> None:
    together = ask(setting.backbone, setting.bank, setting.tests, MODES)
    alone = [ask(setting.backbone, setting.bank, [test], MODES) for test in setting.tests]
    for mode in MODES:
        assert_close(together[mode], [rows[mode][0] for rows in alone])


def test_the_backbone_is_given_back(setting: Setting) -> None:
    encoded = setting.backbone.encode([test.prompt for test in setting.tests])
    before, digest = setting.backbone.last_logits(encoded), setting.backbone.digest()
    ask(setting.backbone, setting.bank, setting.tests, MODES)
    assert torch.equal(setting.backbone.last_logits(encoded), before)
    assert setting.backbone.digest() == digest


def row(metric: str, fired: str, *, edit_id: str = "a", knows: bool = True) -> Row:
    test = Test(edit_id=edit_id, metric=metric, prompt="p", answers=("x",), new="x", true="y")  # type: ignore[arg-type]
    return Row(
        test=test, bare_prediction="", prediction="", bare_new=0, bare_true=0, new_probability=0, true_probability=0,
        knows=knows, fired=fired,
    )  # fmt: skip


def test_routing_counts_right_wrong_and_silent() -> None:
    rows = [row("acc", "a"), row("acc", "b"), row("acc", ""), row("acc", ""), row("acc", "a", knows=False)]
    rows += [row("spec", ""), row("spec", "a"), row("rs", "b", knows=False)]
    assert routing(rows) == {
        "acc": {"right": 0.25, "wrong_edit": 0.25, "silent": 0.5, "n": 4},
        "spec": {"right": 0.5, "wrong_edit": 0.5, "silent": 0.5, "n": 2},
        "rs": {"right": 0.0, "wrong_edit": 0.0, "silent": 0.0, "n": 0},
    }


class Watched(Routed):
    """A bank in force that remembers how it was told to route."""

    def __init__(self, use: RoutedEdits) -> None:
        super().__init__(use)
        self.orders: list[tuple[object, bool]] = []

    def route(self, edits: Sequence[str | None] | None = None, *, forced: bool = False) -> None:
        super().route(edits, forced=forced)
        self.orders.append((edits, forced))


@pytest.mark.parametrize("mode", ["own", "oracle", "always"])
def test_any_edited_model_can_be_asked_what_a_bank_is(setting: Setting, mode: Mode) -> None:
    bare = ask_bare(setting.backbone, setting.tests)
    with setting.bank.apply(setting.backbone) as use:
        edited = Watched(use)
        answers = ask_edited(setting.backbone, edited, setting.tests, mode=mode)
        assert (use.fixed, use.forced) == (None, False)  # routed as before
    rows = [sake_row(*columns) for columns in zip(setting.tests, bare, answers, strict=True)]
    assert_close(rows, ask(setting.backbone, setting.bank, setting.tests, [mode])[mode])
    assert {edits is None for edits, _ in edited.orders[:-1]} == {mode != "oracle"}
    assert {forced for _, forced in edited.orders[:-1]} == {mode == "always"}


def test_routing_is_left_alone_unless_a_mode_is_named(setting: Setting) -> None:
    with setting.bank.apply(setting.backbone, forced=True) as use:
        edited = Watched(use)
        answers = ask_edited(setting.backbone, edited, setting.tests)
    assert edited.orders == []
    assert all(answer.fired for answer in answers)


def test_edits_that_want_an_oracle_get_one(setting: Setting) -> None:
    with setting.bank.apply(setting.backbone) as use:
        told = ask_edited(setting.backbone, Routed(use, oracle=True), setting.tests)
        assert told == ask_edited(setting.backbone, Routed(use), setting.tests, mode="oracle")
    untouched = [answer.fired for test, answer in zip(setting.tests, told, strict=True) if test.metric in UNTOUCHED]
    assert set(untouched) == {""}
    assert all(answer.fired for test, answer in zip(setting.tests, told, strict=True) if test.metric not in UNTOUCHED)


def test_editors_without_a_router(setting: Setting, editors: Sequence[Editor]) -> None:
    backbone, requests = setting.backbone, list(setting.bank.requests)
    bare = ask_bare(backbone, setting.tests)
    for editor in editors:
        with editor.edit(backbone, requests) as edited:
            answers = ask_edited(backbone, edited, setting.tests)
            for test, answer in zip(setting.tests, answers, strict=True):
                prompt = edited.prompt(test.prompt)
                chances = forward(backbone, prompt, {})
                for found, o in ((answer.new, test.new), (answer.true, test.true)):
                    expected = float(chances[backbone.answer_ids(prompt, o)[0]])
                    assert found == pytest.approx(expected, rel=1e-3)
        rows = [sake_row(*columns) for columns in zip(setting.tests, bare, answers, strict=True)]
        assert {row.fired for row in rows} == {""}
        assert all(row.new_probability == row.bare_new for row in rows) is (editor.name == "idle")
        assert PROTOCOL.score(rows)["acc"].n == len(requests)


def test_a_bare_model_knows_a_condition_if_it_gives_its_answer(setting: Setting) -> None:
    prompts = ("Rome is a city in", "He was born in the city of")
    said = [token(setting.backbone, forward(setting.backbone, prompt, {})).strip() for prompt in prompts]
    asked = Test(edit_id="a", metric="ci", prompt="Rome is", answers=("x",), new="Rome", true="Paris")
    tests = [
        replace(asked, condition_prompt=prompt, condition_answers=(answer,))
        for prompt in prompts
        for answer in (f"{said[prompts.index(prompt)]} and more", "other")
    ]
    assert all(said)
    assert [answer.knows for answer in ask_bare(setting.backbone, tests)] == [True, False, True, False]
    assert ask_bare(setting.backbone, [asked])[0].knows


ALIKE = ("Romania", "Rome", "Romans", "Spain")


def contrast(new: str, true: str, metric: str = "acc", prompt: str = "The city is called") -> Test:
    fields: dict[str, Any] = {"metric": metric}
    return Test(edit_id="a", prompt=prompt, answers=(new,), new=new, true=true, **fields)


@pytest.mark.parametrize("metric", ["acc", "gen", "spec", "di", "dii"])
def test_objects_that_begin_alike_are_judged_where_they_differ(setting: Setting, metric: str) -> None:
    backbone = setting.backbone
    for new, true in permutations(ALIKE, 2):
        test = contrast(new, true, metric)
        ids = [backbone.answer_ids(test.prompt, o) for o in (new, true)]
        shared = 0
        while ids[0][shared] == ids[1][shared] and shared + 1 < min(map(len, ids)):
            shared += 1
        start = [*backbone.tokenizer(test.prompt)["input_ids"], *ids[0][:shared]]
        with torch.no_grad():
            chances = backbone.model(torch.tensor([start])).logits[0, -1].softmax(-1)
        answer = ask_bare(backbone, [test])[0]
        assert answer.new == pytest.approx(float(chances[ids[0][shared]]), rel=1e-3)
        assert answer.true == pytest.approx(float(chances[ids[1][shared]]), rel=1e-3)
        assert answer.prediction.startswith(str(backbone.tokenizer.decode(ids[0][:shared])))
    lengths = [[len(backbone.answer_ids("The city is called", o)) for o in ALIKE]]
    assert max(lengths[0]) > 1  # control: there is something to share


def test_other_questions_are_judged_by_their_first_token(setting: Setting) -> None:
    backbone = setting.backbone
    rome, romania = contrast("Rome", "Romania", "rs"), contrast("Romania", "Rome", "rs")
    answers = ask_bare(backbone, [rome, romania])
    assert answers[0].prediction == answers[1].prediction
    assert answers[0].new == answers[0].true


def test_an_edit_acts_where_its_prompt_ends_though_the_judged_token_is_further_on(setting: Setting) -> None:
    """The shared ids are the answer's, not the prompt's: the router and the maps see the prompt as it is."""
    bank, backbone = setting.bank, setting.backbone
    request = bank.requests[0]
    test = replace(contrast("Rome", "Romania", prompt=request.filled), edit_id=request.edit_id)
    with bank.apply(backbone) as use:
        edited = ask_edited(backbone, Routed(use), [test])[0]
        assert use.fired == [request.edit_id]
        start, (new, true) = (
            backbone.tokenizer(test.prompt)["input_ids"],
            (backbone.answer_ids(test.prompt, o) for o in (test.new, test.true)),
        )
        shared = _shared(test, new, true)
        assert shared  # control: the judged token is further on
        with prompt_lengths([len(start)]), torch.no_grad():
            logits = backbone.model(torch.tensor([[*start, *new[:shared]]])).logits[0, -1]
    assert edited.new == pytest.approx(float(logits.softmax(-1)[new[shared]]), rel=1e-3)
    assert edited.new != ask_bare(backbone, [test])[0].new


def test_a_token_that_is_no_text_by_itself_is_the_answer_that_it_begins(setting: Setting) -> None:
    backbone = setting.backbone
    test = replace(
        contrast("\u7f57\u9a6c", "\u5df4\u9ece", prompt="\u6cd5\u56fd\u7684\u9996\u90fd\u662f"),
        answers=("\u7f57\u9a6c",),
    )
    ids = [backbone.answer_ids(test.prompt, o) for o in (test.new, test.true)]
    assert "\ufffd" in backbone.tokenizer.decode(ids[0][:1])
    shared = _shared(test, *ids)
    logits = torch.zeros(1, 1000)
    for judged, said in ((ids[0][shared], True), (ids[1][shared], False)):
        logits[0, judged] += 9 + judged / 1000
        text = _predictions(backbone, [test], [test.prompt], [ids[0][:shared]], logits)[0]
        assert first_token_hit(text, test.answers) == said
        logits[0, judged] = 0
