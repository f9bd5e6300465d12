"""What a run leaves for people: a table, a figure, and the files they are made from."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from ..compare import Block, bars, markdown
from ..compare.report import BARE
from ..edits.storage import write_text
from ..fitting import versions
from ..module import MegaModule
from ..protocols import Score
from ..protocols.sake import Row, routing

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
        trial = trainer.sanity_checking or getattr(trainer, "fast_dev_run", False)
        if trainer.is_global_zero and not trial and isinstance(pl_module, MegaModule) and pl_module.judging.scores:
            self._report(trainer, pl_module)

    on_test_end = on_validation_end

    def _report(self, trainer: L.Trainer, module: MegaModule) -> None:
        folder = Path(self.folder or trainer.default_root_dir)
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        text = json.dumps(results(module), ensure_ascii=False, indent=1, allow_nan=False)
        write_text(folder / "metrics.json", text + "\n")
        rows = "".join(
            json.dumps(
                {key: judge, **asdict(row), "outcomes": module.judging.judges[judge].outcomes(row)}, ensure_ascii=False
            )
            + "\n"
            for judge, of_judge in module.judging.rows.items()
            for key in ["mode" if module.judging.judges[judge].name == "sake" else "protocol"]
            for row in of_judge
        )
        write_text(folder / "cases.jsonl", rows)
        figure = bars(next(iter(module.judging.scores.values())), NAMES)
        figure.savefig(folder / "figures" / "scores.png", dpi=150)
        shown = "\n".join(map(markdown, tables(module)))
        print(f"\n{shown}\nWritten to {folder}: metrics.json, cases.jsonl, figures/scores.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("scores", shown, trainer.current_epoch)
                logger.experiment.add_figure("scores", figure, trainer.current_epoch)


def results(module: MegaModule) -> dict[str, Any]:
    """The content of ``metrics.json``: the first protocol's scores, and those of others under their names."""
    bank = module.complete()
    entries = {
        judge: {n: score.to_json() for n, score in scores.items()} for judge, scores in module.judging.scores.items()
    }
    first = next(iter(entries))
    protocol = module.judging.judges[first].name
    same = [judge for judge in entries if module.judging.judges[judge].name == protocol]
    others = {judge: scores for judge, scores in entries.items() if judge not in same}
    return {
        "format_version": 1,
        "protocol": protocol,
        "method": "mega",
        "backbone": module.backbone.name,
        "backbone_fingerprint": module.backbone.fingerprint,
        "edits": len(bank),
        "missed": dict(bank.missed),
        "seed": module.hparams["seed"],
        "versions": versions(),
        "metrics": entries[first],
        "modes": {judge: entries[judge] for judge in same if judge != first},
        **({"protocols": others} if others else {}),
        **(_routing(module.judging.rows[first]) if protocol == "sake" else {}),
        "settings": module.settings(),
        "sites": [str(site) for site in module.sites],
    }


def _routing(rows: Sequence[Row]) -> dict[str, Any]:
    """How prompts were routed, and whether those that got no edit kept their probabilities to the bit."""
    silent = [row for row in rows if not row.fired]
    same = sum(row.new_probability == row.bare_new and row.true_probability == row.bare_true for row in silent)
    return {"routing": routing(rows), "silent_prompts": {"n": len(silent), "unchanged": same}}


def tables(module: MegaModule) -> list[Block]:
    """The scores, a table a protocol: a row a mode, after the bare model's on the same tests."""
    groups: dict[str, list[str]] = {}
    for judge in module.judging.scores:
        groups.setdefault(module.judging.judges[judge].name, []).append(judge)
    return [
        _table(f"{module.backbone.name}, {name}", {judge: module.judging.scores[judge] for judge in judges})
        for name, judges in groups.items()
    ]


def _table(title: str, scores: dict[str, dict[str, Score]]) -> Block:
    first = next(iter(scores.values()))
    rows = {BARE: tuple(score.bare for score in first.values())}
    rows |= {judge: tuple(of_judge[name].value for name in first) for judge, of_judge in scores.items()}
    return Block(title, tuple(NAMES.get(name, name) for name in first), rows, tuple(s.n for s in first.values()))
