"""The files of a bank: tensors in safetensors, everything else in JSON, and a card for people."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mega_pl.backbone import Site
from mega_pl.edits.card import CARD, card, may_write, portable
from mega_pl.edits.change import Change
from mega_pl.edits.hub import Token, download
from mega_pl.edits.integrity import PARTS
from mega_pl.edits.request import EditRequest
from mega_pl.edits.routing import ROUTERS
from mega_pl.edits.soundness import check_bank, check_history, check_missed, check_part
from mega_pl.edits.values import member
from mega_pl.errors import MegaFileError, MegaValueError
from mega_pl.functional import Transports

if TYPE_CHECKING:
    from mega_pl.edits.bank import EditBank

FORMAT_VERSION = 6
TENSORS, CONFIG = "edit_model.safetensors", "edit_config.json"


def save_bank(bank: EditBank, folder: Path) -> Path:
    """Write a bank's three files; a card that is not one of these stays.

    Tensors and config are written beside their places and then renamed, tensors first. Whoever is stopped between the
    two leaves the new config beside its place, where `load_bank` finds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = bank_tensors(bank)
    # One entry of metadata, because several come in any order, and the same bank should be the same file.
    write_tensors(tensors, folder / f".{TENSORS}", {"format": "pt"})
    config = {**bank_config(bank), "tensors": digest(tensors)}
    config["digest"] = _config_digest(config)
    text = json.dumps(config, ensure_ascii=False, indent=1) + "\n"
    (folder / f".{CONFIG}").write_text(text, encoding="utf-8")
    for name in (TENSORS, CONFIG):
        os.replace(folder / f".{name}", folder / name)
    if may_write(folder / CARD):
        write_text(folder / CARD, card(bank))
    return folder


def load_bank(
    name_or_path: str, revision: str | None, token: Token = None, cache_dir: str | Path | None = None
) -> dict[str, Any]:
    """Read the fields of a bank.

    Raises:
        ValueError: If a file is missing, damaged or of an unknown format.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        if folder.is_absolute() or name_or_path.count("/") != 1 or name_or_path.startswith("."):
            raise MegaValueError(
                f"a bank must be a folder or a repository on the hub, but there is no {name_or_path!r}."
            )
        files = [TENSORS, CONFIG]
        folder = download(name_or_path, files, revision=revision, token=token, cache_dir=cache_dir)
    try:
        return _read(folder, folder / CONFIG)
    except MegaValueError:
        beside = folder / f".{CONFIG}"  # of a save that was stopped between its two files
        if not beside.is_file():
            raise
        try:
            return _read(folder, beside)
        except MegaValueError:
            pass
        raise


def _read(folder: Path, path: Path) -> dict[str, Any]:
    """Read the fields of a bank, its config from a file of the folder."""
    try:
        config = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise MegaValueError(f"{folder}: a bank needs a sound {CONFIG} and {TENSORS}, but {_line(error)}.") from error
    if not isinstance(config, dict):
        raise MegaValueError(f"{folder}: {CONFIG} must hold an object, but got {type(config).__name__}.")
    try:
        if config.get("tensors") != digest(tensors):
            raise MegaValueError("they are not of one bank; save it again.")
        fields = bank_fields(config, tensors)
        if config.get("digest") != _config_digest(config):
            raise MegaValueError(f"{CONFIG} was changed after it was written; save the bank again.")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise MegaValueError(f"{folder}: {CONFIG} and {TENSORS} must belong together, but {_line(error)}") from error
    return fields


def bank_config(bank: EditBank) -> dict[str, Any]:
    """Everything of a bank that is not a tensor, ready for JSON."""
    own = _part_config(bank)
    return {
        "format_version": FORMAT_VERSION,
        "method": "mega",
        "base_model_name_or_path": portable(str(bank.backbone["name"])),
        "backbone": {**bank.backbone, "name": portable(str(bank.backbone["name"]))},
        "sites": [str(site) for site in bank.maps],
        "token_scope": "last_prompt",
        "strength": bank.strength,
        **own,
        "settings": dict(bank.settings),
        "history": [
            {
                "operation": change.operation,
                "new": list(change.new),
                "places": list(change.places),
                "lost": change.lost and _unlike(_part_config(change.lost), own),
            }
            for change in bank.history
        ],
    }


def bank_tensors(bank: EditBank) -> dict[str, Tensor]:
    """The tensors of a bank's maps and router, and of the edits that it has lost, by name."""
    tensors = _part_tensors(bank)
    for i, change in enumerate(bank.history):
        for name, tensor in _part_tensors(change.lost).items() if change.lost else ():
            if name.startswith("maps.") or not torch.equal(tensor, tensors[name]):
                tensors[f"history.{i}.{name}"] = tensor
    return tensors


def bank_fields(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of a bank again.

    Raises:
        ValueError: If the format is unknown, or something is missing or does not fit.
    """
    if config.get("format_version") != FORMAT_VERSION:
        raise MegaValueError(
            f"`format_version` of a bank must be {FORMAT_VERSION}, but got {config.get('format_version')!r}; "
            "fit its edits again, or read it with the version that wrote it."
        )
    from mega_pl.edits.bank import EditBank  # a bank holds those that it has lost

    check_bank(config)
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith("history.")}
    shared = {name: tensor for name, tensor in own.items() if name.startswith("router.")}
    fields = _part_fields(config, own, config)
    check_history(config.get("history", []), [request.edit_id for request in fields["requests"]])
    rest = {name: config[name] for name in ("strength", "backbone", "settings")}
    changes = []
    for i, change in enumerate(config.get("history", [])):
        prefix, lost = f"history.{i}.", None
        if change["lost"] is not None:
            of_lost = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            part = {**change["lost"], "router": {**config["router"], **member(change["lost"], "router", dict)}}
            lost = EditBank(**_part_fields(part, {**shared, **of_lost}, config), **rest)
        changes.append(Change(change["operation"], tuple(change["new"]), tuple(change["places"]), lost))
    return {**fields, **rest, "history": tuple(changes)}


def _part_config(bank: EditBank) -> dict[str, Any]:
    """What belongs to single edits, and the router, for JSON."""
    return {
        "router": {"kind": bank.router.kind, **bank.router.state()[0]},
        "edits": [asdict(request) for request in bank.requests],
        "objects": [list(ids) for ids in bank.objects],
        "missed": dict(bank.missed),
        "digests": list(bank.digests),
    }


def _part_tensors(bank: EditBank) -> dict[str, Tensor]:
    """The tensors of what belongs to single edits, and of the router."""
    tensors = {f"maps.{site}.{name}": getattr(maps, name) for site, maps in bank.maps.items() for name in PARTS}
    tensors |= {f"router.{name}": tensor for name, tensor in bank.router.state()[1].items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _part_fields(part: dict[str, Any], tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a bank that `_part_config` and `_part_tensors` give."""
    check_part(part, tensors, config)
    requests, router = tuple(map(request_from, part["edits"])), part["router"]
    check_missed(part, [request.edit_id for request in requests])
    of_router = {name.removeprefix("router."): t for name, t in tensors.items() if name.startswith("router.")}
    return {
        "requests": requests,
        "maps": {
            Site.parse(site): Transports(*(tensors[f"maps.{site}.{name}"] for name in PARTS))
            for site in config["sites"]
        },
        "objects": tuple(map(tuple, part["objects"])),
        "missed": part["missed"],
        "digests": tuple(part["digests"]),
        "router": ROUTERS[router["kind"]].from_state(requests, router, of_router),
    }


def _unlike(part: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The config of lost edits without what their router shares with the bank's."""
    router = {name: value for name, value in part["router"].items() if value != own["router"][name]}
    return {**part, "router": router}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, which tells whether the files of a bank belong together.

    Of maps only the shapes and the ranks count here; `integrity` sees to their values when they are used.
    """
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if "maps." not in name or name.endswith(".ranks"):
            found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 of a config without its digest."""
    text = json.dumps({name: value for name, value in config.items() if name != "digest"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def request_from(fields: dict[str, Any]) -> EditRequest:
    """A request from what JSON makes of its fields."""
    return EditRequest(**{name: _tuples(value) for name, value in fields.items()})


def _tuples(value: Any) -> Any:  # noqa: ANN401
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors to a file.

    Raises:
        OSError: If there is no room, or no right to write.
    """
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # what its own library makes of an OSError
        path.unlink(missing_ok=True)
        raise MegaFileError(f"{path.parent} must be a place to write to, but {_line(error)}.") from error


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that it is never half there."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside a file, of this process alone, for what takes the file's place at the end of a ``with`` block."""
    beside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _refuse_constant(name: str) -> None:
    raise MegaValueError(f"{name} is no number of JSON")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
