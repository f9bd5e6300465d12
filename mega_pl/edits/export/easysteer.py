"""``easysteer``: requests of EasySteer, a vLLM that steers (arXiv:2509.25175), one for each edit.

A request is a `SteeringSpec` in JSON, as the field ``steering`` of an HTTP request or `SteeringSpec(**json)` take it.
Maps are LoReFT interventions, which a transport map is exactly (`mega_pl.functional.reft`): D · K numbers instead of
the D² of EasySteer's `LinearMap`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mega_pl.edits.export.maps import EditMap, maps_of
from mega_pl.edits.storage import write_text
from mega_pl.errors import MegaValueError
from mega_pl.functional import Reft, reft

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mega_pl.edits.bank import EditBank

MEANING = (
    "Each file is a SteeringSpec for a prompt that asks its edit; start the engine with the algorithm loreft and "
    "multi-vector requests. Steps after the first act whatever has been written before."
)
LOST = "maps at resid_mid act after their block's MLP, which no longer reads what they move"
WIRE_VERSION = 1


def check_easysteer(bank: EditBank, edits: Sequence[int], lossy: bool, max_gib: float) -> str:
    """Refuse a bank whose maps EasySteer cannot apply, and tell what is lost: it moves the outputs of blocks.

    Raises:
        ValueError: If a site is no block output, unless it is `resid_mid` and ``lossy``.
    """
    outputs = "EasySteer must steer the outputs of blocks, but the bank steers"
    for site in bank.maps:
        if site.kind in ("attn_out", "mlp_out"):
            raise MegaValueError(f"{outputs} {site}; fit at resid_post.")
        if site.kind == "resid_mid" and not lossy:
            raise MegaValueError(f"{outputs} {site}; fit at resid_post, or pass --lossy: {LOST}.")
    return LOST if any(site.kind != "resid_post" for site in bank.maps) else ""


def write_easysteer(bank: EditBank, edit: int, path: Path) -> None:
    """Write the request of an edit."""
    vectors = [vector(part, bank.strength) for part in maps_of(bank, edit)]
    moving = [v for v in vectors if v["data"]["tensors"]["rotate_layer"]["shape"][1]]
    write_text(path, json.dumps({"vectors": moving, "conflict": "sequential"}) + "\n")


def vector(part: EditMap, strength: float) -> dict[str, Any]:
    """EasySteer's `VectorSpec` of a map."""
    where = {"generation_positions": [part.step - 1]} if part.step else {"prompt_positions": [-1]}
    return {
        "data": payload(reft(part.transport), part.site.layer),
        "algorithm": "loreft",
        "scale": strength,
        "apply": where,
        "name": f"{part.site}.{part.step}",
    }


def payload(form: Reft, layer: int) -> dict[str, Any]:
    """EasySteer's `ReftIntervention` as it travels: little-endian float32 in base64, and a digest of it all."""
    named = {
        "learned_source_bias": form.bias,
        "learned_source_weight": form.weight,
        "rotate_layer": form.rotation,
    }
    digest = hashlib.sha256(f"reft:{WIRE_VERSION}".encode())
    tensors = {}
    for name, tensor in named.items():
        data = tensor.contiguous().numpy().astype("<f4").tobytes()
        digest.update(name.encode() + str(tuple(tensor.shape)).encode() + data)
        tensors[name] = {"shape": list(tensor.shape), "data": base64.b64encode(data).decode("ascii")}
    digest.update(f"layer={layer}".encode())
    return {
        "version": WIRE_VERSION,
        "kind": "reft",
        "tensors": tensors,
        "extra": {"layer": layer},
        "sha256": digest.hexdigest(),
    }
