"""The files of a bank: tensors in safetensors, everything else in JSON, and a card for people."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mega_pl.backbone import Site
from mega_pl.edits.hub import Token, download
from mega_pl.edits.request import EditRequest
from mega_pl.edits.routing import CentreRouter, ContentRouter, Router
from mega_pl.functional import Transports

if TYPE_CHECKING:
    from mega_pl.edits.bank import EditBank

FORMAT_VERSION = 3
TENSORS, CONFIG, CARD = "edit_model.safetensors", "edit_config.json", "README.md"
_ROUTERS: dict[str, type[Router]] = {router.kind: router for router in (ContentRouter, CentreRouter)}
_MAPS = ("mean", "shift", "basis", "matrix", "ranks")


def save_bank(bank: EditBank, folder: Path) -> Path:
    """Write a bank's three files, each beside its place and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = bank_tensors(bank)
    # One entry of metadata, because several come in any order, and the same bank should be the same file.
    save_file(tensors, folder / f".{TENSORS}", metadata={"format": "pt"})
    os.replace(folder / f".{TENSORS}", folder / TENSORS)
    config = {**bank_config(bank), "tensors": digest(tensors)}
    write_text(folder / CONFIG, json.dumps(config, ensure_ascii=False, indent=1) + "\n")
    write_text(folder / CARD, _card(bank))
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
            raise ValueError(f"a bank must be a folder or a repository on the hub, but there is no {name_or_path!r}.")
        files = [TENSORS, CONFIG]
        folder = download(name_or_path, files, revision=revision, token=token, cache_dir=cache_dir)
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{folder}: a bank needs a sound {CONFIG} and {TENSORS}, but {error}.") from error
    if config.get("tensors") != digest(tensors):
        raise ValueError(f"{folder}: {CONFIG} and {TENSORS} must be of one bank, but they differ; save it again.")
    try:
        return bank_fields(config, tensors)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder}: {CONFIG} and {TENSORS} must belong together, but {error} does not fit.") from error


def bank_config(bank: EditBank) -> dict[str, Any]:
    """Everything of a bank that is not a tensor, ready for JSON."""
    return {
        "format_version": FORMAT_VERSION,
        "method": "mega",
        "base_model_name_or_path": bank.backbone["name"],
        "backbone": dict(bank.backbone),
        "sites": [str(site) for site in bank.maps],
        "token_scope": "last_prompt",
        "strength": bank.strength,
        "router": {"kind": bank.router.kind, **bank.router.state()[0]},
        "settings": dict(bank.settings),
        "edits": [asdict(request) for request in bank.requests],
        "objects": [list(ids) for ids in bank.objects],
        "missed": dict(bank.missed),
    }


def bank_tensors(bank: EditBank) -> dict[str, Tensor]:
    """The tensors of a bank's maps and router, by name."""
    tensors = {f"maps.{site}.{name}": getattr(maps, name) for site, maps in bank.maps.items() for name in _MAPS}
    tensors |= {f"router.{name}": tensor for name, tensor in bank.router.state()[1].items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, which tells whether the files of a bank belong together."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def bank_fields(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of a bank again.

    Raises:
        ValueError: If the format is unknown, or there are not as many edits as maps.
        KeyError: If a field or a tensor is missing.
    """
    if config["format_version"] != FORMAT_VERSION:
        raise ValueError(f"`format_version` of a bank must be {FORMAT_VERSION}, but got {config['format_version']}.")
    sites = {Site.parse(site): site for site in config["sites"]}
    maps = {s: Transports(*(tensors[f"maps.{name}.{part}"] for part in _MAPS)) for s, name in sites.items()}
    objects = tuple(map(tuple, config["objects"]))
    if len(objects) != len(config["edits"]):
        raise ValueError(
            f"{CONFIG} must give each of its {len(config['edits'])} edits an object, but got {len(objects)}."
        )
    count = sum(len(ids) + 1 for ids in objects)
    for site, of_site in maps.items():
        if len(of_site) != count:
            raise ValueError(
                f"{CONFIG} and {TENSORS} must belong together, but got {len(of_site)} maps at {site} "
                f"instead of {count}."
            )
    requests = tuple(request_from(edit) for edit in config["edits"])
    router = config["router"]
    if router["kind"] not in _ROUTERS:
        raise ValueError(f"`router.kind` of a bank must be one of {', '.join(_ROUTERS)}, but got {router['kind']!r}.")
    of_router = {name.removeprefix("router."): t for name, t in tensors.items() if name.startswith("router.")}
    return {
        "requests": requests,
        "maps": maps,
        "objects": objects,
        "missed": dict(config["missed"]),
        "router": _ROUTERS[router["kind"]].from_state(requests, router, of_router),
        "strength": config["strength"],
        "backbone": config["backbone"],
        "settings": config["settings"],
    }


def request_from(fields: dict[str, Any]) -> EditRequest:
    """A request from what JSON makes of its fields."""
    return EditRequest(
        **{
            **fields,
            "phrasings": tuple(fields["phrasings"]),
            "implications": tuple(map(tuple, fields["implications"])),
            "contrasts": tuple(map(tuple, fields["contrasts"])),
            "aliases": tuple(fields.get("aliases", ())),  # which older files lack
        }
    )


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place and rename it, so that it is never half there."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def _card(bank: EditBank) -> str:
    rows = "\n".join(f"| {r.edit_id} | {r.filled} | {r.target_true} | {r.target_new} |" for r in bank.requests[:20])
    more = f"\n\nand {len(bank) - 20} more.\n" if len(bank) > 20 else "\n"
    return (
        f"---\nlibrary_name: mega_pl\nbase_model: {bank.backbone['name']}\ntags: [knowledge-editing, steering]\n---\n\n"
        f"# {len(bank)} edits of {bank.backbone['name']}\n\n"
        f"Edits of facts by activation steering at {', '.join(map(str, bank.maps))}; the weights stay as they are.\n\n"
        "```python\nimport mega_pl\nfrom mega_pl import EditBank\n\n"
        f'backbone = mega_pl.load("{bank.backbone["name"]}")\n'
        'with EditBank.from_pretrained("FOLDER").apply(backbone):\n    ...  # generate\n```\n\n'
        f"| edit | prompt | before | after |\n| --- | --- | --- | --- |\n{rows}{more}"
    )
