"""Banks in force, taken off, shrunk, saved and loaded; their maps are random, and their router is a real one."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mega_pl.backbone import Backbone, Encoded, Site, steer
from mega_pl.data.relations import relations
from mega_pl.edits import ContentRouter, EditBank, EditRequest, RouterConfig
from mega_pl.edits.routing import CentreRouter, Prompts, Router
from mega_pl.edits.storage import replacing, write_text
from mega_pl.functional import Transport, Transports, stack

FAMILIES = ["gpt2", "llama"]
ASKED = ["The capital of France is", "Rome is a city in", "Darrieux works as a"]
OTHER = ["The official language of the country is English or", "Berlin is"]
MIXED = [OTHER[0], ASKED[1], OTHER[1], ASKED[0], ASKED[2]]
IDS = [None, "b", None, "a", "c"]


REQUESTS = (
    EditRequest(edit_id="a", prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris"),
    EditRequest(edit_id="b", prompt="{} is a city in", subject="Rome", target_new="Spain", target_true="Italy"),
    EditRequest(edit_id="c", prompt="{} works as a", subject="Darrieux", target_new="king", target_true="teacher"),
)
SITES = (Site(1, "resid_mid"), Site(2, "mlp_out"), Site(3, "resid_post"))
ROUTERS = ["content", "centre"]


def random_maps(width: int, ranks: tuple[int, ...], draw: torch.Generator) -> Transports:
    """Maps that move far, of different ranks."""
    maps = []
    for rank in ranks:
        basis = torch.linalg.qr(torch.randn(width, rank, generator=draw))[0]
        half = torch.randn(rank, rank, generator=draw)
        mean, shift = 3 * torch.randn(2, width, generator=draw)
        maps.append(Transport(shift, basis, (half + half.T) / 2, mean @ basis))
    return stack(maps)


def make_router(backbone: Backbone, kind: str) -> Router:
    """A router that knows the prompts of the edits."""
    if kind == "content":
        return ContentRouter.fit(backbone, REQUESTS, list(relations().values()), RouterConfig())
    encoded = backbone.encode([request.filled for request in REQUESTS])
    centres = Prompts(backbone, encoded.inputs, encoded.last).last_states(0)
    return CentreRouter(centres, torch.full((3,), 1e-2), layer=0)


def make_bank(
    backbone: Backbone, ranks: tuple[int, ...] = (2, 9, 4), strength: float = 1.0, router: str = "content"
) -> EditBank:
    draw = torch.Generator().manual_seed(0)
    return EditBank(
        requests=REQUESTS,
        maps={site: random_maps(backbone.width, ranks, draw) for site in SITES},
        router=make_router(backbone, router),
        strength=strength,
        backbone={"name": backbone.name, "revision": backbone.revision, **backbone.fingerprint},
        settings={"seed": 0},
    )


@pytest.fixture
def tiny_bank() -> Callable[..., EditBank]:
    """`tiny_bank(backbone, ranks=(2, 9, 4), strength=1.0, router="content")` makes a bank of a, b and c."""
    return make_bank


@pytest.fixture(params=FAMILIES)
def backbone(request, tiny_backbone):
    return tiny_backbone(request.param)


def logits(backbone, encoded: Encoded):
    with torch.no_grad():
        return backbone.model(**encoded.inputs).logits


def hook_count(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def generate(backbone, prompts, tokens=6, **options):
    encoded = backbone.encode(prompts)
    return backbone.model.generate(
        input_ids=encoded.input_ids,
        attention_mask=encoded.attention_mask,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        **options,
    )[:, encoded.input_ids.shape[1] :]


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("router", ROUTERS)
def test_prompts_that_no_edit_answers_are_the_bare_models_to_the_bit(backbone, tiny_bank, padding_side, router):
    encoded = backbone.encode(MIXED, padding_side)
    bare = logits(backbone, encoded)
    with tiny_bank(backbone, router=router).apply(backbone) as use:
        edited = logits(backbone, encoded)
    assert use.fired == IDS
    for row, edit_id in enumerate(IDS):
        assert torch.equal(edited[row], bare[row]) == (edit_id is None)


def test_a_batch_without_an_edit_is_the_bare_models_to_the_bit(backbone, tiny_bank):
    encoded = backbone.encode(OTHER)
    bare = logits(backbone, encoded)
    with tiny_bank(backbone).apply(backbone) as use:
        assert torch.equal(logits(backbone, encoded), bare)
    assert use.fired == [None, None]


def test_steering_one_row_leaves_the_others_to_the_bit(backbone, tiny_bank):
    encoded, bank = backbone.encode(MIXED), tiny_bank(backbone)
    bare = logits(backbone, encoded)
    for row in range(len(MIXED)):
        with bank.apply(backbone, edits=["b" if i == row else None for i in range(len(MIXED))]):
            edited = logits(backbone, encoded)
        same = [torch.equal(edited[i], bare[i]) for i in range(len(MIXED))]
        assert same == [i != row for i in range(len(MIXED))]


def test_only_the_last_token_of_a_prompt_is_moved(backbone, tiny_bank):
    encoded = backbone.encode(MIXED)
    bare = logits(backbone, encoded)
    with tiny_bank(backbone).apply(backbone):
        edited = logits(backbone, encoded)
    assert torch.equal(edited[:, :-1], bare[:, :-1])


def test_each_row_gets_the_maps_of_its_edit(backbone, tiny_bank):
    """Against one prompt at a time, moved by one map a site."""
    bank = tiny_bank(backbone, strength=0.5)
    with bank.apply(backbone):
        edited = backbone.last_logits(backbone.encode(MIXED))
    for row, edit_id in enumerate(IDS):
        encoded = backbone.encode([MIXED[row]])
        maps = {} if edit_id is None else {site: maps[bank.index(edit_id)] for site, maps in bank.maps.items()}
        moves = {site: (lambda x, move=move: move(x, 0.5)) for site, move in maps.items()}
        with steer(backbone.model, moves, encoded.last):
            alone = backbone.last_logits(encoded)[0]
        torch.testing.assert_close(edited[row], alone, atol=1e-4, rtol=1e-4)


def test_batched_and_single_prompts_agree_with_either_padding(backbone, tiny_bank):
    with tiny_bank(backbone).apply(backbone):
        left = backbone.last_logits(backbone.encode(MIXED))
        right = backbone.last_logits(backbone.encode(MIXED, "right"))
        single = torch.cat([backbone.last_logits(backbone.encode([prompt])) for prompt in MIXED])
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(left, single, atol=1e-4, rtol=1e-4)


def test_forced_every_prompt_gets_an_edit(backbone, tiny_bank):
    with tiny_bank(backbone).apply(backbone, forced=True) as use:
        logits(backbone, backbone.encode(MIXED))
    assert None not in use.fired
    assert [fired for fired, wanted in zip(use.fired, IDS, strict=True) if wanted] == ["b", "a", "c"]


def test_a_named_edit_moves_a_prompt_that_the_router_would_leave(backbone, tiny_bank):
    encoded = backbone.encode(OTHER)
    bare = logits(backbone, encoded)
    with tiny_bank(backbone).apply(backbone, edits=["c", None]) as use:
        edited = logits(backbone, encoded)
    assert use.fired == ["c", None]
    assert not torch.equal(edited[0], bare[0])
    assert torch.equal(edited[1], bare[1])


def test_nothing_has_fired_before_a_prompt_is_read(backbone, tiny_bank):
    with tiny_bank(backbone).apply(backbone) as use:
        assert use.fired == []


def test_a_cached_generation_is_the_uncached_greedy_one(backbone, tiny_bank):
    bank, encoded, tokens = tiny_bank(backbone), backbone.encode(MIXED), 6
    with bank.apply(backbone):
        cached = generate(backbone, MIXED, tokens)
    rows = torch.tensor([i for i, edit_id in enumerate(IDS) if edit_id])
    index = [bank.index(edit_id) for edit_id in IDS if edit_id]

    def mover(maps):
        return lambda x: torch.cat([maps[e](x[i : i + 1]) for i, e in enumerate(index)])

    ids, mask = encoded.input_ids, encoded.attention_mask
    for _ in range(tokens):
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        moves = {site: mover(maps) for site, maps in bank.maps.items()}
        with torch.no_grad(), steer(backbone.model, moves, encoded.last, rows):
            out = backbone.model(input_ids=ids, attention_mask=mask, position_ids=position_ids, use_cache=False)
        last = out.logits[:, -1]
        last[:, 0] = -torch.inf  # the end of the sequence, which `min_new_tokens` forbids
        ids, mask = torch.cat([ids, last.argmax(-1, keepdim=True)], 1), torch.cat([mask, torch.ones(len(mask), 1)], 1)
        mask = mask.long()
    assert torch.equal(cached, ids[:, -tokens:])
    bare = generate(backbone, MIXED, tokens)  # control: the edits change what is written, and only where they act
    assert [torch.equal(a, b) for a, b in zip(cached, bare, strict=True)] == [edit_id is None for edit_id in IDS]


def test_beam_search_routes_every_beam_as_its_prompt(backbone, tiny_bank):
    bare = generate(backbone, MIXED, num_beams=3)
    with tiny_bank(backbone).apply(backbone) as use:
        beams = generate(backbone, MIXED, num_beams=3)
    assert use.fired == IDS
    assert [torch.equal(a, b) for a, b in zip(beams, bare, strict=True)] == [edit_id is None for edit_id in IDS]


def test_one_beam_is_greedy_and_three_score_no_worse(backbone, tiny_bank):
    with tiny_bank(backbone).apply(backbone):
        greedy = generate(backbone, ASKED, tokens=2)
        torch.testing.assert_close(generate(backbone, ASKED, tokens=2, num_beams=1), greedy)
        assert generate(backbone, ASKED, tokens=2, num_beams=3).shape == greedy.shape


def test_hooks_are_gone_after_the_block_and_after_an_exception(backbone, tiny_bank):
    encoded, before = backbone.encode(ASKED), hook_count(backbone.model)
    bare, digest = logits(backbone, encoded), backbone.digest()

    def fail():
        with tiny_bank(backbone).apply(backbone):
            assert hook_count(backbone.model) > before
            assert not torch.equal(logits(backbone, encoded), bare)
            raise RuntimeError("in the block")

    with pytest.raises(RuntimeError, match="in the block"):
        fail()
    assert hook_count(backbone.model) == before
    assert torch.equal(logits(backbone, encoded), bare)
    assert backbone.digest() == digest


def test_a_forward_pass_that_fails_leaves_no_steering_behind(backbone, tiny_bank):
    bank, encoded = tiny_bank(backbone), backbone.encode(ASKED)
    bare = logits(backbone, encoded)
    wild = replace(
        bank, maps={site: replace(m, shift=m.shift * float("inf")) for site, m in bank.maps.items()}, digests=()
    )
    with wild.apply(backbone):
        armed = hook_count(backbone.model)
        with pytest.raises(FloatingPointError, match=r"steering resid_mid.1 must give finite values, but rows"):
            logits(backbone, encoded)
        assert hook_count(backbone.model) == armed
        assert torch.isfinite(logits(backbone, backbone.encode(OTHER))).all()
    assert torch.equal(logits(backbone, encoded), bare)


def test_an_attached_bank_acts_until_it_is_removed(backbone, tiny_bank):
    encoded, before = backbone.encode(ASKED), hook_count(backbone.model)
    bare = logits(backbone, encoded)
    with tiny_bank(backbone).apply(backbone):
        edited = logits(backbone, encoded)
    handle = tiny_bank(backbone).attach(backbone)
    assert torch.equal(logits(backbone, encoded), edited)
    assert handle.use.fired == ["a", "b", "c"]
    handle.remove()
    handle.remove()
    assert hook_count(backbone.model) == before
    assert torch.equal(logits(backbone, encoded), bare)


@pytest.mark.parametrize("gone", ["a", "b", "c"])
@pytest.mark.parametrize("router", ROUTERS)
def test_removing_an_edit_leaves_the_others_to_the_bit(backbone, tiny_bank, gone, router):
    """b has the largest rank, so that without it the maps are padded less."""
    bank, encoded = tiny_bank(backbone, router=router), backbone.encode(MIXED)
    with bank.apply(backbone):
        whole = logits(backbone, encoded)
    smaller = bank.remove(gone)
    assert smaller.ids == tuple(name for name in "abc" if name != gone)
    assert bank.ids == ("a", "b", "c")
    with smaller.apply(backbone) as use:
        edited = logits(backbone, encoded)
    assert use.fired == [None if edit_id == gone else edit_id for edit_id in IDS]
    bare = logits(backbone, encoded)
    for row, edit_id in enumerate(IDS):
        assert torch.equal(edited[row], bare[row] if edit_id == gone else whole[row])


def test_edits_are_found_by_name(tiny_backbone, tiny_bank):
    bank = tiny_bank(tiny_backbone("gpt2"))
    assert len(bank) == 3
    assert bank.index("b") == 1
    assert bank["b"].subject == "Rome"


@pytest.mark.parametrize("look", [lambda b: b["x"], lambda b: b.index("x"), lambda b: b.remove("x")])
def test_an_edit_that_the_bank_does_not_have_is_refused(tiny_backbone, tiny_bank, look):
    with pytest.raises(KeyError, match="the bank must hold the edit that is named, but it has no 'x'"):
        look(tiny_bank(tiny_backbone("gpt2")))


def test_the_only_edit_cannot_be_removed(tiny_backbone, tiny_bank):
    bank = tiny_bank(tiny_backbone("gpt2")).remove("a").remove("b")
    with pytest.raises(KeyError, match="a bank must keep at least one edit, but all would go"):
        bank.remove("c")


def test_as_many_named_edits_as_rows_are_needed(tiny_backbone, tiny_bank):
    backbone = tiny_backbone("gpt2")
    before = hook_count(backbone.model)
    with (
        tiny_bank(backbone).apply(backbone, edits=["a", None]),
        pytest.raises(ValueError, match="`edits` must name one edit a prompt, but got 2 for 3 prompts"),
    ):
        logits(backbone, backbone.encode(ASKED))
    assert hook_count(backbone.model) == before


@pytest.mark.parametrize("ranks", [(2, 9, 4), (0, 0, 0)])
@pytest.mark.parametrize("router", ROUTERS)
def test_a_saved_bank_gives_the_same_logits_to_the_bit(backbone, tiny_bank, tmp_path, ranks, router):
    bank, encoded = tiny_bank(backbone, ranks, strength=0.7, router=router), backbone.encode(MIXED)
    folder = bank.save_pretrained(tmp_path / "deep" / "bank")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "edit_config.json",
        "edit_model.safetensors",
    ]
    loaded = EditBank.from_pretrained(folder)
    assert loaded.requests == bank.requests
    assert (loaded.strength, loaded.router.kind) == (0.7, router)
    assert list(loaded.maps) == list(bank.maps)
    assert (loaded.backbone, loaded.settings) == (bank.backbone, bank.settings)
    with bank.apply(backbone):
        wanted = logits(backbone, encoded)
    with loaded.apply(backbone) as use:
        assert torch.equal(logits(backbone, encoded), wanted)
    assert use.fired == IDS
    assert (
        loaded.save_pretrained(tmp_path / "again").joinpath("edit_config.json").read_bytes()
        == (folder / "edit_config.json").read_bytes()
    )


def test_another_backbone_is_refused_with_the_reason(tiny_backbone, tiny_bank, tiny_model, tiny_tokenizer):
    gpt2 = tiny_backbone("gpt2")
    bank = tiny_bank(gpt2)
    other = Backbone(tiny_model("gpt2", seed=1), tiny_tokenizer)
    with pytest.raises(ValueError, match=r"must be used on the backbone it was fitted on.* but `weights` is"):
        bank.attach(other)
    assert hook_count(other.model) == hook_count(gpt2.model)
    with (
        pytest.raises(ValueError, match="but `model_type` is 'llama' instead of 'gpt2'"),
        bank.apply(tiny_backbone("llama")),
    ):
        pass
    bank.check(Backbone(tiny_model("gpt2"), tiny_tokenizer))  # control: the same weights, loaded in another way


def saved(tiny_backbone, tiny_bank, tmp_path):
    return tiny_bank(tiny_backbone("gpt2")).save_pretrained(tmp_path / "bank")


@pytest.mark.parametrize("name", ["edit_config.json", "edit_model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "noise"])
def test_missing_and_damaged_files_are_refused(tiny_backbone, tiny_bank, tmp_path, name, damage):
    folder = saved(tiny_backbone, tiny_bank, tmp_path)
    whole = (folder / name).read_bytes()
    if damage == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"\xff" * 64)
    with pytest.raises(ValueError, match=r"a bank needs a sound edit_config\.json and edit_model\.safetensors, but"):
        EditBank.from_pretrained(folder)


def change_config(folder, **changes):
    path = folder / "edit_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), encoding="utf-8")


@pytest.mark.parametrize("version", [1, 5, "6"])
def test_unknown_versions_are_refused(tiny_backbone, tiny_bank, tmp_path, version):
    folder = saved(tiny_backbone, tiny_bank, tmp_path)
    change_config(folder, format_version=version)
    with pytest.raises(ValueError, match=f"`format_version` of a bank must be 6, but got {version!r}"):
        EditBank.from_pretrained(folder)


@pytest.mark.parametrize(
    "changes", [{"sites": ["resid_mid.0"]}, {"edits": [{"edit_id": "a"}], "objects": [[]]}, {"router": None}]
)
def test_files_that_do_not_belong_together_are_refused(tiny_backbone, tiny_bank, tmp_path, changes):
    folder = saved(tiny_backbone, tiny_bank, tmp_path)
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=r"edit_config\.json and edit_model\.safetensors must belong together, but"):
        EditBank.from_pretrained(folder)


def test_an_unknown_router_is_refused(tiny_backbone, tiny_bank, tmp_path):
    folder = saved(tiny_backbone, tiny_bank, tmp_path)
    change_config(folder, router={"kind": "oracle"})
    with pytest.raises(ValueError, match=r"`router\.kind` of a bank must be one of centre, content, but got 'oracle'"):
        EditBank.from_pretrained(folder)


def test_more_or_fewer_edits_than_maps_are_refused(tiny_backbone, tiny_bank, tmp_path):
    folder = saved(tiny_backbone, tiny_bank, tmp_path)
    edits = json.loads((folder / "edit_config.json").read_text("utf-8"))["edits"]
    change_config(folder, edits=edits[1:], objects=[[], []])
    with pytest.raises(ValueError, match=r"must belong together, but `.*` must be"):
        EditBank.from_pretrained(folder)


@pytest.mark.parametrize("name", ["nowhere", "./no/where", "runs/nowhere"])
def test_a_folder_that_is_not_there_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a bank must be a folder or a repository on the hub, but there is no"):
        EditBank.from_pretrained(name)


def test_the_card_names_backbone_and_edits(tiny_backbone, tiny_bank, tmp_path):
    card = (saved(tiny_backbone, tiny_bank, tmp_path) / "README.md").read_text("utf-8")
    assert "| a | The capital of France is | Paris | Rome |" in card
    assert "resid_mid.1, mlp_out.2, resid_post.3" in card


def test_tensors_of_another_bank_are_refused(tiny_backbone, tiny_bank, tmp_path):
    folder = saved(tiny_backbone, tiny_bank, tmp_path)
    tensors = load_file(folder / "edit_model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "edit_model.safetensors")
    with pytest.raises(ValueError, match="must belong together, but they are not of one bank; save it again"):
        EditBank.from_pretrained(folder)


def test_a_copy_that_differs_a_little_is_taken_where_one_says_so(tiny_backbone, tiny_bank):
    backbone = tiny_backbone("gpt2")
    bank = tiny_bank(backbone)
    for name, change in (("weights", {"weights": "other"}), ("vocab", {"vocab": 9}), ("tokenizer", {"tokenizer": "x"})):
        other = replace(bank, backbone={**bank.backbone, **change})
        with (
            pytest.raises(ValueError, match=f"but `{name}` is .* with `strict=False` it is taken"),
            other.apply(backbone),
        ):
            pass
        with other.apply(backbone, strict=False) as use:
            backbone.last_logits(backbone.encode(ASKED))
        assert any(use.fired)
    wide = replace(bank, backbone={**bank.backbone, "width": 9})
    with pytest.raises(ValueError, match=r"but `width` is .*; fit it again"), wide.apply(backbone, strict=False):
        pass


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(tmp_path):
    path = tmp_path / "metrics.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as beside:
        beside.write_text("half \ud800", encoding="utf-8")
    assert [(p.name, p.read_text("utf-8")) for p in tmp_path.iterdir()] == [("metrics.json", "old")]
