"""What a run leaves for people: a table, a figure, and the files they are made from."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure

from ..edits.storage import write_text
from ..evaluation import routing
from ..fitting import versions
from ..metrics import Score
from ..metrics.scores import shown
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
        figure = draw(module.scores[module.modes[0]])
        figure.savefig(folder / "figures" / "scores.png", dpi=150)
        table = markdown(module)
        print(f"\n{table}\nWritten to {folder}: metrics.json, cases.jsonl, figures/scores.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("scores", table, trainer.current_epoch)
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


def markdown(module: MegaModule) -> str:
    """The scores as a Markdown table, a row a mode and one for the bare model on the same tests."""
    first = module.scores[module.modes[0]]
    lines = ["| | " + " | ".join(NAMES.values()) + " |", "| --- |" + " --- |" * len(NAMES)]
    lines += [f"| {mode} | " + " | ".join(shown(s[n].value) for n in NAMES) + " |" for mode, s in module.scores.items()]
    lines.append("| bare model | " + " | ".join(shown(first[n].bare) for n in NAMES) + " |")
    lines.append("| tests | " + " | ".join(str(first[n].n) for n in NAMES) + " |")
    return "\n".join(lines) + "\n"


def draw(scores: dict[str, Score]) -> Figure:
    """The scores with their 95 % intervals, beside the bare model's."""
    matplotlib.use("Agg", force=False)
    shown = {name: score for name, score in scores.items() if score.n}
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    places = range(len(shown))
    values = [score.value for score in shown.values()]
    low = [max(0.0, score.value - score.ci95[0]) for score in shown.values()]
    high = [max(0.0, score.ci95[1] - score.value) for score in shown.values()]
    axes.bar([p - 0.2 for p in places], [s.bare for s in shown.values()], 0.38, label="bare model", color="#b8b8b8")
    axes.bar([p + 0.2 for p in places], values, 0.38, yerr=[low, high], capsize=3, label="edited", color="#2a6f97")
    for place, value in zip(places, values, strict=True):
        axes.text(place + 0.2, 0.02, f"{value:.2f}", ha="center", color="white", fontsize=7)
    axes.set_xticks(list(places), [NAMES[name] for name in shown])
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("share of tests passed")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _entries(scores: dict[str, Score]) -> dict[str, Any]:
    return {name: score.to_json() for name, score in scores.items()}
