"""Fits through Lightning on a tiny random model: what they leave, what they keep, and how they go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mega_pl.backbone import Backbone, Site
from mega_pl.callbacks import BankCheckpoint
from mega_pl.data.datamodule import EditDataModule
from mega_pl.editors.protocol import Routed
from mega_pl.edits import EditBank, RouterConfig
from mega_pl.edits.prediction import predict
from mega_pl.edits.storage import bank_config, bank_tensors
from mega_pl.fitting import MapConfig
from mega_pl.fitting.prompts import PromptConfig
from mega_pl.fitting.shards import read_shards
from mega_pl.module import MegaModule
from mega_pl.protocols import PROTOCOLS
from mega_pl.protocols.sake import sake_tests

Folder = Callable[[str], Path]


class Kill(L.Callback):
    """Ends the fit in an error when the second batch comes."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 1:
            raise RuntimeError("killed")


@pytest.fixture
def module(roomy_folder: Folder) -> Callable[..., MegaModule]:
    """`module(**options)` is a module for the tiny GPT-2."""

    def make(**options: Any) -> MegaModule:
        defaults: dict[str, Any] = {"sites": ["resid_mid.2", "resid_mid.3"], "prompts": PromptConfig(prefixes=1)}
        return MegaModule(str(roomy_folder("gpt2")), **defaults | options)

    return make


@pytest.fixture
def data(edits_file: Path) -> Callable[..., EditDataModule]:
    """`data(**options)` are the four edits, two in a batch."""

    def make(**options: Any) -> EditDataModule:
        return EditDataModule(str(edits_file), **{"edits_per_batch": 2} | options)

    return make


def trainer(folder: Path, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[BankCheckpoint(), *callbacks],
    )


def assert_same(a: EditBank | None, b: EditBank | None) -> None:
    """Two banks are the same to the bit, and in every setting."""
    assert a is not None
    assert b is not None
    assert json.loads(json.dumps(bank_config(a))) == json.loads(json.dumps(bank_config(b)))
    tensors, others = bank_tensors(a), bank_tensors(b)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


def tensors_in(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def test_a_fit_makes_a_bank_and_leaves_the_backbone_alone(
    module: Callable[..., MegaModule], data: Callable[..., EditDataModule], tmp_path: Path
) -> None:
    fitted, edits = module(), data()
    before = fitted.backbone.digest()
    trainer(tmp_path).fit(fitted, datamodule=edits)
    assert fitted.backbone.digest() == before
    assert not fitted.backbone.model.training
    assert not any(p.requires_grad for p in fitted.backbone.model.parameters())
    assert [parameter.numel() for parameter in fitted.parameters()] == [1]  # which only counts steps
    assert fitted.bank is not None
    assert fitted.bank.ids == ("france", "germany", "darrieux", "italy")
    assert fitted.bank.requests == tuple(edits.requests)
    assert list(fitted.bank.maps) == [Site(2, "resid_mid"), Site(3, "resid_mid")]
    assert_same(EditBank.from_pretrained(tmp_path / "edits"), fitted.bank)


def test_the_checkpoint_is_small_and_safe_and_holds_no_backbone(
    module: Callable[..., MegaModule], data: Callable[..., EditDataModule], tmp_path: Path, roomy_folder: Folder
) -> None:
    fitted = module()
    trainer(tmp_path).fit(fitted, datamodule=data())
    path = tmp_path / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert list(checkpoint["state_dict"]) == ["anchor"]
    assert all(tensor.numel() < 2 for tensor in tensors_in(checkpoint))  # Lightning's own
    assert path.stat().st_size < 20_000
    assert not (tmp_path / "fitted").exists()  # what was in it is in the bank


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"maps": MapConfig(rank=2, strength=0.5), "router": RouterConfig(layer=1), "modes": ["own", "oracle"]},
    ],
    ids=["defaults", "all configs"],
)
def test_a_loaded_checkpoint_gives_the_same_bank(
    options: dict[str, Any], module: Callable[..., MegaModule], data: Callable[..., EditDataModule], tmp_path: Path
) -> None:
    fitted = module(**options)
    trainer(tmp_path).fit(fitted, datamodule=data(limit=2))
    loaded = MegaModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert_same(loaded.bank, fitted.bank)
    assert loaded.config == fitted.config
    assert (loaded.sites, loaded.judging.modes) == (fitted.sites, fitted.judging.modes)


@pytest.mark.parametrize("size", [1, 2])
def test_a_killed_fit_goes_on_and_ends_in_the_same_bank(
    size: int, module: Callable[..., MegaModule], data: Callable[..., EditDataModule], tmp_path: Path
) -> None:
    whole = module()
    trainer(tmp_path / "whole").fit(whole, datamodule=data(edits_per_batch=size))
    with pytest.raises(RuntimeError, match="killed"):
        trainer(tmp_path / "killed", Kill()).fit(module(), datamodule=data(edits_per_batch=size))
    left = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)
    assert "records" not in left["fit"]
    assert len(read_shards(tmp_path / "killed" / "fitted")) == size
    resumed = module()
    trainer(tmp_path / "killed").fit(resumed, datamodule=data(edits_per_batch=size), ckpt_path="last")
    assert_same(resumed.bank, whole.bank)
    assert resumed.judging.rows == whole.judging.rows


def test_a_second_fit_of_a_seed_is_the_first(
    module: Callable[..., MegaModule], data: Callable[..., EditDataModule], tmp_path: Path
) -> None:
    first, second = module(), module()
    for name, fitted in (("first", first), ("second", second)):
        trainer(tmp_path / name).fit(fitted, datamodule=data())
    assert_same(first.bank, second.bank)
    assert first.judging.rows == second.judging.rows


def test_a_loaded_bank_is_tested_without_a_fit(
    module: Callable[..., MegaModule], data: Callable[..., EditDataModule], tmp_path: Path
) -> None:
    fitted = module()
    trainer(tmp_path).fit(fitted, datamodule=data())
    again = module()
    trainer(tmp_path).test(again, datamodule=data(), ckpt_path=str(tmp_path / "last.ckpt"), verbose=False)
    assert again.judging.rows == fitted.judging.rows


def test_validation_rows_reconcile(
    module: Callable[..., MegaModule], data: Callable[..., EditDataModule], tmp_path: Path
) -> None:
    fitted, edits = module(modes=["own", "oracle", "subject", "relation", "always"]), data(edits_per_batch=1)
    run = trainer(tmp_path)
    run.fit(fitted, datamodule=edits)
    asked = [test for case in edits.cases for test in sake_tests(case)]
    assert list(fitted.judging.rows) == ["own", "oracle", "subject", "relation", "always"]
    for rows in fitted.judging.rows.values():
        assert len(rows) == len(asked)
        assert {row.test for row in rows} == set(asked)
    for same in zip(*fitted.judging.rows.values(), strict=True):  # one bare model for all modes
        assert len({(r.test, r.bare_prediction, r.bare_new, r.bare_true, r.knows) for r in same}) == 1
    for row in [row for rows in fitted.judging.rows.values() for row in rows if not row.fired]:
        assert (row.prediction, row.new_probability, row.true_probability) == (
            row.bare_prediction,
            row.bare_new,
            row.bare_true,
        )
    assert all(row.fired for row in fitted.judging.rows["always"])
    assert all(row.fired in ("", row.test.edit_id) for row in fitted.judging.rows["oracle"])
    for mode, rows in fitted.judging.rows.items():
        prefix = "val" if mode == "own" else f"val_{mode}"
        for name, score in PROTOCOLS["sake"].score(rows).items():
            if score.n:
                assert float(run.logged_metrics[f"{prefix}/{name}"]) == pytest.approx(score.value)
            else:
                assert math.isnan(score.value)
                assert f"{prefix}/{name}" not in run.logged_metrics
    assert fitted.judging.scores["own"]["acc"].n == len(edits.cases)


def test_any_protocol_judges_in_validation(
    module: Callable[..., MegaModule], data: Callable[..., EditDataModule], tmp_path: Path
) -> None:
    names = ["rome", "sake", "confidence", "crosslingual", "context"]
    fitted, edits = module(protocols=names, modes=["own", "oracle"]), data(edits_per_batch=3)
    run = trainer(tmp_path)
    run.fit(fitted, datamodule=edits)
    judges = ["rome", "own", "oracle", "confidence", "context"]
    assert list(fitted.judging.rows) == list(fitted.judging.scores) == judges  # nothing is translated
    assert fitted.bank is not None
    for judge in judges:
        name = "sake" if judge in ("own", "oracle") else judge
        protocol = PROTOCOLS[name].prepare(fitted.backbone, edits.cases)
        assert [row.test for row in fitted.judging.rows[judge]] == protocol.all_tests(edits.cases)
        prefix = "val" if judge == "own" else f"val_{judge}"
        wanted = protocol.score(fitted.judging.rows[judge])
        assert fitted.judging.scores[judge] == wanted
        for column, score in wanted.items():
            assert (f"{prefix}/{column}" in run.logged_metrics) == bool(score.n)
            if score.n:
                assert float(run.logged_metrics[f"{prefix}/{column}"]) == pytest.approx(score.value)
    with fitted.bank.apply(fitted.backbone) as use:
        bare = PROTOCOLS["rome"].bare(fitted.backbone, edits.cases)
        rows = PROTOCOLS["rome"].rows(fitted.backbone, Routed(use), edits.cases, bare)
    for row, other in zip(fitted.judging.rows["rome"], rows, strict=True):
        assert (row.test, row.edited.fired) == (other.test, other.edited.fired)
        assert row.edited.new == pytest.approx(other.edited.new, abs=1e-4)
    objects = {test.other for test in (row.test for row in fitted.judging.rows["confidence"])}
    assert len(set.union(*map(set, objects))) > 3  # those of other edits, too


def test_metrics_are_updated_batch_by_batch_and_begin_anew(
    module: Callable[..., MegaModule], data: Callable[..., EditDataModule], tmp_path: Path
) -> None:
    fitted, edits = module(protocols=["sake", "generation"]), data(edits_per_batch=1)
    run = trainer(tmp_path)
    run.fit(fitted, datamodule=edits)
    scores = fitted.judging.scores
    assert set(fitted.judging.metrics) == {"own", "generation"}
    assert fitted.judging.metrics["own"].compute()["acc"] == scores["own"]["acc"].value
    trainer(tmp_path).validate(fitted, datamodule=edits, verbose=False)
    assert fitted.judging.scores == scores  # and not of twice the rows
    assert (
        len(fitted.judging.rows["generation"])
        == scores["generation"]["rewrite_exact_start"].n + scores["generation"]["paraphrase_exact_start"].n
    )


def test_an_unknown_protocol_is_refused_before_any_work(module: Callable[..., MegaModule]) -> None:
    with pytest.raises(ValueError, match=r"a protocol must be one of .*rippleedits, rome, sake, .*but got 'roem'"):
        module(protocols=["roem"])


def test_an_oracle_moves_every_edit_towards_its_target(
    module: Callable[..., MegaModule], data: Callable[..., EditDataModule], tmp_path: Path
) -> None:
    fitted = module(modes=["oracle"])
    trainer(tmp_path).fit(fitted, datamodule=data())
    changed = [row for row in fitted.judging.rows["oracle"] if row.test.metric == "acc"]
    assert len(changed) == 4
    assert all(row.new_probability != row.bare_new for row in changed)


def test_the_same_edit_twice_is_refused(
    module: Callable[..., MegaModule], data: Callable[..., EditDataModule], tmp_path: Path
) -> None:
    edits = data()
    edits.setup("fit")
    edits.cases = [edits.cases[0], edits.cases[0]]
    with pytest.raises(ValueError, match="edit ids must be unique in a fit, but 'france' comes twice"):
        trainer(tmp_path).fit(module(), datamodule=edits)


def test_an_evaluation_without_a_fit_is_refused(
    module: Callable[..., MegaModule], data: Callable[..., EditDataModule], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="at least one edit, but none has been fitted; run `fit` first"):
        trainer(tmp_path).validate(module(), datamodule=data(), verbose=False)


@pytest.mark.parametrize(
    ("site", "rule"), [("resid_mid.4", r"must lie in \[0, 3\].*got 4"), ("nowhere.1", "KIND.LAYER")]
)
def test_sites_are_checked_before_any_work(site: str, rule: str, module: Callable[..., MegaModule]) -> None:
    with pytest.raises(ValueError, match=rule):
        _ = module(sites=[site]).fitter


def test_prediction_writes_on_after_texts(lab_backbone: Backbone, bank_folder: Path, tmp_path: Path) -> None:
    module = MegaModule("lab-gpt2", max_new_tokens=3)
    module.bank = EditBank.from_pretrained(bank_folder)
    texts = ["Marie Curie was born in", "The capital of France is", "Oslo is the capital of"]
    batches: Any = trainer(tmp_path).predict(module, DataLoader(texts, batch_size=2))  # type: ignore[arg-type]
    assert [len(batch) for batch in batches] == [2, 1]
    found = [row for batch in batches for row in batch]
    assert found == [prediction.to_json() for prediction in predict(lab_backbone, module.bank, texts, 3)]
    assert [row["edit"] for row in found] == ["curie", None, None]


def test_prediction_asks_the_prompts_of_the_edits(
    module: Callable[..., MegaModule], data: Callable[..., EditDataModule], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="a bank must have at least one edit, but none has been fitted"):
        trainer(tmp_path).predict(module(), datamodule=data())
    fitted = module(max_new_tokens=2)
    trainer(tmp_path).fit(fitted, datamodule=data())
    judge, checkpoint = trainer(tmp_path), tmp_path / "last.ckpt"
    batches: Any = judge.predict(module(max_new_tokens=2), datamodule=data(), ckpt_path=checkpoint)
    found = [row["prompt"] for batch in batches for row in batch]
    assert found == [request.filled for request in fitted.complete().requests]


def test_an_oracle_must_know_the_edits(
    module: Callable[..., MegaModule], data: Callable[..., EditDataModule], tmp_path: Path
) -> None:
    trainer(tmp_path).fit(module(), datamodule=data(limit=2))
    judge = trainer(tmp_path)
    with pytest.raises(
        ValueError, match="of edits that the bank holds where `modes` have an oracle, but it lacks 'darr"
    ):
        judge.test(module(modes=["own", "oracle"]), datamodule=data(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
