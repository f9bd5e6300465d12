"""Choosing the layers of a fit by attribution."""

import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import pytest
import torch

from mega_pl.attribution.layers import layer_importance
from mega_pl.attribution.selection import SelectionConfig, select
from mega_pl.attribution.steering import edit_importance, steering_norms
from mega_pl.backbone import Site, SiteKind, load, record, steer
from mega_pl.callbacks import AttributionLayerSelection
from mega_pl.cli import main
from mega_pl.data import read
from mega_pl.data.datamodule import EditDataModule
from mega_pl.editors import Edited, Editor
from mega_pl.fitting import FitConfig
from mega_pl.fitting import fit as fit_bank
from mega_pl.fitting.prompts import PromptConfig
from mega_pl.module import MegaModule

CONFIG = SelectionConfig(number=2, window=(0.0, 1.0), criterion="probability", least=1)


@dataclass(frozen=True)
class Pushing(Editor):
    """Moves every prompt's stream, so that some edits take and some do not."""

    size: float = 1.0
    kind: SiteKind = "resid_mid"
    name = "pushing"

    @contextmanager
    def edit(self, backbone, requests):
        push = torch.linspace(-1, 1, backbone.width) * self.size
        with steer(backbone.model, {Site(1, self.kind): lambda x: x + push}):
            yield Edited()


@pytest.fixture
def contrast_file(tmp_path, edit_lines):
    """Six edits that are not among those that are fitted."""
    path = tmp_path / "contrast.jsonl"
    cities = ["Rome", "Paris", "London", "Berlin", "English", "Spanish"]
    lines = [
        {
            "edit_id": f"c{i}",
            "prompt": "{} is a city in",
            "subject": city,
            "target_new": cities[i - 1],
            "target_true": cities[i - 2],
            "paraphrase_prompts": [f"The capital of {city} is", f"He was born in the city of {city}"],
        }
        for i, city in enumerate(cities)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def fit(roomy_folder, edits_file, tmp_path):
    """`fit(callback)` fits the four edits in ``run/`` and returns the module."""

    def run(callback, **options):
        module = MegaModule(str(roomy_folder("gpt2")), prompts=PromptConfig(prefixes=1))
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path / "run",
            callbacks=[callback],
            **options,
        )
        trainer.fit(module, datamodule=EditDataModule(str(edits_file)))
        return module

    return run


def test_a_fit_steers_where_the_contrast_says_and_records_why(fit, contrast_file, tmp_path, capsys):
    data = EditDataModule(str(contrast_file))
    callback = AttributionLayerSelection(data, [Pushing()], CONFIG, cache=str(tmp_path / "cache"))
    module = fit(callback)
    told = json.loads((tmp_path / "run" / "attribution.json").read_text("utf-8"))
    assert [str(site) for site in module.sites] == told["sites"]
    assert set(module.complete().maps) == set(module.sites)
    best = sorted(torch.tensor(told["scores"]).topk(2).indices.tolist())
    assert [site.layer for site in module.sites] == best
    figures = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert figures == {"contrast.png", "edit.png", "steering.png"}
    assert "| block | score |" in capsys.readouterr().out


def test_the_contrast_is_read_where_it_has_been_made(tiny_backbone, contrast_file, tmp_path, monkeypatch):
    backbone, data = tiny_backbone("gpt2"), EditDataModule(str(contrast_file))
    data.setup("fit")
    first = select(backbone, [Pushing()], data.cases, CONFIG, cache=tmp_path)
    monkeypatch.setattr("mega_pl.attribution.selection.changes_by", None)
    again = select(backbone, [Pushing()], data.cases, CONFIG, cache=tmp_path)
    assert again.sites == first.sites
    torch.testing.assert_close(again.scores, first.scores)
    with pytest.raises(TypeError):  # control: another editor has to be asked
        select(backbone, [Pushing(2.0)], data.cases, CONFIG, cache=tmp_path)


def test_a_window_that_is_too_small_is_refused_before_any_edit(tiny_backbone, contrast_file, tmp_path, monkeypatch):
    monkeypatch.setattr("mega_pl.attribution.selection.changes_by", None)
    with pytest.raises(ValueError, match="must hold 5 layers 1 apart, but holds 4 of 4"):
        select(tiny_backbone("gpt2"), [Pushing()], [], replace(CONFIG, number=5), cache=tmp_path)


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "resid_mid"), ("gpt_neox", "resid_post")])
def test_a_chosen_block_is_steered_where_the_model_has_a_site(tiny_backbone, contrast_file, tmp_path, family, kind):
    backbone, data = tiny_backbone(family), EditDataModule(str(contrast_file))
    data.setup("fit")
    chosen = select(backbone, [Pushing(kind="attn_out")], data.cases, CONFIG, cache=tmp_path).sites
    assert [site.kind for site in chosen] == [kind, kind]
    backbone.check_sites(chosen)


def test_what_a_model_lacks_is_refused_before_any_edit(tiny_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr("mega_pl.attribution.selection.changes_by", None)
    with pytest.raises(ValueError, match=r"of a kind that this model has, attn_out, .* but got resid_mid\.0"):
        select(tiny_backbone("gpt_neox"), [Pushing()], [], replace(CONFIG, kind="resid_mid"), cache=tmp_path)
    with pytest.raises(ValueError, match="an unembedding without a bias, but that of 'gptj' adds one; give the sites"):
        select(tiny_backbone("gptj"), [Pushing()], [], CONFIG, cache=tmp_path)


def test_another_backbone_is_asked_again(tiny_backbone, contrast_file, tmp_path):
    data = EditDataModule(str(contrast_file))
    data.setup("fit")
    for family in ("gpt2", "llama"):
        select(tiny_backbone(family), [Pushing()], data.cases, CONFIG, cache=tmp_path)
    assert len(list(tmp_path.glob("pushing-*.json"))) == 2


def test_edits_that_are_fitted_too_are_refused_before_any_work(fit, edits_file, tmp_path):
    callback = AttributionLayerSelection(EditDataModule(str(edits_file)), [Pushing()], CONFIG)
    with pytest.raises(ValueError, match=r"edits of the contrast must not be fitted too, but 'france' .* is; take"):
        fit(callback)
    assert not (tmp_path / "run").exists()


def test_a_trial_run_leaves_nothing_behind(fit, contrast_file, tmp_path):
    data = EditDataModule(str(contrast_file))
    fit(AttributionLayerSelection(data, [Pushing()], CONFIG, cache=str(tmp_path / "cache")), fast_dev_run=True)
    assert not (tmp_path / "run" / "attribution.json").exists()


def test_the_command_writes_what_a_fit_would_read(roomy_folder, contrast_file, tmp_path, capsys):
    args = {
        "model_name_or_path": str(roomy_folder("llama")),
        "data": {"class_path": "mega_pl.data.datamodule.EditDataModule", "init_args": {"files": str(contrast_file)}},
        "editors": [{"class_path": "mega_pl.editors.Ike"}],
        "folder": str(tmp_path / "out"),
        "cache": str(tmp_path / "cache"),
        "selection": {"number": 1, "window": [0, 1], "criterion": "probability", "least": 1},
    }
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(args), encoding="utf-8")
    main(["attribute", "--config", str(config)])
    assert "| block | score |" in capsys.readouterr().out
    out = tmp_path / "out"
    assert (out / "attribution.md").read_text("utf-8").startswith("| block | score |")
    assert {path.name for path in (out / "figures").iterdir()} == {"contrast.png", "heads.png"}
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_steering_is_as_long_as_the_maps_say(roomy_folder, edits_file):
    backbone = load(str(roomy_folder("gpt2")))
    requests = [case.request for case in read(edits_file)]
    sites = [Site(2, "resid_mid"), Site(3, "resid_mid")]
    bank = fit_bank(backbone, requests, FitConfig(sites=tuple(map(str, sites)), prompts=PromptConfig(prefixes=1)))
    shares = []
    for site in sites:
        of_site = []
        for i, request in enumerate(requests):
            place = bank.places[i]
            before = {s: (lambda x, m=bank.maps[s][place]: m(x)) for s in sites if s < site}
            encoded = backbone.encode([request.filled])
            with steer(backbone.model, before, encoded.last), record(backbone.model, [site], encoded.last) as seen:
                backbone.last_logits(encoded)
            moved = bank.maps[site][place](seen[site]) - seen[site]
            of_site.append(float(moved.norm() / seen[site].norm()))
        shares.append(sum(of_site) / len(of_site))
    found = steering_norms(backbone, bank)
    assert list(found) == ["resid_mid.2", "resid_mid.3"]
    assert list(found.values()) == pytest.approx(shares, rel=1e-4)
    assert min(shares) > 0


def test_an_edit_is_seen_before_and_after_it(roomy_folder, edits_file):
    backbone = load(str(roomy_folder("gpt2")))
    requests = [case.request for case in read(edits_file)]
    bank = fit_bank(backbone, requests, FitConfig(prompts=PromptConfig(prefixes=1)))
    before, after = edit_importance(backbone, bank, "germany")
    prompt = [requests[1].filled]
    targets = [[backbone.answer_ids(prompt[0], word)[0] for word in ("London", "Berlin")]]
    torch.testing.assert_close(before.output, layer_importance(backbone, prompt, targets).output)
    with bank.apply(backbone, edits=["germany"]):
        torch.testing.assert_close(after.output, layer_importance(backbone, prompt, targets).output)
    assert not torch.allclose(before.output, after.output, atol=1e-2)
    with pytest.raises(KeyError, match="it has no 'spain'"):
        edit_importance(backbone, bank, "spain")


def test_sites_cannot_change_after_edits_have_been_fitted(fit, contrast_file, tmp_path):
    data = EditDataModule(str(contrast_file))
    module = fit(AttributionLayerSelection(data, [Pushing()], CONFIG, cache=str(tmp_path / "cache")))
    module.steer_at(module.sites)  # control: the same sites are no change
    with pytest.raises(ValueError, match=r"`sites` must be those of the edits fitted so far, .* start a new fit"):
        module.steer_at([Site(0, "attn_out")])
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\].*got 9"):
        module.steer_at([Site(9, "resid_mid")])


def test_a_checkpoint_remembers_the_chosen_sites(fit, contrast_file, roomy_folder, tmp_path):
    data = EditDataModule(str(contrast_file))
    module = fit(AttributionLayerSelection(data, [Pushing()], CONFIG, cache=str(tmp_path / "cache")))
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    options: dict[str, Any] = {"prompts": PromptConfig(prefixes=1)}
    again = MegaModule(str(roomy_folder("gpt2")), **options)
    again.on_load_checkpoint(checkpoint)
    assert again.sites == module.sites
    with pytest.raises(ValueError, match=r"`sites` must be what .*, resid_mid.1, resid_mid.2"):
        MegaModule(str(roomy_folder("gpt2")), sites=["resid_post.0"], **options).on_load_checkpoint(checkpoint)
