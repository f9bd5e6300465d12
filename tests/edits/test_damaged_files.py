"""Files that are no bank's, or not this bank's, are refused in one line, and a card that somebody wrote stays."""

import json
import random
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mega_pl.backbone import Backbone, Site
from mega_pl.edits import EditBank, EditRequest
from mega_pl.edits.card import portable
from mega_pl.edits.integrity import digests_of
from mega_pl.edits.storage import CONFIG, TENSORS, _config_digest, bank_config, bank_tensors, digest
from mega_pl.errors import MegaError
from mega_pl.fitting import FitConfig, MapConfig, fit
from tests.edits.conftest import FRANCE, GERMANY, SPAIN

KINDS = 500
JUNK: list[Any] = [None, True, -1, 10**400, 1e999, 0.5, "", "../x", "\x00", [], {}, [[]], {"a": []}]


@pytest.fixture(
    scope="module",
    params=[MapConfig(), MapConfig(directions=2, object_directions=1, dtype="int8")],
    ids=lambda config: config.dtype,
)
def good(request: pytest.FixtureRequest, lm: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bank with a history, with maps as they are solved or with little of them."""
    bank = fit(lm, [FRANCE, GERMANY], FitConfig(maps=request.param)).remove("germany").add(lm, [SPAIN])
    return bank.save_pretrained(tmp_path_factory.mktemp("good"))


def told(bank: EditBank) -> tuple[str, ...]:
    """Everything of a bank, to be compared."""
    banks = [bank, *(change.lost for change in bank.history if change.lost)]
    maps = [digest for one in banks for digest in digests_of(one, range(len(one)))]
    return json.dumps(bank_config(bank), sort_keys=True), digest(bank_tensors(bank)), *maps


def refused(error: ValueError, folder: Path) -> bool:
    """Whether an error says in a line what is wrong."""
    text = str(error)
    of_files = text.startswith(f"{folder}: ") and CONFIG in text
    return (of_files or text.startswith("the maps of edit ")) and "\n" not in text and len(text) < 1000


def write(folder: Path, config: Any, tensors: dict[str, torch.Tensor]) -> None:
    """A folder whose digests are right, as somebody makes who wants to be believed."""
    save_file(tensors, folder / TENSORS)
    if isinstance(config, dict):
        config = {**config, "tensors": digest(tensors)}
        try:
            config["digest"] = _config_digest(config)
        except (RecursionError, UnicodeError):
            config["digest"] = ""
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8", errors="surrogatepass")


def flipped(draw: random.Random, good: Path, folder: Path) -> None:
    """Some bytes of a file changed."""
    name = draw.choice([CONFIG, TENSORS])
    data = bytearray((good / name).read_bytes())
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(min(len(data), draw.choice([64, 4096, len(data)])))] ^= 1 << draw.randrange(8)
    (folder / name).write_bytes(data)


def cut(draw: random.Random, good: Path, folder: Path) -> None:
    """A file that ends too soon, or too late."""
    name = draw.choice([CONFIG, TENSORS])
    data = (good / name).read_bytes()
    (folder / name).write_bytes(draw.choice([data[: draw.randrange(len(data))], data + draw.randbytes(9), b""]))


def announced(draw: random.Random, good: Path, folder: Path) -> None:
    """Tensors whose header promises something else."""
    data = (good / TENSORS).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    entry = header[draw.choice([name for name in header if name != "__metadata__"])]
    field = draw.choice(["dtype", "shape", "data_offsets"])
    entry[field] = draw.choice([[2**62, 2**62], [-1], [0], "F64", "BF16", "OBJECT", [0, 2**63], None])
    text = json.dumps(header).encode()
    (folder / TENSORS).write_bytes(struct.pack("<Q", draw.choice([len(text), 2**60])) + text + data[8 + size :])


def poured(draw: random.Random, good: Path, folder: Path) -> None:
    """A tensor that is not finite, or of another shape or dtype, or missing, with the right digests."""
    tensors = load_file(good / TENSORS)
    name = draw.choice(sorted(tensors))
    tensor = tensors[name].clone()
    ways: dict[str, Callable[[], torch.Tensor | None]] = {
        "value": lambda: tensor.flatten().index_fill(0, torch.tensor(0), value).view(tensor.shape),
        "shape": lambda: draw.choice([tensor[:-1], tensor[None], tensor.flatten()[:1], tensor[..., None]]),
        "dtype": lambda: tensor.to(draw.choice([torch.float16, torch.bfloat16, torch.int32, torch.bool])),
        "missing": lambda: None,
    }
    value = (
        draw.choice([torch.nan, torch.inf, -torch.inf]) if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
    )
    changed = ways[draw.choice(sorted(ways))]()
    tensors.pop(name)
    if changed is not None:
        tensors[draw.choice([name, name, name, f"{name}.more"])] = changed.contiguous()
    write(folder, json.loads((good / CONFIG).read_text("utf-8")), tensors)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to the values of a JSON value; of long lists the first few."""
    items = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))[:3]
        if isinstance(value, list)
        else []
    )
    return [path, *(p for key, item in items for p in places(item, (*path, key)))]


READ = {"format_version", "sites", "strength", "backbone", "edits", "objects", "router", "history"}
"""What a bank is made of; notes on how it was fitted may be anything."""

FREE = {"revision", "layer", "encoder"}
"""What may be there or not."""


def hostile(draw: random.Random, good: Path, folder: Path) -> None:
    """Another JSON value somewhere, with the right digests."""
    config = json.loads((good / CONFIG).read_text("utf-8"))
    path = draw.choice([p for p in places(config) if p and p[0] in READ and p[-1] not in FREE])
    inside = config
    for key in path[:-1]:
        inside = inside[key]
    old, deep = inside[path[-1]], draw.choice([50, 5000])
    alike = (int, float) if type(old) is float else type(old)  # JSON has one kind of number
    kinds = [value for value in JUNK if not isinstance(value, alike)] + [{"deep": deep}]
    value = draw.choice(kinds)
    if value == {"deep": deep}:
        write(folder, config, load_file(good / TENSORS))
        text, nested = (folder / CONFIG).read_text("utf-8"), "[" * deep + "]" * deep
        (folder / CONFIG).write_text(
            text.replace('"strength": ', f'"strength": {nested}, "was": ', 1), encoding="utf-8"
        )
        return
    inside[path[-1]] = value
    write(folder, config, load_file(good / TENSORS))


WAYS = (flipped, cut, announced, poured, hostile)


def test_five_hundred_damaged_folders_are_refused_in_a_line_or_harmless(good: Path, tmp_path: Path) -> None:
    wanted, harmless = told(EditBank.from_pretrained(good)), 0
    whole = {name: (good / name).read_bytes() for name in (CONFIG, TENSORS)}
    for seed in range(KINDS):
        for name, data in whole.items():
            (tmp_path / name).write_bytes(data)
        way = WAYS[seed % len(WAYS)]
        way(random.Random(seed), good, tmp_path)
        try:
            bank = EditBank.from_pretrained(tmp_path)
            while bank.history:  # as far as the files go, back to what had been removed
                bank.check_intact()
                bank = bank.rollback()
            bank.check_intact()
            bank = EditBank.from_pretrained(tmp_path)
        except ValueError as error:
            wrong = "" if refused(error, tmp_path) else str(error)
        else:
            wrong = "" if told(bank) == wanted else "another bank"
            harmless += 1
        assert not wrong, (seed, way.__name__)
    assert harmless < KINDS / 20
    for name, data in whole.items():
        (tmp_path / name).write_bytes(data)
    assert told(EditBank.from_pretrained(tmp_path)) == wanted  # control: nothing else is wrong with the folder


def changed(good: Path, folder: Path, path: tuple[Any, ...], value: Any) -> Path:
    config = json.loads((good / CONFIG).read_text("utf-8"))
    inside = config
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    write(folder, config, load_file(good / TENSORS))
    return folder


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("strength",), 3, r"`strength` must lie in \(0, 2\], but got 3"),
        (("strength",), 10**400, "`strength` must be float, but got 1000"),
        (("strength",), True, "`strength` must be float, but got True"),
        (("sites",), ["resid_mid.2", "resid_mid.99"], "`sites` must be sites of the backbone in their order"),
        (("sites",), ["resid_mid.3", "resid_mid.2"], "`sites` must be sites of the backbone in their order"),
        (("edits", 0, "edit_id"), "../x", "`edit_id` must be printable and no way out of a folder, but got '../x'"),
        (("edits", 0, "edit_id"), "spain", "`edits` must hold edits of different ids"),
        (("edits", 0, "colour"), "red", "`edits` must hold the fields of EditRequest"),
        (("edits", 0, "aliases"), "abc", "`aliases` must be .*tuple.*, but got 'abc'"),
        (("edits", 0, "relation"), 5, "`relation` must be str, but got 5"),
        (("edits", 0, "target_new"), "Paris", "`target_new` of edit 'france' must differ from `target_true`"),
        (("objects", 0, 0), 10**9, r"`objects` must lie in \[0, 384\)"),
        (("objects",), [[]], "`objects` must be one for each of 2 edits, but got 1"),
        (("backbone", "width"), 31, r"`maps.resid_mid.2.shift` must be torch.float\d\d of "),
        (("backbone", "weights"), 5, "`weights` must be str, but got 5"),
        (("router", "kind"), "oracle", "`router.kind` of a bank must be one of centre, content, but got 'oracle'"),
        (("router", "kind"), "centre", "`layer` must be there, but is missing"),
        (("router", "config", "recall"), "x", "`recall` must be float, but got 'x'"),
        (("router", "config", "recall"), 2, r"`recall` must lie in \(0, 1\), but got 2"),
        (("router", "scopes", "edits", 0, 0), [10**6], r"`router.scopes.edits` must lie in \[0, "),
        (("router", "scopes", "edits", 0, 2), [], "must have a wording of its own, but one has none"),
        (("router", "matcher", "weights"), [1.0], "as many relations, weights and scopes as it needs, but has not"),
        (("router", "matcher", "weights", 0), -1, "`weights` and `answer_weights` of the router must be at least 0"),
        (("router", "config", "shrinkage"), -1, r"`shrinkage` must lie in \(0, 1\], but got -1"),
        (("router", "config", "layer"), -1, "`layer` must be at least 0, but got -1"),
        (("history",), {}, "`history` must be a list, but got"),
        (("history", 0, "operation"), "steal", "`operation` must be one of add, merge, replace, remove"),
        (("history", 1, "new"), ["nobody"], "`history` must lead to the edits of the bank, but its 'add' does not"),
        (("history", 0, "places"), [7], r"`places` must lie in \[0, 2\), but got \[7\]"),
        (("history", 0, "lost", "edits", 0, "subject"), " ", "`subject` of edit 'germany' must not be blank"),
    ],
)
def test_what_is_wrong_is_named(good, tmp_path, path, value, reason):
    with pytest.raises(ValueError, match=reason):
        EditBank.from_pretrained(changed(good, tmp_path, path, value))


def test_ranks_that_do_not_fit_their_maps_are_refused(good, tmp_path):
    tensors = load_file(good / TENSORS)
    name = next(n for n in tensors if n.startswith("maps.") and n.endswith(".ranks"))
    tensors[name] = (tensors[name] - 1).clamp(min=0)
    write(tmp_path, json.loads((good / CONFIG).read_text("utf-8")), tensors)
    with pytest.raises(ValueError, match=r"`maps.*basis` must be torch.[a-z0-9]+ of "):
        EditBank.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("shift", lambda t: t.double(), r"shift` must be torch.float\d\d of \(5, 32\), but got torch.float64"),
        ("shift", lambda t: t.half() if t.dtype == torch.float32 else t.float(), r"shift` must be torch.float\d\d of"),
        ("basis", lambda t: t.half(), r"(basis|shift)` must be torch.float32 of .*, but got torch.float16"),
        ("center", lambda t: t[:-1], "center` must be torch.float32 of "),
        ("matrix", lambda t: t.half(), "matrix` must be torch.float32 of "),
    ],
)
def test_parts_of_maps_that_do_not_fit_each_other_are_refused(good, tmp_path, part, change, reason):
    tensors = load_file(good / TENSORS)
    name = f"maps.resid_mid.2.{part}"
    tensors[name] = change(tensors[name]).contiguous()
    write(tmp_path, json.loads((good / CONFIG).read_text("utf-8")), tensors)
    with pytest.raises(ValueError, match=reason):
        EditBank.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [1.0, torch.nan])
def test_an_edit_with_damaged_maps_is_refused_when_it_is_used_and_others_are_not(lm, good, tmp_path, value):
    whole = EditBank.from_pretrained(good)
    tensors = load_file(good / TENSORS)
    row = whole.places[whole.index("spain")]
    tensors["maps.resid_mid.2.shift"][row, 3] += value
    write(tmp_path, json.loads((good / CONFIG).read_text("utf-8")), tensors)
    bank = EditBank.from_pretrained(tmp_path)
    bank.check_intact("france")
    with bank.apply(lm, edits=["france"]):
        lm.last_logits(lm.encode(["The capital of France is"]))
    wrong = "the maps of edit 'spain' must be as they were written, but they are damaged"
    with bank.apply(lm, edits=["spain"]), pytest.raises(ValueError, match=wrong):
        lm.last_logits(lm.encode(["The capital of Spain is"]))
    dtype: Any = str(bank.maps[Site(2, "resid_mid")].basis.dtype).removeprefix("torch.")
    other = fit(lm, [GERMANY], FitConfig(maps=MapConfig(dtype=dtype)))
    for derived in (bank, bank.remove("france"), bank.merge(other), bank.rollback().rollback(2 - 2)):
        if "spain" in derived.ids:
            with pytest.raises(ValueError, match=wrong):
                derived.check_intact()
    saved = EditBank.from_pretrained(bank.save_pretrained(tmp_path / "again"))  # the damage is not signed
    with pytest.raises(ValueError, match=wrong):
        saved.check_intact("spain")
    assert bank.remove("spain").ids == ("france",)


def test_a_config_that_was_changed_by_hand_is_refused(good, tmp_path):
    (tmp_path / TENSORS).write_bytes((good / TENSORS).read_bytes())
    text = (good / CONFIG).read_text("utf-8")
    (tmp_path / CONFIG).write_text(text.replace('"Rome"', '"Bonn"'), encoding="utf-8")
    with pytest.raises(ValueError, match="was changed after it was written; save the bank again"):
        EditBank.from_pretrained(tmp_path)


@pytest.mark.parametrize("edit_id", ["../x", "a/../../x", "..\\x", "/etc/x", "~x", "a\nb", "a\x00b"])
def test_ids_that_lead_out_of_a_folder_are_refused(edit_id):
    with pytest.raises(ValueError, match="`edit_id` must be printable and no way out of a folder, but got"):
        EditRequest(edit_id=edit_id, prompt="{} is", subject="a", target_new="b", target_true="c")
    assert (
        EditRequest(edit_id="a/b..c", prompt="{} is", subject="a", target_new="b", target_true="c").edit_id == "a/b..c"
    )


def test_a_card_of_somebody_stays(three, tmp_path):
    own = tmp_path / "README.md"
    own.write_text("# my thesis", encoding="utf-8")
    three.save_pretrained(tmp_path)
    assert own.read_text("utf-8") == "# my thesis"
    own.unlink()
    three.save_pretrained(tmp_path)
    written = own.read_text("utf-8")
    three.remove("france").save_pretrained(tmp_path)
    assert own.read_text("utf-8") != written  # control: one's own card is renewed
    changed = own.read_text("utf-8").replace("# 2 edits", "# My two edits")
    own.write_text(changed, encoding="utf-8")
    three.save_pretrained(tmp_path)
    assert own.read_text("utf-8") == changed
    own.write_bytes(b"\xff\xfe")
    three.save_pretrained(tmp_path)
    assert own.read_bytes() == b"\xff\xfe"


def test_no_file_tells_where_the_model_lies(lm, three, tmp_path):
    for name in ("/home/ann/secret/gpt2", "../secret/gpt2", "C:\\secret\\gpt2", "~/secret/gpt2"):
        bank = replace(three, backbone={**three.backbone, "name": name})
        folder = bank.save_pretrained(tmp_path)
        for path in folder.iterdir():
            assert b"secret" not in path.read_bytes()
        loaded = EditBank.from_pretrained(folder)
        assert loaded.backbone["name"] == "gpt2"
        loaded.check(lm)
    assert (portable("owner/model"), portable("gpt2"), portable("")) == ("owner/model", "gpt2", "")


def test_a_card_is_a_table_whatever_the_edits_hold(three, tmp_path):
    requests = tuple(EditRequest(**{**vars(r), "target_true": "a | b\nc"}) for r in three.requests)
    folder = replace(three, requests=requests).save_pretrained(tmp_path)
    rows = [line for line in (folder / "README.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {6}
    assert "a \\| b c" in rows[-1]


def test_where_there_is_no_room_the_old_bank_stays(three, tmp_path, monkeypatch):
    three.save_pretrained(tmp_path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("mega_pl.edits.storage.save_file", full)
    with pytest.raises(
        MegaError, match=rf"{tmp_path} must be a place to write to, but .*No space left on device"
    ) as info:
        three.remove("france").save_pretrained(tmp_path)
    assert isinstance(info.value, OSError)
    assert EditBank.from_pretrained(tmp_path).ids == three.ids
