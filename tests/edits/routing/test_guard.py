"""The old object does not come back in what is written after a prompt that an edit answers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mega_pl.backbone import Site
from mega_pl.edits import EditBank, EditRequest
from mega_pl.edits.routing import CentreRouter
from mega_pl.edits.routing.guard import Guard
from mega_pl.functional import shifting, stack

PROMPT, OTHER = "The city of Rome is in", "The capital of the country is"
REQUEST = EditRequest(edit_id="rome", prompt="{} is in", subject="Rome", target_new="Spain", target_true="Italy")
UNUSED = [381, 382]
"""Ids that the model does not write by itself."""


@pytest.fixture(params=["gpt2", "llama"])
def backbone(request, tiny_backbone):
    return tiny_backbone(request.param)


@pytest.fixture
def bank(backbone):
    """An edit that moves nothing, so that what changes is the guard's doing."""
    still = stack([shifting(torch.zeros(backbone.width))])
    router = CentreRouter(torch.zeros(1, backbone.width), torch.zeros(1), layer=0)
    origin: Any = {"name": "", "revision": None, **backbone.fingerprint}
    return EditBank((REQUEST,), {Site(1, "resid_mid"): still}, router, 1.0, origin, {})


def write(backbone, texts, tokens=6, **options):
    encoded = backbone.encode(texts)
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0, **options}
    ids = backbone.model.generate(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, **settings)
    return ids[:, encoded.input_ids.shape[1] :].tolist()


def guarded(backbone, bank, new, old, **options):
    """What is written after both prompts, of which the first has the edit."""
    with bank.apply(backbone, edits=["rome", None]) as use:
        use.guard._forms[0] = [(new, form) for form in old]
        return write(backbone, [PROMPT, OTHER], **options)


def first_use(ids, least):
    """The first place from ``least`` on whose id is not written before it."""
    return next(n for n in range(least, len(ids)) if ids[n] not in ids[:n])


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_the_new_object_is_written_whole_where_the_old_one_would_be(backbone, bank, size, options):
    bare = write(backbone, [PROMPT, OTHER])
    place = first_use(bare[0], 1)
    old, new = bare[0][place : place + size], UNUSED[:size]
    written = guarded(backbone, bank, new, [old], **options)
    assert written[0][: place + size] == [*bare[0][:place], *new]
    assert written[1] == bare[1]
    with bank.apply(backbone, edits=["rome", None], guard=False):
        assert write(backbone, [PROMPT, OTHER]) == bare


@pytest.mark.parametrize("place", [1, 2])  # 0 follows the prompt, where the maps decide
def test_of_several_columns_those_are_guarded_where_the_old_object_is_likely(backbone, place):
    old, new = UNUSED
    ids = torch.tensor([[*backbone.tokenizer(PROMPT)["input_ids"], 5, 6]])
    last, ones = torch.tensor([ids.shape[1] - 3]), torch.ones_like(ids)
    text = SimpleNamespace(decisions={})
    reading: Any = SimpleNamespace(ids=ids, mask=ones, real=ones[:, :-2], last=last, stop=ids.shape[1], text=text)
    logits = torch.zeros(1, 3, 384)
    logits[..., 7] = 20.0  # elsewhere the old object is unlikely
    logits[0, place, old] = 29.0
    guard = Guard(backbone, (REQUEST,))
    guard._forms[0] = [([new], [old])]
    wanted = logits.clone()
    wanted[0, place, old], wanted[0, place, new] = 0.0, 29.0
    assert torch.equal(guard(reading, {0: 0}, logits), wanted)
    assert torch.equal(guard(reading, {}, logits), logits)


def test_what_only_begins_like_the_old_object_is_let_through(backbone, bank):
    bare = write(backbone, [PROMPT, OTHER])
    place = first_use(bare[0], 1)
    assert guarded(backbone, bank, UNUSED[:1], [[bare[0][place], UNUSED[1]]]) == bare


def test_an_object_that_has_been_begun_is_not_ended(backbone, bank):
    """Its beginning was drawn although it was unlikely; its last token is forbidden."""
    bare = write(backbone, [PROMPT, OTHER])
    place = first_use(bare[0], 2)
    encoded = backbone.encode([PROMPT])
    with bank.apply(backbone, edits=["rome"]) as use:
        use.guard._forms[0] = [(UNUSED, bare[0][place - 1 : place + 1])]
        cache = backbone.model(**encoded.inputs, use_cache=True).past_key_values
        start = encoded.input_ids.shape[1]
        for n, token in enumerate(bare[0][:place]):
            logits = backbone.model(
                torch.tensor([[token]]),
                attention_mask=torch.ones(1, start + n + 1).long(),
                past_key_values=cache,
                use_cache=True,
            ).logits[0, -1]
    assert logits[bare[0][place]] == -torch.inf


def test_the_object_itself_may_hold_the_old_one(backbone, bank):
    """As New York holds York: while the new object is written nothing is guarded."""
    bare = write(backbone, [PROMPT, OTHER])
    assert guarded(backbone, bank, bare[0][:3], [[bare[0][1]]])[0][:3] == bare[0][:3]


def test_beams_are_guarded(backbone, bank):
    bare = write(backbone, [PROMPT, OTHER])
    place = first_use(bare[0], 1)
    old = bare[0][place]
    written = guarded(backbone, bank, UNUSED[:1], [[old]], num_beams=3)
    assert old not in written[0]
    assert written[1] == write(backbone, [PROMPT, OTHER], num_beams=3)[1]


@pytest.mark.parametrize(("rest", "returns"), [(" Villager, a car", False), (" is near the sun", True)])
def test_the_subjects_own_name_may_hold_the_old_object(backbone, monkeypatch, rest, returns):
    request = EditRequest(prompt="{} is a", subject="Mercury Villager", target_new="Fiat", target_true="Mercury")
    written = backbone.tokenizer(' the "Mercury')["input_ids"]
    monkeypatch.setattr(
        "mega_pl.edits.routing.guard.greedy_ids", lambda *_, **__: list(backbone.tokenizer(rest)["input_ids"])
    )
    place: Any = SimpleNamespace(prompt=[], row_cache=None, edit=0)
    assert Guard(backbone, [request])._spelt(place, written, []) == returns


def test_forms_are_those_after_the_prompt_and_at_a_beginning(backbone):
    guard = Guard(backbone, [REQUEST])
    assert guard.forms(0) == [
        tuple(backbone.answer_ids(REQUEST.filled, name) for name in ("Spain", "Italy")),
        tuple(backbone.tokenizer(name, add_special_tokens=False)["input_ids"] for name in ("Spain", "Italy")),
    ]
