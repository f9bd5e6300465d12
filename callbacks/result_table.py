"""What a run leaves for people: a table, a figure, and the files they are made from."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from ..compare import Block, bars, markdown
from ..compare.report import BARE
from ..edits.storage import write_text
from ..evaluation import routing
from ..fitting import versions
from ..metrics import Score
from ..module import MegaModule

NAMES = {
    "acc": "Acc", "gen": "Gen", "spec": "Spec", "di": "DI", "dii": "DII",
    "ci": "CI", "cii": "CII", "rs": "RS", "sa": "SA", "average": "Average",
}  # fmt: skip


class ResultTable(L.Callback):
    """Print the scores as a table; write ``metrics.json``, ``cases.jsonl`` and ``figures/scores.png``; log all three.

    Args:
        folder: Where the run lives; by default the Trainer's ``default_root_dir``.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report a validation that went through."""
        tried = trainer.sanity_checking or getattr(trainer, "fast_dev_run", False)
        if trainer.is_global_zero and not tried and isinstance(pl_module, MegaModule) and pl_module.scores:
            self._report(trainer, pl_module)

    on_test_end = on_validation_end

    def _report(self, trainer: L.Trainer, module: MegaModule) -> None:
        folder = Path(self.folder or trainer.default_root_dir)
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        text = json.dumps(results(module), ensure_ascii=False, indent=1, allow_nan=False)
        write_text(folder / "metrics.json", text + "\n")
        rows = "".join(
            json.dumps({"mode": mode, **asdict(row)}, ensure_ascii=False) + "\n"
            for mode, of_mode in module.rows.items()
            for row in of_mode
        )
        write_text(folder / "cases.jsonl", rows)
        figure = bars(module.scores[module.modes[0]], NAMES)
        figure.savefig(folder / "figures" / "scores.png", dpi=150)
        shown = markdown(table(module))
        print(f"\n{shown}\nWritten to {folder}: metrics.json, cases.jsonl, figures/scores.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("scores", shown, trainer.current_epoch)
                logger.experiment.add_figure("scores", figure, trainer.current_epoch)


def results(module: MegaModule) -> dict[str, Any]:
    """The content of ``metrics.json``."""
    bank = module.complete()
    first = module.modes[0]
    silent = [row for row in module.rows[first] if not row.fired]
    same = sum(row.new_probability == row.bare_new and row.true_probability == row.bare_true for row in silent)
    return {
        "format_version": 1,
        "protocol": "sake",
        "method": "mega",
        "backbone": module.backbone.name,
        "backbone_fingerprint": module.backbone.fingerprint,
        "edits": len(bank),
        "missed": dict(bank.missed),
        "seed": module.hparams["seed"],
        "versions": versions(),
        "metrics": _entries(module.scores[first]),
        "modes": {mode: _entries(scores) for mode, scores in module.scores.items() if mode != first},
        "routing": routing(module.rows[first]),
        "silent_prompts": {"n": len(silent), "unchanged": same},
        "settings": module.settings(),
        "sites": [str(site) for site in module.sites],
    }


def table(module: MegaModule) -> Block:
    """The scores, a row a mode, after the bare model's on the same tests."""
    first = module.scores[module.modes[0]]
    rows: dict[str, tuple[float, ...]] = {BARE: tuple(first[name].bare for name in NAMES)}
    rows |= {mode: tuple(scores[name].value for name in NAMES) for mode, scores in module.scores.items()}
    return Block(module.backbone.name, tuple(NAMES.values()), rows, tuple(first[name].n for name in NAMES))


def _entries(scores: dict[str, Score]) -> dict[str, Any]:
    return {name: score.to_json() for name, score in scores.items()}
