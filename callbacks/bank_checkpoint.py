"""Keeping a fit: edits as they are fitted, a small checkpoint beside them, and the bank at its end."""

from pathlib import Path

import lightning as L
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT

from ..errors import MegaValueError
from ..fitting.checkpoint import BANK, SHARDS
from ..fitting.shards import clear_shards, write_shard
from ..module import MegaModule


class BankCheckpoint(ModelCheckpoint):
    """Write edits into ``fitted/`` as they are ready, ``last.ckpt`` beside them, and in the end the bank in ``edits/``.

    A fit that was killed goes on with ``--ckpt_path last`` and ends in the same bank. Each edit is written once while
    the fit runs, and what a checkpoint takes does not grow. It is a `ModelCheckpoint` so that Lightning finds its file.
    A run without a checkpoint to go on from begins anew; two runs at a time in one folder are refused.

    Args:
        folder: Where the run lives; by default the Trainer's ``default_root_dir``.
        every_n_batches: Batches of edits between two checkpoints.
    """

    def __init__(self, folder: str | None = None, every_n_batches: int = 1) -> None:
        if every_n_batches < 1:
            raise MegaValueError(f"`every_n_batches` must be at least 1, but got {every_n_batches}.")
        super().__init__(dirpath=folder, save_last=True, save_top_k=0)
        self.folder, self.every_n_batches = folder, every_n_batches
        self._lock: FileLock | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Settle where the run lives."""
        self.dirpath = str(Path(self.folder or trainer.default_root_dir).absolute())
        if stage == "fit" and isinstance(pl_module, MegaModule) and not _tried(trainer):
            pl_module.folder = self.path
            if trainer.is_global_zero:
                self._occupy()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin anew where nothing is gone on with."""
        if trainer.is_global_zero and not _tried(trainer) and trainer.ckpt_path is None:
            clear_shards(self.path / SHARDS)
        trainer.strategy.barrier()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Write what has been fitted."""
        if (batch_idx + 1) % self.every_n_batches == 0:
            self._write(trainer, pl_module)
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the bank; the edits by themselves are not needed any more."""
        self._write(trainer, pl_module)
        if isinstance(pl_module, MegaModule) and not _tried(trainer):
            bank = pl_module.complete()
            if trainer.is_global_zero:
                bank.save_pretrained(self.path / BANK)
            pl_module.saved = bank
            self._save(trainer)
            if trainer.is_global_zero:
                clear_shards(self.path / SHARDS)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the folder."""
        self._release()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Let go of the folder; what was written stays."""
        self._release()

    @property
    def path(self) -> Path:
        """The folder of the run."""
        return Path(str(self.dirpath))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing: the end of the only epoch is the end of the fit."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing: no checkpoint is better than another."""

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        self.dirpath = str(Path(self.folder or trainer.default_root_dir).absolute())  # asked for before the setup
        return super()._find_last_checkpoints(trainer)

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the edits that are new, each process its own."""
        if isinstance(pl_module, MegaModule) and pl_module.unsaved and not _tried(trainer):
            write_shard(self.path / SHARDS, pl_module.unsaved, trainer.global_rank)
            pl_module.unsaved = []

    def _save(self, trainer: L.Trainer) -> None:
        """Write what it takes to go on; all processes do it together."""
        if not _tried(trainer):
            beside = self.path / ".last.ckpt"
            trainer.save_checkpoint(beside, weights_only=False)
            if trainer.is_global_zero:
                beside.replace(self.path / "last.ckpt")

    def _occupy(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".lock")
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise MegaValueError(
                f"`folder` must belong to one run at a time, but another one is writing to {self.path}; wait for it, "
                "or choose another folder."
            ) from None

    def _release(self) -> None:
        if self._lock is not None:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None


def _tried(trainer: L.Trainer) -> bool:
    """Whether the run only tries the code and should leave nothing behind."""
    return bool(getattr(trainer, "fast_dev_run", False))
