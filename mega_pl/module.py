"""Fitting edits as a Lightning fit: a frozen backbone, edits as training batches, tests as validation batches."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain, zip_longest
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist

from mega_pl.backbone import Backbone, Site, load
from mega_pl.backbone.backbone import Dtype
from mega_pl.data.prompts import PromptConfig
from mega_pl.data.sake import Test
from mega_pl.edits import EditBank, EditRequest, RouterConfig
from mega_pl.edits.storage import bank_config, bank_fields, bank_tensors, request_from
from mega_pl.evaluation import Mode, ask, predict, routing
from mega_pl.fitting import MapConfig, Steps, default_sites, fit_settings, make_bank
from mega_pl.functional import Transport
from mega_pl.metrics import Row, Score, score_sake
from mega_pl.refining import RefineConfig, fit_refined
from mega_pl.supposing import with_followed_implications

torch.serialization.add_safe_globals([MapConfig, RefineConfig, RouterConfig, PromptConfig])

Batch = TypeVar("Batch", list[EditRequest], list[Test], list[str])

Fitted = dict[str, tuple[EditRequest, Steps]]
"""By edit id the request and its maps."""


class MegaModule(L.LightningModule):
    """MEGA (arXiv:2603.20795): edits fitted as transport maps of activations, one fit for many edits.

    A training batch is a list of `EditRequest`; its maps are solved in closed form and the weights never change. When
    all are fitted the router is, and the bank is complete. A validation batch is a list of `Test`, asked of the bare
    and of the edited model; a prediction batch is a list of texts, which both write on after.

    Args:
        model_name_or_path: What `load` loads: a lab model, a name on the Hugging Face hub, a folder or a GGUF file.
        revision: Branch, tag or commit on the hub.
        dtype: Of the backbone's weights; maps are solved in float64 and kept in float32 whatever it is.
        device_map: Where Accelerate puts the weights; by default the Trainer's device.
        sites: Where to steer, such as ``resid_mid.5``; by default the residual after attention in the last half.
        maps: How maps are estimated.
        refine: How a gradient then refines them; by default not at all.
        router: How prompts find their edit.
        prompts: How prompts are multiplied.
        modes: Who routes in validation: the bank's own router, and others for comparison.
        prompts_per_batch: Prompts a forward pass while fitting.
        max_new_tokens: The most tokens of an answer in prediction.
        seed: Seed of everything random, written beside the results.
    """

    def __init__(
        self,
        model_name_or_path: str = "lab-gpt2",
        revision: str | None = None,
        dtype: Dtype = "float32",
        device_map: str | None = None,
        sites: list[str] | None = None,
        maps: MapConfig | None = None,
        refine: RefineConfig | None = None,
        router: RouterConfig | None = None,
        prompts: PromptConfig | None = None,
        modes: list[Mode] | None = None,
        prompts_per_batch: int = 128,
        max_new_tokens: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if prompts_per_batch < 1:
            raise ValueError(f"`prompts_per_batch` must be at least 1, but got {prompts_per_batch}.")
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.maps, self.router, self.prompts = maps or MapConfig(), router or RouterConfig(), prompts or PromptConfig()
        self.refine = refine or RefineConfig()
        self.modes: list[Mode] = modes or ["own"]
        self.chosen_sites = None if sites is None else [Site.parse(site) for site in sites]
        self.fitted: Fitted = {}
        self.bank: EditBank | None = None
        self.rows: dict[Mode, list[Row]] = {}
        self.scores: dict[Mode, dict[str, Score]] = {}
        self._backbone: Backbone | None = None

    @property
    def backbone(self) -> Backbone:
        """The frozen model, loaded when it is first needed."""
        if self._backbone is None:
            hparams = self.hparams
            self._backbone = load(
                hparams["model_name_or_path"],
                revision=hparams["revision"],
                dtype=hparams["dtype"],
                device_map=hparams["device_map"],
            )
            self._backbone.check_sites(self.sites)
            self.router.vectors(self._backbone)
        return self._backbone

    @property
    def sites(self) -> list[Site]:
        """Where edits steer, in the order of a forward pass."""
        return sorted(self.chosen_sites or default_sites(self.backbone))

    def steer_at(self, sites: Sequence[Site]) -> None:
        """Steer at other sites, as a callback may decide before the fit.

        Raises:
            ValueError: If the backbone lacks one, or edits have been fitted at others.
        """
        self.backbone.check_sites(sites)
        fitted = {site for _, steps in self.fitted.values() for site in steps[0]}
        if fitted and fitted != set(sites):
            raise ValueError(
                f"`sites` must be those of the edits fitted so far, {', '.join(map(str, sorted(fitted)))}, "
                f"but got {', '.join(map(str, sites))}; start a new fit."
            )
        self.chosen_sites = sorted(sites)

    def setup(self, stage: str) -> None:
        """Load the backbone and refuse sites that it lacks, before any work."""
        self.backbone.check_sites(self.sites)
        if self.hparams["device_map"] is None:
            self.backbone.model.to(self.trainer.strategy.root_device)

    @property
    def _on_trial(self) -> bool:
        return bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]

    def configure_optimizers(self) -> None:
        """Maps are solved, not descended to."""

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Leave texts where they are; the backbone puts their tokens on its device."""
        return batch

    def training_step(self, batch: list[EditRequest], batch_idx: int) -> None:
        """Fit the maps of some edits."""
        batch = with_followed_implications(self.backbone, batch)
        size = self.hparams["prompts_per_batch"]
        fitted = fit_refined(self.backbone, batch, self.sites, self.maps, self.prompts, self.refine, batch=size)
        for request, steps in zip(batch, fitted, strict=True):
            if request.edit_id in self.fitted:
                raise ValueError(f"edit ids must be unique in a fit, but {request.edit_id!r} comes twice.")
            self.fitted[request.edit_id] = (request, steps)

    def on_validation_start(self) -> None:
        """Complete the bank after the last training batch."""
        self.complete()

    def on_train_end(self) -> None:
        """Complete the bank where there is no validation."""
        self.complete()

    def complete(self) -> EditBank:
        """Bring the maps of all processes together, fit the router, and make the bank.

        Raises:
            ValueError: If nothing has been fitted.
        """
        if self.bank is None:
            self.fitted = {r.edit_id: (r, maps) for r, maps in _gathered(self.fitted.values())}
            if not self.fitted:
                raise ValueError("a bank must have at least one edit, but none has been fitted; run `fit` first.")
            self.bank = make_bank(
                self.backbone,
                self.fitted,
                self.router,
                self.maps,
                self.settings(),
            )
        return self.bank

    def settings(self) -> dict[str, Any]:
        """Seed, versions and hyper-parameters of the fit, ready for JSON."""
        settings = fit_settings(self.backbone, self.maps, self.router, self.prompts, self.hparams["seed"])
        return settings | {"refine": asdict(self.refine)}

    def validation_step(self, batch: list[Test], batch_idx: int) -> None:
        """Ask some tests of the bare and of the edited model; in a trial run those of the edits that it has fitted."""
        bank = self.complete()
        tests = [test for test in batch if test.edit_id in bank.ids] if self._on_trial else batch
        lacking = {test.edit_id for test in tests} - set(bank.ids) if "oracle" in self.modes else set()
        if lacking:
            raise ValueError(
                "tests must be of edits that the bank holds where `modes` have an oracle, but it lacks "
                f"{min(lacking)!r}; fit it, or leave the oracle out."
            )
        for mode, rows in ask(self.backbone, bank, tests, self.modes).items() if tests else ():
            self.rows.setdefault(mode, []).extend(rows)

    def on_validation_epoch_start(self) -> None:
        """Forget the rows of an earlier validation."""
        self.rows = {}

    def on_validation_epoch_end(self) -> None:
        """Score the rows of all processes and log the scores; a trial run's rows are too few for it."""
        if self._on_trial:
            return
        self.rows = {mode: _gathered(rows) for mode, rows in self.rows.items()}
        self.scores = {mode: score_sake(rows, seed=self.hparams["seed"]) for mode, rows in self.rows.items()}
        for mode, scores in self.scores.items():
            prefix = "val" if mode == "own" else f"val_{mode}"
            values = {f"{prefix}/{name}": score.value for name, score in scores.items() if score.n}
            self.log_dict(values, rank_zero_only=True)
            for name, row in routing(self.rows[mode]).items() if mode == "own" else ():
                self.log(f"routing/{name}", row["right"], rank_zero_only=True)

    def predict_step(self, batch: list[str], batch_idx: int) -> list[dict[str, Any]]:
        """Let both models write on after some texts; gives what `Prediction.to_json` has for each."""
        found = predict(self.backbone, self.complete(), batch, self.hparams["max_new_tokens"])
        return [prediction.to_json() for prediction in found]

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what has been fitted, without the backbone."""
        checkpoint["fitted"] = {
            edit_id: [{str(site): vars(transport) for site, transport in maps.items()} for maps in steps]
            for edit_id, (_, steps) in self.fitted.items()
        }
        checkpoint["sites"] = [str(site) for site in self.sites]
        checkpoint["requests"] = [asdict(request) for request, _ in self.fitted.values()]
        if self.bank is not None:
            checkpoint["bank"] = {"config": bank_config(self.bank), "tensors": bank_tensors(self.bank)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from what had been fitted."""
        self.chosen_sites = [Site.parse(site) for site in checkpoint["sites"]]
        requests = {fields["edit_id"]: request_from(fields) for fields in checkpoint["requests"]}
        self.fitted = {
            edit_id: (
                requests[edit_id],
                tuple({Site.parse(site): Transport(**parts) for site, parts in maps.items()} for maps in steps),
            )
            for edit_id, steps in checkpoint["fitted"].items()
        }
        if "bank" in checkpoint:
            self.bank = EditBank(**bank_fields(checkpoint["bank"]["config"], checkpoint["bank"]["tensors"]))


def _gathered(items: Iterable[Any]) -> list[Any]:
    """The items of all processes, in the order in which they were dealt out."""
    if not dist.is_initialized():
        return list(items)
    parts: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, list(items))
    return [item for item in chain.from_iterable(zip_longest(*parts)) if item is not None]
