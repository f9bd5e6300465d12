"""Fitting edits as a Lightning fit: a frozen backbone, edits as training batches, tests as validation batches."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from mega_pl.backbone import Backbone, Site, load
from mega_pl.backbone.backbone import Dtype
from mega_pl.edits import EditBank, EditCase, EditRequest, RouterConfig
from mega_pl.edits.prediction import predict
from mega_pl.errors import MegaValueError
from mega_pl.fitting import EditFitter, FitConfig, FittedEdit, MapConfig, PromptConfig, RefineConfig, settings
from mega_pl.fitting.checkpoint import fit_state, restore_fit
from mega_pl.judging import Judging, gathered
from mega_pl.protocols import PROTOCOLS
from mega_pl.protocols.sake import Mode

torch.serialization.add_safe_globals([MapConfig, RefineConfig, RouterConfig, PromptConfig])

Batch = TypeVar("Batch", list[EditRequest], list[EditCase], list[str])


class MegaModule(L.LightningModule):
    """MEGA (arXiv:2603.20795): edits fitted as transport maps of activations, one fit for many edits.

    A training batch is a list of `EditRequest`; its maps are solved in closed form and the weights never change. One
    epoch fits all, however many the Trainer would run. When all are fitted the router is, and the bank is complete. A
    validation batch is a list of `EditCase`, about which protocols ask the bare and the edited model, during the fit
    about the edits that it has fitted; a prediction batch is a list of texts, which both write on after.

    A second fit, or one that goes on from a checkpoint, keeps what was fitted, fits what is new, and fits again what
    has another request under its id; other sites, settings or another backbone are refused.

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
        modes: Who routes in validation under `sake`: the bank's own router, and others for comparison.
        tokens_per_batch: The most tokens of a forward pass while fitting; by default what the device bears.
        max_new_tokens: The most tokens of an answer in prediction.
        seed: Seed of everything random, written beside the results.
        protocols: Who judges in validation; `sake` by default. Under another protocol the bank's own router routes.
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
        tokens_per_batch: int | None = None,
        max_new_tokens: int = 20,
        seed: int = 0,
        protocols: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.anchor = nn.Parameter(torch.zeros(()))  # without a parameter several processes refuse to begin
        self.config = FitConfig(
            sites=tuple(sites or ()),
            maps=maps or MapConfig(),
            refine=refine or RefineConfig(),
            router=router or RouterConfig(),
            prompts=prompts or PromptConfig(),
            tokens_per_batch=tokens_per_batch,
            seed=seed,
        )
        self.judging = Judging(protocols or ["sake"], modes or ["own"])
        self.bank: EditBank | None = None
        self.folder: Path | None = None
        self.unsaved: list[FittedEdit] = []
        self.saved: EditBank | None = None
        self._backbone: Backbone | None = None
        self._fitter: EditFitter | None = None
        self._seen: set[str] = set()

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
        return self._backbone

    @property
    def fitter(self) -> EditFitter:
        """What fits the edits."""
        if self._fitter is None:
            self._fitter = EditFitter(self.backbone, self.config)
        return self._fitter

    @property
    def sites(self) -> list[Site]:
        """Where edits steer, in the order of a forward pass."""
        return self.fitter.sites

    def steer_at(self, sites: Sequence[Site]) -> None:
        """Steer at other sites, as a callback may decide before the fit.

        Raises:
            ValueError: If the backbone lacks one, or edits have been fitted at others.
        """
        self.backbone.check_sites(sites)
        if self._fitter is not None and self._fitter.fitted and sorted(sites) != self.sites:
            raise MegaValueError(
                f"`sites` must be those of the edits fitted so far, {', '.join(map(str, self.sites))}, "
                f"but got {', '.join(map(str, sites))}; start a new fit."
            )
        self.config = replace(self.config, sites=tuple(map(str, sites)))
        if self._fitter is not None and not self._fitter.fitted:
            self._fitter = None

    def setup(self, stage: str) -> None:
        """Load the backbone and refuse what it cannot do, before any work.

        Raises:
            ValueError: If it lacks a site, or the Trainer would have another precision.
        """
        precision = self.trainer.precision
        if precision != "32-true":
            raise MegaValueError(
                f"`precision` of the Trainer must be 32-true, but got {precision}; the backbone's is `dtype` of the "
                "module, and maps are solved in float64."
            )
        if self.hparams["device_map"] is None:
            self.backbone.model.to(self.trainer.strategy.root_device)
        _ = self.fitter

    @property
    def _on_trial(self) -> bool:
        return bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Something that counts steps, as checkpoints and loggers ask for; maps are solved, not descended to."""
        return torch.optim.SGD([self.anchor], lr=0.0)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Leave texts where they are; the backbone puts their tokens on its device."""
        return batch

    def on_train_epoch_start(self) -> None:
        """Begin to look for ids that come twice."""
        self._seen = set()

    def training_step(self, batch: list[EditRequest], batch_idx: int) -> None:
        """Fit some edits, those that are not fitted yet."""
        for request in batch:
            if request.edit_id in self._seen:
                raise MegaValueError(f"edit ids must be unique in a fit, but {request.edit_id!r} comes twice.")
            self._seen.add(request.edit_id)
        self.unsaved += self.fitter.update(batch)
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.step()

    def on_train_epoch_end(self) -> None:
        """End the fit, for one epoch has fitted all, and complete the bank."""
        self.trainer.should_stop = True
        self._gather()
        self.complete()

    def on_validation_start(self) -> None:
        """Complete the bank of what has been fitted."""
        self._gather()
        if not self.trainer.sanity_checking or self.fitter.fitted:
            self.complete()

    def _gather(self) -> None:
        """Bring together what each process was dealt; that is as the data has it, whatever was fitted before."""
        if dist.is_initialized():
            requests = {edit_id: edit.request for edit_id, edit in self.fitter.fitted.items()}
            edits = gathered([self.fitter.fitted[edit_id] for edit_id in self._seen])
            self.fitter.keep(edit for edit in edits if requests.get(edit.request.edit_id) != edit.request)

    def complete(self) -> EditBank:
        """The bank of all edits that have been fitted, or the one that was given.

        Raises:
            ValueError: If nothing has been fitted.
        """
        if self.bank is None or self.fitter.fitted:
            self.bank = self.fitter.bank(self._order())
        return self.bank

    def _order(self) -> list[str]:
        """The ids of what is being fitted, in the order of the data."""
        loader = self.trainer.train_dataloader if self._trainer is not None else None
        requests = getattr(loader, "dataset", None)
        return [r.edit_id for r in requests if isinstance(r, EditRequest)] if isinstance(requests, Sequence) else []

    def settings(self) -> dict[str, Any]:
        """Seed, versions and hyper-parameters of the fit, ready for JSON."""
        return settings(self.backbone, self.config)

    def on_validation_epoch_start(self) -> None:
        """Tell the protocols what will be judged; a sanity check before the fit judges nothing."""
        if self.bank is not None:
            self.judging.begin(self.backbone, self._cases(), self.device)

    def validation_step(self, batch: list[EditCase], batch_idx: int) -> None:
        """Judge some edits; during a fit those that it has fitted.

        Raises:
            ValueError: If an oracle is to route tests of edits that the bank lacks.
        """
        if self.bank is not None:
            fitting = self.trainer.state.fn == TrainerFn.FITTING
            cases = [case for case in batch if case.request.edit_id in self.bank.ids] if fitting else batch
            self.judging.update(self.backbone, self.bank, cases)

    def on_validation_epoch_end(self) -> None:
        """Score and log; what a trial or a sanity check has judged is too little for it."""
        if self._on_trial or self.trainer.sanity_checking:
            return
        self.judging.finish(self.config.seed)
        if not self.trainer.barebones:
            self.log_dict(self.judging.logged(), rank_zero_only=True)

    def _cases(self) -> list[EditCase]:
        """All cases that will be judged."""
        testing = self.trainer.state.fn == TrainerFn.TESTING
        loader = self.trainer.test_dataloaders if testing else self.trainer.val_dataloaders
        cases = getattr(loader, "dataset", None)
        return [case for case in cases if isinstance(case, EditCase)] if isinstance(cases, Sequence) else []

    def predict_step(self, batch: list[str], batch_idx: int) -> list[dict[str, Any]]:
        """Let both models write on after some texts; gives what `Prediction.to_json` has for each."""
        found = predict(self.backbone, self.complete(), batch, self.hparams["max_new_tokens"])
        return [prediction.to_json() for prediction in found]

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end
    on_test_start = on_validation_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what has been fitted, without the backbone."""
        saved = self.saved is not None and self.saved is self.fitter.finished
        checkpoint["fit"] = fit_state(self.fitter, self.folder, saved=saved)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from what had been fitted, which is known by its requests and not by batches.

        Raises:
            ValueError: If it was fitted on another backbone, at other sites or with other settings.
        """
        checkpoint.pop("loops", None)
        state = checkpoint["fit"]
        if not self.config.sites:
            self.steer_at([Site.parse(site) for site in state["fit"]["sites"].split(", ")])
        path = None if self._trainer is None else self._trainer.ckpt_path
        here = restore_fit(self.fitter, state, Path(path).absolute().parent if path and Path(path).is_file() else None)
        self.bank = self.fitter.finished
        if here != self.folder and self.global_rank == 0:  # what lies elsewhere is kept here, too
            self.unsaved = list(self.fitter.fitted.values())


MegaModule.__doc__ = str(MegaModule.__doc__).replace(
    "Who judges in validation;", f"Who judges in validation: some of {', '.join(PROTOCOLS)};"
)  # for --help
