"""Choosing the layers of a fit by attribution before it starts, and showing where it steers when it is done."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure

from ..attribution.figures import draw_contrast, draw_edit, draw_steering
from ..attribution.selection import Selection, SelectionConfig, select
from ..attribution.steering import edit_importance, steering_norms
from ..data.datamodule import EditDataModule
from ..editors.protocol import Editor
from ..errors import MegaValueError
from ..module import MegaModule


class AttributionLayerSelection(L.Callback):
    """Contrast successful with failed edits of some editors and steer where their attention differs.

    The contrast is made of edits of its own, cached by backbone, so that most fits only read it. The run's folder gets
    ``attribution.json``, the same as a table, and in ``figures/`` the contrast, how far each site is moved, and what
    the first edit changes inside the model; TensorBoard gets the table and the figures.

    Args:
        data: The edits of the contrast; none of them may be among those that are fitted.
        editors: Who makes them.
        config: How layers are chosen.
        cache: Folder of the cache; by default ``$MEGA_PL_CACHE`` or ``~/.cache/mega_pl``.
        folder: Where the run lives; by default the Trainer's ``default_root_dir``.
    """

    def __init__(
        self,
        data: EditDataModule,
        editors: Sequence[Editor],
        config: SelectionConfig | None = None,
        cache: str | None = None,
        folder: str | None = None,
    ) -> None:
        self.data, self.editors, self.config = data, list(editors), config or SelectionConfig()
        self.cache = None if cache is None else Path(cache)
        self.folder = folder
        self.selection: Selection | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose the sites and hand them to the module."""
        if stage != "fit" or not isinstance(pl_module, MegaModule):
            return
        self.data.setup("fit")
        self._check_disjoint(trainer)
        selection = select(pl_module.backbone, self.editors, self.data.cases, self.config, cache=self.cache)
        pl_module.steer_at(selection.sites)
        self.selection = selection

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record why the sites were chosen."""
        if self.selection is None or not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        self.selection.save(self._folder(trainer))
        print(f"\n{self.selection.table()}")
        layers = [site.layer for site in self.selection.sites]
        _log(trainer, "attribution/contrast", draw_contrast(self.selection.contrast, layers), self.selection.table())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show where the fitted edits act."""
        if self.selection is None or not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        if isinstance(pl_module, MegaModule):
            bank, folder = pl_module.complete(), self._folder(trainer) / "figures"
            request, layers = bank.requests[0], [site.layer for site in bank.maps]
            before, after = edit_importance(pl_module.backbone, bank, request.edit_id)
            figures = {
                "steering": draw_steering(steering_norms(pl_module.backbone, bank)),
                "edit": draw_edit(before, after, names=(request.target_new, request.target_true), picked=layers),
            }
            for name, figure in figures.items():
                figure.savefig(folder / f"{name}.png", dpi=150)
                _log(trainer, f"attribution/{name}", figure)

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(self.folder or trainer.default_root_dir)

    def _check_disjoint(self, trainer: L.Trainer) -> None:
        fitted = getattr(trainer, "datamodule", None)
        if not isinstance(fitted, EditDataModule):
            return
        fitted.setup("fit")
        judged = {(request.subject, request.filled) for request in fitted.requests}
        for request in self.data.requests:
            if (request.subject, request.filled) in judged:
                raise MegaValueError(
                    f"edits of the contrast must not be fitted too, but {request.edit_id!r} ({request.filled!r}) is; "
                    "take another split or other records."
                )


def _log(trainer: L.Trainer, name: str, figure: Figure, text: str = "") -> None:
    """Show a figure, and the text that belongs to it, in TensorBoard."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure)
            if text:
                logger.experiment.add_text(name, text)
