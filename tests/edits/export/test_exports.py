"""What other runtimes are handed does what the bank does, by their own formulas in plain torch."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mega_pl.backbone import Backbone, Site
from mega_pl.backbone.layout import blocks
from mega_pl.edits import EditBank
from mega_pl.edits.export import INDEX, export_bank

PROMPT = "The capital of France is"
POST = (Site(1, "resid_post"), Site(2, "resid_post"))
MID = (Site(1, "resid_mid"), Site(2, "resid_post"))
Bank = Callable[..., EditBank]
Move = Callable[[Tensor], Tensor]


@pytest.fixture(params=["gpt2", "llama"])
def backbone(request: pytest.FixtureRequest, tiny_backbone: Callable[[str], Backbone]) -> Backbone:
    return tiny_backbone(request.param)


def index_of(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / INDEX).read_text("utf-8"))
    return index


@contextmanager
def moved_outputs(backbone: Backbone, moves: dict[int, dict[int, Move]]) -> Iterator[None]:
    """Plain hooks: by block and position, counted from the prompt's last token, what moves the block's output."""
    start = len(backbone.tokenizer(PROMPT)["input_ids"]) - 1

    def hook(of_block: dict[int, Move]) -> Callable[..., Any]:
        def write(_: nn.Module, __: object, output: Any) -> Any:
            stream = (output[0] if isinstance(output, tuple) else output).clone()
            for step, move in of_block.items():
                if start + step < stream.shape[1]:
                    stream[:, start + step] = move(stream[:, start + step])
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return write

    handles = [blocks(backbone.model)[layer].register_forward_hook(hook(m)) for layer, m in moves.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def logits(backbone: Backbone, following: tuple[int, ...]) -> Tensor:
    """Logits (T, V) of the prompt with tokens after it."""
    ids = torch.tensor([[*backbone.tokenizer(PROMPT)["input_ids"], *following]])
    with torch.no_grad():
        found: Tensor = backbone.model(input_ids=ids, use_cache=False).logits[0]
    return found


def by_bank(backbone: Backbone, bank: EditBank, edit: int) -> Tensor:
    """The same of the edited model while it writes the object, the prompt read before."""
    prompt = torch.tensor([backbone.tokenizer(PROMPT)["input_ids"]])
    rows = []
    with torch.no_grad(), bank.apply(backbone, edits=[bank.ids[edit]]):
        output = backbone.model(input_ids=prompt, use_cache=True)
        rows.append(output.logits[0, -1])
        for token in bank.objects[edit]:
            ids = torch.tensor([[token]])
            output = backbone.model(input_ids=ids, past_key_values=output.past_key_values, use_cache=True)
            rows.append(output.logits[0, -1])
    return torch.stack(rows)


def assert_same_model(backbone: Backbone, bank: EditBank, edit: int, moves: dict[int, dict[int, Move]]) -> None:
    steps = len(bank.objects[edit]) + 1
    bare = logits(backbone, bank.objects[edit])[-steps:]
    with moved_outputs(backbone, moves):
        found = logits(backbone, bank.objects[edit])[-steps:]
    wanted = by_bank(backbone, bank, edit)
    assert (wanted - bare).abs().amax(1).min() > 0.1  # every step moves something
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)


def dense_move(tensors: dict[str, Tensor], key: str) -> Move:
    return lambda h: h @ tensors[f"{key}.weight"].T + tensors[f"{key}.bias"]


def test_dense_maps_make_the_edited_model(backbone: Backbone, stepped_bank: Bank, tmp_path: Path) -> None:
    bank = stepped_bank(backbone, *POST)
    assert export_bank(bank, tmp_path / "out", "affine") == ""
    index = index_of(tmp_path / "out")
    assert [entry["edit_id"] for entry in index["edits"]] == list(bank.ids)
    for edit, entry in enumerate(index["edits"]):
        tensors = load_file(tmp_path / "out" / entry["file"])
        steps = range(len(entry["object"]) + 1)
        assert tensors.keys() == {f"{s}.{j}.{part}" for s in POST for j in steps for part in ("weight", "bias")}
        moves = {s.layer: {j: dense_move(tensors, f"{s}.{j}") for j in steps} for s in POST}
        assert_same_model(backbone, bank, edit, moves)


def test_every_kind_of_site_has_dense_maps(backbone: Backbone, stepped_bank: Bank, tmp_path: Path) -> None:
    bank = stepped_bank(backbone, Site(0, "attn_out"), Site(1, "resid_mid"), Site(3, "mlp_out"))
    export_bank(bank, tmp_path / "out", "affine", edits=["Chad"])
    (entry,) = index_of(tmp_path / "out")["edits"]
    tensors = load_file(tmp_path / "out" / entry["file"])
    h = torch.randn(5, backbone.width, generator=torch.Generator().manual_seed(1))
    for site, maps in bank.maps.items():
        for step in (0, 1):
            wanted = maps[bank.places[2] + step](h, bank.strength)
            torch.testing.assert_close(dense_move(tensors, f"{site}.{step}")(h), wanted, atol=1e-4, rtol=1e-4)


def easysteer_tensors(payload: dict[str, Any]) -> dict[str, Tensor]:
    """Read a payload as EasySteer does, its digest first: kind and version, tensors by name, then the rest."""
    digest = hashlib.sha256(b"reft:1")
    found = {}
    for name, entry in sorted(payload["tensors"].items()):
        data = base64.b64decode(entry["data"], validate=True)
        digest.update(name.encode())
        digest.update(repr(tuple(entry["shape"])).encode())
        digest.update(data)
        found[name] = torch.from_numpy(np.frombuffer(data, np.float32).reshape(entry["shape"]).copy())
    digest.update(f"layer={payload['extra']['layer']!r}".encode())
    assert payload["sha256"] == digest.hexdigest()
    return found


def loreft(tensors: dict[str, Tensor], scale: float) -> Move:
    """EasySteer's formula: h' = h + s R (W h + b - Rᵀ h)."""
    rotate = tensors["rotate_layer"]

    def move(h: Tensor) -> Tensor:
        learned = h @ tensors["learned_source_weight"].T + tensors["learned_source_bias"]
        return h + (learned - h @ rotate) @ rotate.T * scale

    return move


def easysteer_moves(spec: dict[str, Any]) -> dict[int, dict[int, Move]]:
    moves: dict[int, dict[int, Move]] = {}
    for vector in spec["vectors"]:
        assert vector["algorithm"] == "loreft"
        where = vector["apply"]
        step = 0 if where == {"prompt_positions": [-1]} else where["generation_positions"][0] + 1
        tensors = easysteer_tensors(vector["data"])
        moves.setdefault(vector["data"]["extra"]["layer"], {})[step] = loreft(tensors, vector["scale"])
    return moves


def test_requests_of_easysteer_make_the_edited_model(backbone: Backbone, stepped_bank: Bank, tmp_path: Path) -> None:
    bank = stepped_bank(backbone, *POST)
    assert export_bank(bank, tmp_path / "out", "easysteer") == ""
    for edit, entry in enumerate(index_of(tmp_path / "out")["edits"]):
        spec = json.loads((tmp_path / "out" / entry["file"]).read_text("utf-8"))
        assert len(spec["vectors"]) == 2 * (len(bank.objects[edit]) + 1)
        assert_same_model(backbone, bank, edit, easysteer_moves(spec))


def test_easysteer_gets_other_sites_only_where_something_may_be_lost(
    backbone: Backbone, stepped_bank: Bank, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"the bank steers resid_mid\.1; fit at resid_post, or pass --lossy"):
        export_bank(stepped_bank(backbone, *MID), tmp_path / "out", "easysteer")
    with pytest.raises(ValueError, match=r"the bank steers mlp_out\.1; fit at resid_post\.$"):
        export_bank(stepped_bank(backbone, Site(1, "mlp_out")), tmp_path / "out", "easysteer", lossy=True)
    assert not (tmp_path / "out").exists()
    lost = export_bank(stepped_bank(backbone, *MID), tmp_path / "out", "easysteer", lossy=True)
    assert "after their block's MLP" in lost
    assert index_of(tmp_path / "out")["lost"] == lost


def test_control_vectors_keep_the_shift_of_the_last_token(
    backbone: Backbone, stepped_bank: Bank, tmp_path: Path
) -> None:
    reader = pytest.importorskip("gguf").GGUFReader
    bank = stepped_bank(backbone, *MID, Site(2, "mlp_out"))
    assert "lost are the routing" in export_bank(bank, tmp_path / "out", "gguf", lossy=True)
    for edit, entry in enumerate(index_of(tmp_path / "out")["edits"]):
        read = reader(tmp_path / "out" / entry["file"])
        field = {name: field.contents() for name, field in read.fields.items()}
        assert field["general.architecture"] == "controlvector"
        assert field["controlvector.model_hint"] == backbone.fingerprint["model_type"]
        assert field["controlvector.layer_count"] == 4
        found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in read.tensors}
        assert found.keys() == {"direction.1", "direction.2"}
        first = bank.places[edit]
        of_site = [bank.strength * maps.shift[first] for maps in bank.maps.values()]
        torch.testing.assert_close(found["direction.1"], of_site[0])
        torch.testing.assert_close(found["direction.2"], of_site[1] + of_site[2])


def test_a_control_vector_is_refused_in_one_line(
    backbone: Backbone, stepped_bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"must be asked for with --lossy, but it was not: .*lost are the routing"):
        export_bank(stepped_bank(backbone, *POST), tmp_path / "out", "gguf")
    with pytest.raises(ValueError, match="must lie in blocks from 1 on, but the bank steers block 0"):
        export_bank(stepped_bank(backbone, Site(0, "resid_post")), tmp_path / "out", "gguf", lossy=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'mega_pl\[gguf\]'"):
        export_bank(stepped_bank(backbone, *POST), tmp_path / "out", "gguf", lossy=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"edits": ["nobody"]}, "`edits` must name edits of the bank, France, Peru/Lima, Chad, but got 'nobody'"),
        ({"edits": ["Chad", "Chad"]}, "`edits` must name edits, each once"),
        ({"edits": []}, "`edits` must name edits, each once"),
        ({"max_gib": 1e-6}, r"`max_gib` must be at least 0.00 for 3 edits as dense maps, but got 1e-06; name fewer"),
        ({"form": "onnx"}, "`format` must be one of affine, easysteer, gguf, but got 'onnx'"),
    ],
)
def test_a_wrong_export_is_refused_before_it_writes(
    options: dict[str, Any], rule: str, backbone: Backbone, stepped_bank: Bank, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rule):
        export_bank(stepped_bank(backbone, *POST), tmp_path / "out", **{"form": "affine", **options})
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(backbone: Backbone, stepped_bank: Bank, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="`output` must be a new or an empty folder"):
        export_bank(stepped_bank(backbone, *POST), tmp_path, "affine")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["mine.txt"]
