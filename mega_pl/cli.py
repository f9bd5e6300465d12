"""The command line: ``fit``, ``validate`` and ``test`` by Lightning, and our own verbs, all with help."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import auto_cli
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from mega_pl.commands import attribute, compare, export, look, predict
from mega_pl.commands.dry_run import rehearse_fit
from mega_pl.data import write_example
from mega_pl.data.datamodule import EditDataModule
from mega_pl.errors import MegaError, MegaValueError
from mega_pl.module import MegaModule

LOOPS = {
    "fit": "Fit edits, and keep them as a bank.",
    "validate": "Judge fitted edits on the tests of their records.",
    "test": "The same, with the files that belong to results.",
}
"""Commands that are Lightning's, each in a line."""

VERBS: dict[str, Callable[..., None]] = {
    "predict": predict,
    "look": look,
    "attribute": attribute,
    "compare": compare,
    "template": write_example,
    "export": export,
}
"""Commands that are no Lightning loop."""

FLAGS = {
    "--dry-run": "--dry_run",
    "--dry_run": "--dry_run",
    "--lossy": "--lossy",
    "--interactive": "--interactive",
    "--browser": "--browser",
}
"""Options that may stand without a value, and their names."""

DRY_RUN = "Only check config, data and tokenizer and tell the memory, without weights; also --dry-run."


class MegaCLI(LightningCLI):
    """LightningCLI with one seed for everything; prediction is a verb of our own."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's loops that the command line runs."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in LOOPS}

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Name all commands in the usage, those of our own too."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        self.parser.usage = f"%(prog)s [-c CONFIG] {{{','.join([*LOOPS, *VERBS])}}} ..."

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Use the CLI's seed in the module, and offer a dry run."""
        parser.link_arguments("seed_everything", "model.seed", compute_fn=_seed)
        parser.add_argument("--dry_run", type=bool, default=False, help=DRY_RUN)

    def _parse_ckpt_path(self) -> None:
        """Nothing: what is said holds over what a checkpoint was made with; the module refuses what does not fit."""

    def before_fit(self) -> None:
        """Read the data and the backbone before anything is written, so that a mistake leaves nothing behind."""
        _check_checkpoint(self.config[self.subcommand].ckpt_path)
        self.datamodule.setup("fit")
        if self.config[self.subcommand].dry_run:
            rehearse_fit(self.model, self.datamodule)
            sys.exit(0)
        _ = self.model.fitter

    before_validate = before_test = before_fit


def _check_checkpoint(path: str | None) -> None:
    """Refuse a checkpoint that is not there, unless Lightning is to find it by a word or an address."""
    found_by_lightning = path is None or path in ("last", "best", "hpc") or ":" in path
    if not found_by_lightning and not Path(str(path)).is_file():
        raise MegaValueError(f"`ckpt_path` must be a file, or last, best or hpc, but there is no {path!r}.")


def _seed(seed: int | bool | None) -> int:
    return 0 if isinstance(seed, bool) or seed is None else seed


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was raised for; the parser wraps what a type has refused."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _summary(command: Callable[..., None]) -> str:
    """What a command does, in a line."""
    return (command.__doc__ or "").partition("\n")[0]


def overview(program: str) -> str:
    """All commands, each with a line."""
    lines = LOOPS | {verb: _summary(command) for verb, command in VERBS.items()}
    width = max(map(len, lines))
    return "\n".join(
        [
            f"usage: {program} {{{','.join(lines)}}} [options]\n",
            *(f"  {verb:<{width}}  {line}" for verb, line in lines.items()),
            f"\n{program} VERB --help tells the options of each.",
        ]
    )


def _spelled(words: list[str]) -> list[str]:
    """The words of a command, each flag with a value."""
    following = [*words[1:], ""]
    return [
        f"{FLAGS[word]}=true" if word in FLAGS and value.lower() not in ("true", "false") else word
        for word, value in zip(words, following, strict=False)
    ]


def _general_first(words: list[str]) -> list[str]:
    """The words of a command with its config files first and the class of its data next.

    The parser lets the last word on a thing hold, and a file speaks of all things: what is said on the line holds over
    files wherever it stands.
    """
    ranks = {"-c": 0, "--config": 0, "--data": 1}
    options: list[list[str]] = []
    for word in words[1:]:
        if word.startswith("-") or not options:
            options.append([word])
        else:
            options[-1].append(word)
    options.sort(key=lambda option: ranks.get(option[0].partition("=")[0], 2))
    return words[:1] + [word for option in options for word in option]


def main(args: ArgsType = None) -> None:
    """Run a command; a mistake of the caller ends it in one line."""
    torch.set_float32_matmul_precision("highest")
    # Lightning on what is meant: texts stay where they are whoever hands them out, and maps are solved.
    warnings.filterwarnings("ignore", "You have overridden `transfer_batch_to_device` in `LightningModule`")
    warnings.filterwarnings("ignore", "LightningCLI's args parameter")
    words = sys.argv[1:] if args is None else args
    try:
        if isinstance(words, list):
            words = _spelled(words)
            words = _general_first(words) if words and not words[0].startswith("-") else words
            if _run_verb(words, Path(sys.argv[0]).name):
                return
        MegaCLI(
            MegaModule,
            EditDataModule,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"default_env": True},
            trainer_class=L.Trainer,
            args=words,
        )
    except (MegaError, ValueError) as error:
        own = next((cause for cause in _causes(error) if isinstance(cause, MegaError)), error)
        sys.exit(f"error: {' '.join(str(own).split())}")
    except OSError as error:
        place = f"{str(error.filename)!r} must be a place to read from or write to, but {error.strerror}."
        sys.exit(f"error: {place if error.filename else ' '.join(str(error).split())}")


def _run_verb(words: list[str], program: str) -> bool:
    """Run a command that is no Lightning loop; False if it is one.

    Raises:
        ValueError: If there is no such command.
    """
    verb = words[0] if words else ""
    if verb in ("-h", "--help") or (not words and "PL_SUBCOMMAND" not in os.environ):
        print(overview(program))
        return True
    if verb in VERBS:
        auto_cli(VERBS[verb], args=words[1:], as_positional=False, prog=f"{program} {verb}")
        return True
    if words and not verb.startswith("-") and verb not in LOOPS:
        raise MegaValueError(f"the command must be one of {', '.join([*LOOPS, *VERBS])}, but got {verb!r}.")
    return False
