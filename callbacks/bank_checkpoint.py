"""Keeping a fit: a small checkpoint while it runs, the bank of edits at its end."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT

from ..module import MegaModule


class BankCheckpoint(ModelCheckpoint):
    """Save ``last.ckpt`` every few batches and the bank in ``edits/`` when it is complete.

    A fit that was killed goes on with ``--ckpt_path last`` and ends in the same bank. It is a `ModelCheckpoint` so that
    Lightning finds its file, but it saves by batches: without an optimiser Lightning counts no steps.

    Args:
        folder: Where the run lives; by default the Trainer's ``default_root_dir``.
        every_n_batches: Batches of edits between two checkpoints.
    """

    def __init__(self, folder: str | None = None, every_n_batches: int = 1) -> None:
        if every_n_batches < 1:
            raise ValueError(f"`every_n_batches` must be at least 1, but got {every_n_batches}.")
        super().__init__(dirpath=folder, save_last=True, save_top_k=0)
        self.folder, self.every_n_batches = folder, every_n_batches

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settle where the run lives."""
        self.dirpath = str(Path(self.folder or trainer.default_root_dir).absolute())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Save the state of the fit."""
        if (batch_idx + 1) % self.every_n_batches == 0:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the bank and the finished fit."""
        if trainer.is_global_zero and not _tried(trainer) and isinstance(pl_module, MegaModule):
            pl_module.complete().save_pretrained(self.path / "edits")
        self._save(trainer)

    @property
    def path(self) -> Path:
        """The folder of the run."""
        return Path(str(self.dirpath))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing: the end of the only epoch is the end of the fit."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing: no checkpoint is better than another."""

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        self.setup(trainer, trainer.lightning_module, "fit")  # Lightning looks for a file to go on from before it
        return super()._find_last_checkpoints(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if not _tried(trainer):
            beside = self.path / ".last.ckpt"
            trainer.save_checkpoint(beside, weights_only=False)
            if trainer.is_global_zero:
                beside.replace(self.path / "last.ckpt")


def _tried(trainer: L.Trainer) -> bool:
    """Whether the run only tries the code and should leave nothing behind."""
    return bool(getattr(trainer, "fast_dev_run", False))
