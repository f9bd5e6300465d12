"""The command line: ``fit``, ``validate`` and ``test`` by Lightning, and our own verbs, all with help."""

import sys
import warnings
from collections.abc import Callable

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from mega_pl.commands import attribute, compare
from mega_pl.commands.dry_run import rehearse_fit
from mega_pl.data.datamodule import EditDataModule
from mega_pl.data.jsonl import write_example
from mega_pl.module import MegaModule

VERBS: dict[str, Callable[..., None]] = {"attribute": attribute, "compare": compare, "template": write_example}
"""Commands that are no Lightning loop."""


DESCRIPTION = f"Fit and judge edits of facts. Beside these subcommands there are {', '.join(VERBS)}, with --help."

DRY_RUN = "Only check config, data and tokenizer and tell the memory, without weights; also --dry-run."


class MegaCLI(LightningCLI):
    """LightningCLI with one seed for everything."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Use the CLI's seed in the module, and offer a dry run."""
        parser.link_arguments("seed_everything", "model.seed", compute_fn=_seed)
        parser.add_argument("--dry_run", type=bool, default=False, help=DRY_RUN)

    def before_fit(self) -> None:
        """Read the data and the backbone before anything is written, so that a mistake leaves nothing behind."""
        self.datamodule.setup("fit")
        if self.config[self.subcommand].dry_run:
            rehearse_fit(self.model, self.datamodule)
            sys.exit(0)
        self.model.backbone.check_sites(self.model.sites)

    before_validate = before_test = before_fit


def _seed(seed: int | bool | None) -> int:
    return 0 if isinstance(seed, bool) or seed is None else seed


def _line(message: str) -> str:
    """The rule that was broken, out of what the parser tells about every type that it tried."""
    lines = [line.strip(" -") for line in message.splitlines()]
    return next((line for line in lines if " must " in line), lines[0] if lines else "")


def main(args: ArgsType = None) -> None:
    """Run a command; a mistake of the caller ends it in one line."""
    torch.set_float32_matmul_precision("highest")
    # Lightning on what is meant: texts stay where they are whoever hands them out, and maps are solved.
    warnings.filterwarnings("ignore", "You have overridden `transfer_batch_to_device` in `LightningModule`")
    warnings.filterwarnings("ignore", ".LightningModule.configure_optimizers. returned .None.")
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    words = sys.argv[1:] if args is None else args
    if isinstance(words, list):
        words = ["--dry_run=true" if word == "--dry-run" else word for word in words]
    try:
        if isinstance(words, list) and words and words[0] in VERBS:
            auto_cli(VERBS[words[0]], args=words[1:], as_positional=False, prog=f"{sys.argv[0]} {words[0]}")
            return
        MegaCLI(
            MegaModule,
            EditDataModule,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"default_env": True, "description": DESCRIPTION},
            trainer_class=L.Trainer,
            args=words,
        )
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"error: {_line(str(error))}")
