"""``train.py predict``: bare and edited answers side by side, from a file or by hand."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mega_pl.backbone import Backbone, load
from mega_pl.backbone.backbone import Dtype
from mega_pl.data.relations import labelled
from mega_pl.edits import EditBank
from mega_pl.edits.prediction import Prediction
from mega_pl.edits.prediction import predict as predict_all
from mega_pl.edits.storage import write_text
from mega_pl.errors import MegaValueError
from mega_pl.functional.text import counted


def predict(
    bank: str,
    prompts: str | None = None,
    model: str | None = None,
    max_new_tokens: int = 20,
    output: str | None = None,
    interactive: bool = False,
    revision: str | None = None,
    dtype: Dtype = "float32",
    device_map: str | None = None,
) -> None:
    """Show what the bare and the edited model answer, which edit fired, and why.

    Without prompts, on a terminal, they are asked for one by one; an empty line or Ctrl-D ends it.

    Args:
        bank: The bank's folder, or its repository on the hub.
        prompts: A text file with a prompt a line, or a ``.jsonl`` file of objects with a ``prompt``.
        model: What `load` loads; by default what the bank was fitted on.
        max_new_tokens: The most tokens of an answer.
        output: New file where the answers are written as JSON lines, beside the table on the terminal.
        interactive: Whether prompts are asked for; also ``--interactive`` alone.
        revision: Branch, tag or commit of the model on the hub; by default the bank's.
        dtype: Of the model's weights.
        device_map: Where Accelerate puts the weights.

    Raises:
        ValueError: If there are neither prompts nor a terminal, a file cannot be read or written, or the bank belongs
            to another model.
    """
    texts = _texts(prompts, interactive=interactive)
    if output is not None and Path(output).exists():
        raise MegaValueError(f"`output` must be a new file, but {output!r} exists; choose another name, or move it.")
    if output is not None and not Path(output).absolute().parent.is_dir():
        raise MegaValueError(f"`output` must lie in a folder that exists, but got {output!r}; make the folder first.")
    edits = EditBank.from_pretrained(bank)
    backbone = backbone_of(edits, model, revision, dtype, device_map)
    edits.check(backbone)
    console = Console(highlight=False)
    if texts is None:
        found = converse(backbone, edits, max_new_tokens, console)
    else:
        found = predict_all(backbone, edits, texts, max_new_tokens)
        console.print(table(found))
    if output is not None:
        rows = (json.dumps(prediction.to_json(), ensure_ascii=False) for prediction in found)
        write_text(Path(output), "".join(f"{row}\n" for row in rows))


def _texts(path: str | None, *, interactive: bool) -> list[str] | None:
    """The prompts of a file, or None where a person asks."""
    if path is not None and interactive:
        raise MegaValueError(
            f"prompts must come from a file or from you, but got {path!r} and --interactive; choose one."
        )
    if path is not None:
        return read_prompts(path)
    if not interactive and not sys.stdin.isatty():
        raise MegaValueError(
            "`prompts` must be a file where there is no terminal, but got none; or pass --interactive."
        )
    return None


def backbone_of(
    bank: EditBank, model: str | None, revision: str | None, dtype: Dtype, device_map: str | None
) -> Backbone:
    """The model that is asked, by default the bank's own."""
    own = bank.backbone["revision"]
    if model is None and revision is None and own is not None:
        revision = str(own)
    return load(model or str(bank.backbone["name"]), revision=revision, dtype=dtype, device_map=device_map)


def read_prompts(path: str) -> list[str]:
    """Read prompts, one a line as text, or the ``prompt`` of each line where the file's name ends in ``.jsonl``.

    White space around a prompt is dropped, and empty lines are passed over.

    Args:
        path: The file.

    Raises:
        ValueError: If the file cannot be read, a line of JSON lacks its prompt, or there is none.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise MegaValueError(f"`prompts` must be a text file, but {path!r} cannot be read: {reason}.") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not path.endswith(".jsonl"):
        found = [line for _, line in numbered]
    else:
        found = [_prompt_of(line, f"{path}, line {number}") for number, line in numbered]
    if not found:
        raise MegaValueError(f"`prompts` must hold at least one prompt, but {path!r} has none.")
    return found


def _prompt_of(line: str, place: str) -> str:
    """The prompt in a line of JSON."""
    try:
        prompt = json.loads(line)["prompt"].strip()
        prompt.encode()  # a lone surrogate is no text
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MegaValueError(f'{place}: must be a JSON object with a text "prompt", but got {line[:40]!r}.') from error
    if not prompt:
        raise MegaValueError(f"{place}: `prompt` must not be empty.")
    return str(prompt)


def table(found: Sequence[Prediction]) -> Table:
    """Predictions side by side; what an edit changed is green."""
    rows = Table("prompt", "bare", "edited", "edit", "why", expand=False)
    for prediction in found:
        rows.add_row(*_cells(prediction))
    return rows


def why(prediction: Prediction) -> str:
    """The router's decision in words."""
    route = prediction.route
    subject = [f"subject {route.subject!r}"] if route.subject else []
    relation = [f"relation {labelled(route.relation)}"] if route.relation else []
    if prediction.fired is None and not subject and not route.confidence:
        return "no edit is near"
    return ", ".join([*subject, *relation, f"confidence {route.confidence:.2f}"])


def _cells(prediction: Prediction) -> tuple[Text, ...]:
    """The texts of a prediction, which are shown as they are."""
    style = "green" if prediction.edited != prediction.bare else ""
    fired = Text(prediction.fired, "bold") if prediction.fired is not None else Text("none", "dim")
    bare, edited = Text(prediction.bare.strip()), Text(prediction.edited.strip(), style)
    return Text(prediction.prompt), bare, edited, fired, Text(why(prediction), "dim")


def converse(backbone: Backbone, bank: EditBank, new_tokens: int, console: Console) -> list[Prediction]:
    """Ask a person for prompts until an empty line, Ctrl-D or Ctrl-C, and show both answers to each.

    Args:
        backbone: The bare model.
        bank: The edits.
        new_tokens: The most tokens of an answer.
        console: Where prompts are asked for and answers shown.

    Returns:
        What was predicted, in order.
    """
    console.print(Text(f"{counted(len(bank), 'edit')} of {backbone.name}; an empty line ends.", "dim"))
    found: list[Prediction] = []
    while prompt := _line(console):
        try:
            (prediction,) = predict_all(backbone, bank, [prompt], new_tokens)
        except ValueError as error:
            console.print(Text(f"error: {error}", "red"))
            continue
        found.append(prediction)
        answers = Table.grid(padding=(0, 2))
        for name, cell in zip(("bare", "edited", "edit", "why"), _cells(prediction)[1:], strict=True):
            answers.add_row(Text(f"  {name}", "dim"), cell)
        console.print(answers)
    return found


def _line(console: Console) -> str:
    """The next prompt of a person; "" at the end."""
    try:
        return console.input("[bold]> [/bold]").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return ""
