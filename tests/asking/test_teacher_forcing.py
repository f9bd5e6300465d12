"""Teacher forcing against a slow twin that reads one whole text at a time, without padding, mask or cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from mega_pl.asking import Edited, TeacherForced, answer_ids, teacher_forced
from mega_pl.backbone import Backbone, Site, steer
from mega_pl.edits import EditBank, EditRequest
from mega_pl.edits.routing import CentreRouter
from mega_pl.functional import mean_shift, stack

PAIRS = [
    ("The capital of France is", "Paris"),
    ("The capital of France is", "London of Germany"),
    ("He was born in the city of", "Rome"),
    ("Rome", "is a city in Italy"),
    ("The official language of the country is English or", "Spanish"),
    ("The capital of France is", "Paris"),
]
PROMPTS, ANSWERS = [prompt for prompt, _ in PAIRS], [answer for _, answer in PAIRS]
FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma2")


def force_slowly(
    backbone: Backbone, prompt: str, answer: str, *, place: int = 0, token: int = 0
) -> tuple[list[float], list[int]]:
    """Log-probabilities and argmax at the answer's places; the mistakes read `place` places or `token` ids off."""
    before = list(backbone.tokenizer(prompt)["input_ids"])
    whole = list(backbone.tokenizer(f"{prompt} {answer}")["input_ids"])
    with torch.no_grad():
        logits = backbone.model(torch.tensor([whole]), use_cache=False).logits[0].double()
    chances = logits.log_softmax(-1)
    ids = range(len(before), len(whole))
    log_probs = [float(chances[i - 1 + place, whole[(i + token) % len(whole)]]) for i in ids]
    return log_probs, [int(logits[i - 1 + place].argmax()) for i in ids]


def assert_close(forced: Sequence[TeacherForced], expected: Sequence[tuple[list[float], list[int]]]) -> None:
    assert len(forced) == len(expected)
    for taken, (log_probs, predicted) in zip(forced, expected, strict=True):
        assert taken.log_probs == pytest.approx(log_probs, abs=2e-5)
        assert list(taken.predicted) == predicted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_agrees_with_one_text_at_a_time(tiny_backbone, family, side):
    backbone = tiny_backbone(family)
    expected = [force_slowly(backbone, *pair) for pair in PAIRS]
    for tokens in (1, 40, 4096):
        forced = teacher_forced(backbone, PROMPTS, ANSWERS, padding_side=side, tokens_per_batch=tokens)
        assert_close(forced, expected)
        assert [list(f.ids) for f in forced] == [backbone.answer_ids(*pair) for pair in PAIRS]
    assert len({len(f.ids) for f in forced}) > 2
    assert forced[0] == forced[-1]


def test_what_is_read_off_the_tokens(tiny_backbone):
    forced = TeacherForced(ids=(5, 6, 7), log_probs=(-1.0, -2.0, -6.0), predicted=(5, 9, 7))
    assert forced.nll == 3.0
    assert forced.matches == (True, False, True)


def test_planted_mistakes_are_seen(tiny_backbone):
    """Places one off, answers swapped and a neighbour's prompt all give other likelihoods."""
    backbone = tiny_backbone("gpt2")
    forced = teacher_forced(backbone, PROMPTS, ANSWERS)
    for pair, taken in zip(PAIRS, forced, strict=True):
        for place, token in ((-1, 0), (0, 1), (0, -1)):
            mistaken = force_slowly(backbone, *pair, place=place, token=token)[0]
            assert taken.log_probs != pytest.approx(mistaken, abs=1e-3), (place, token)
    others = PROMPTS[1:] + PROMPTS[:1]
    swapped = teacher_forced(backbone, others, ANSWERS)
    for right, wrong, prompt, other in zip(forced, swapped, PROMPTS, others, strict=True):
        assert (right.nll == pytest.approx(wrong.nll, abs=1e-3)) is (prompt == other)


def test_prompts_and_answers_are_read_in_one_pass(tiny_backbone):
    backbone, shapes = tiny_backbone("gpt2"), []
    handle = backbone.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    teacher_forced(backbone, PROMPTS, ANSWERS)
    handle.remove()
    longest = max(len(backbone.tokenizer(p)["input_ids"]) + len(backbone.answer_ids(p, a)) for p, a in PAIRS)
    assert shapes == [(len(PAIRS), longest)]


def test_a_short_answer_beside_a_long_one_may_fill_the_model(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    limit = backbone.model.config.max_position_embeddings
    long = " ".join(["a"] * ((limit - 1) // 2))
    while len(backbone.tokenizer(long)["input_ids"]) + len(backbone.answer_ids(long, "Paris")) < limit:
        long += " Rome" if len(backbone.tokenizer(long)["input_ids"]) + 3 < limit else "a"
    pairs = [(long, "Paris"), ("Rome", "is a city in Italy")]
    forced = teacher_forced(backbone, *map(list, zip(*pairs, strict=True)))
    assert_close(forced, [force_slowly(backbone, *pair) for pair in pairs])


class Prefixed(Edited):
    def prompt(self, text: str) -> str:
        return f"Rome is a city in Italy. {text}"


def test_edited_prompts_are_asked_as_the_editor_says(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    forced = teacher_forced(backbone, PROMPTS, ANSWERS, edited=Prefixed())
    assert_close(forced, [force_slowly(backbone, Prefixed().prompt(prompt), answer) for prompt, answer in PAIRS])


def forced_bank(backbone: Backbone) -> EditBank:
    """A bank of one edit that answers every prompt when it is forced."""
    request = EditRequest(edit_id="x", prompt="{} is", subject="Rome", target_new="a", target_true="b")
    generator = torch.Generator().manual_seed(3)
    source = torch.randn(6, backbone.width, generator=generator)
    target = source + 3 * torch.randn(1, backbone.width, generator=generator)
    maps = {Site(layer, "resid_mid"): stack([mean_shift(source, target)]) for layer in (1, 2)}
    router = CentreRouter(torch.zeros(1, backbone.width), torch.tensor([-1.0]), layer=3)  # silent unless it is forced
    origin: Mapping[str, Any] = {"name": backbone.name, **backbone.fingerprint}
    return EditBank((request,), maps, router, 1.0, origin, {})


class Forced(Edited):
    def __init__(self, use):
        self.use = use

    @property
    def fired(self):
        return self.use.fired


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_bank_moves_the_last_token_of_the_prompt(tiny_backbone, family):
    """As steering that position by hand in one pass over the whole text does, and not the answer's last token."""
    backbone = tiny_backbone(family)
    bank = forced_bank(backbone)
    with bank.apply(backbone, forced=True) as use:
        forced = teacher_forced(backbone, PROMPTS, ANSWERS, edited=Forced(use))
    assert {taken.fired for taken in forced} == {"x"}

    def steered(pair: tuple[str, str], last: int) -> tuple[list[float], list[int]]:
        moves = {site: (lambda h, m=maps: m.apply(h, torch.zeros(1).long(), 1.0)) for site, maps in bank.maps.items()}
        with steer(backbone.model, moves, torch.tensor([last])):
            return force_slowly(backbone, *pair)

    def place(pair: tuple[str, str]) -> int:
        return len(backbone.tokenizer(pair[0])["input_ids"]) - 1

    assert_close(forced, [steered(pair, place(pair)) for pair in PAIRS])
    long = [(pair, taken) for pair, taken in zip(PAIRS, forced, strict=True) if len(taken.ids) > 1]
    assert all(taken.log_probs != pytest.approx(steered(pair, place(pair) + 1)[0], abs=1e-3) for pair, taken in long)
    assert all(taken.log_probs != pytest.approx(force_slowly(backbone, *pair)[0], abs=1e-3) for pair, taken in long)

    with bank.apply(backbone) as use:  # the threshold lies above every cosine
        silent = teacher_forced(backbone, PROMPTS, ANSWERS, edited=Forced(use))
    assert silent == teacher_forced(backbone, PROMPTS, ANSWERS)


@pytest.mark.parametrize("name", ["gpt2", "llama2"])
def test_real_answers_have_the_ids_that_follow_their_prompts(shared_tokenizers, tiny_model, name):
    tokenizer = AutoTokenizer.from_pretrained(shared_tokenizers / name)
    backbone = Backbone(tiny_model("llama", {"vocab_size": len(tokenizer)}), tokenizer)
    prompts = ["The mother tongue of Danielle Darrieux is", "It was born in 1900, in", "The answer to 'x' is"]
    answers = ["English", "Rio de Janeiro", "3"]
    ids, lengths = answer_ids(backbone, prompts, answers)
    assert ids == [backbone.answer_ids(*pair) for pair in zip(prompts, answers, strict=True)]
    assert lengths == [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    if name == "llama2":  # has tokens of several spaces
        with pytest.raises(ValueError, match="the ids of `prompt` must be a prefix of the ids with its answer"):
            answer_ids(backbone, ["The capital of France is "], ["Paris"])


def test_refusals(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    with pytest.raises(ValueError, match="`prompts` and `answers` must be equally long, but got 1 and 0"):
        teacher_forced(backbone, ["Rome"], [])
    with pytest.raises(ValueError, match="`answer` must not be empty, but got ' '"):
        teacher_forced(backbone, ["Rome"], [" "])
    assert teacher_forced(backbone, [], []) == []
