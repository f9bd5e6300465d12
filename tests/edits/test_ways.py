"""Every way to read, write and score with edits in force: the edit acts, or one line says why not."""

import copy
import gc
import re
import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, pipeline

from mega_pl.backbone import Backbone, Site, blocks, prompt_lengths, reading, steer
from mega_pl.edits import EditBank, EditRequest
from mega_pl.edits.routing import NO_EDIT, Route
from mega_pl.functional import Transport, shifting, stack

NEW, OLD = "France", "Germany"
EDIT = EditRequest(edit_id="rome", prompt="{} is in", subject="Rome", target_new="Spain", target_true="Italy")
PROMPT, OTHER = "The city of Rome is in", "The capital of the country is"
TEXTS = [PROMPT, OTHER]
STEPS = 3
SITES = (Site(1, "resid_mid"), Site(2, "resid_post"))


class ByName:
    """Sends prompts that name Rome to the edit."""

    kind = "name"

    def route(self, prompts, *, forced=False):
        named = ["Rome" in " ".join(turns) for turns in prompts.turns]
        return [Route(0 if forced or name else NO_EDIT, float(name)) for name in named]


def far(width: int, seed: int) -> Transport:
    """A map that moves everything far."""
    draw = torch.Generator().manual_seed(seed)
    return shifting(4 * torch.randn(width, generator=draw))


@pytest.fixture(params=["gpt2", "llama"])
def backbone(request, tiny_backbone) -> Backbone:
    made: Backbone = tiny_backbone(request.param)
    return made


@pytest.fixture
def bank(backbone) -> EditBank:
    """One edit with maps for the prompt's last token and for two tokens after it, those that the first makes likeliest.

    Its object is what it makes the model write, so that all its steps are reached.
    """
    maps = {site: [far(backbone.width, 10 * s + site.layer) for s in range(STEPS)] for site in SITES}
    ids = list(backbone.tokenizer(PROMPT)["input_ids"])
    start = len(ids)
    for _ in range(STEPS):
        ids.append(int(by_hand(backbone, maps, ids, start).argmax()))
    router: Any = ByName()
    return EditBank(
        requests=(EDIT,),
        maps={site: stack(of_site) for site, of_site in maps.items()},
        router=router,
        strength=1.0,
        backbone={"name": backbone.name, "revision": None, **backbone.fingerprint},
        settings={},
        objects=(tuple(ids[start : start + STEPS - 1]),),
    )


@torch.no_grad()
def by_hand(backbone: Backbone, maps: dict[Site, list[Transport]], ids: list[int], start: int) -> Tensor:
    """The logits (V,) after ids when the prompt's last token and what follows it are moved, read as a whole."""
    end = min(len(ids), start - 1 + STEPS)

    def move(x: Tensor, of_site: list[Transport]) -> Tensor:
        moved = x.clone()
        for step, column in enumerate(range(start - 1, end)):
            moved[column] = of_site[step](x[column : column + 1])[0]
        return moved

    moves = {site: (lambda x, m=of_site: move(x, m)) for site, of_site in maps.items()}
    with steer(backbone.model, moves):
        logits: Tensor = backbone.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits


def reference(backbone: Backbone, bank: EditBank, tokens: int) -> list[int]:
    """What the edit makes the model write after `PROMPT`."""
    maps = {site: [of_site[i] for i in range(STEPS)] for site, of_site in bank.maps.items()}
    ids = list(backbone.tokenizer(PROMPT)["input_ids"])
    start = len(ids)
    for _ in range(tokens):
        ids.append(int(by_hand(backbone, maps, ids, start).argmax()))
    return ids[start:]


def write(backbone: Backbone, texts: list[str], tokens: int = 6, **options: Any) -> list[list[int]]:
    encoded = backbone.encode(texts)
    written = backbone.model.generate(
        input_ids=encoded.input_ids,
        attention_mask=encoded.attention_mask,
        **{"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0, **options},
    )
    new: list[list[int]] = written[:, encoded.input_ids.shape[1] :].tolist()
    return new


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without a cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 3},
    "one beam": {"num_beams": 1},
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_written_is_what_moving_the_tokens_by_hand_gives(backbone, bank, way):
    bare = write(backbone, TEXTS, **WAYS[way])
    with bank.apply(backbone, guard=False) as use:
        written = write(backbone, TEXTS, **WAYS[way])
    assert written[0] == reference(backbone, bank, 6) != bare[0]
    assert written[0][: STEPS - 1] == list(bank.objects[0])
    assert written[1] == bare[1]
    assert use.fired == ["rome", None]


def test_prompt_lookup_and_an_assistant_write_the_same(backbone, bank, tiny_backbone):
    """One text at a time, as the library wants it."""
    wanted = reference(backbone, bank, 6)
    helper = copy.deepcopy(backbone.model)
    with bank.apply(backbone, guard=False) as use:
        assert write(backbone, [PROMPT], prompt_lookup_num_tokens=2)[0] == wanted
        assert use.fired == ["rome"]
        assert write(backbone, [PROMPT], assistant_model=helper)[0] == wanted
        assert use.fired == ["rome"]
        bare = write(backbone, [OTHER], assistant_model=helper)
    assert bare == write(backbone, [OTHER])


def test_beams_are_scored_with_the_edit(backbone, bank):
    """The best of many beams is at least as likely under the edit as the greedy answer."""

    def score(ids: list[int]) -> float:
        maps = {site: [of_site[i] for i in range(STEPS)] for site, of_site in bank.maps.items()}
        text = list(backbone.tokenizer(PROMPT)["input_ids"])
        start, total = len(text), 0.0
        object_ids = list(bank.objects[0])
        for token in ids:
            follows = text[start:] == object_ids[: len(text) - start]
            steps = {s: m if follows else m[:1] for s, m in maps.items()}
            total += float(by_hand_some(backbone, steps, text, start).log_softmax(-1)[token])
            text.append(token)
        return total

    with bank.apply(backbone, guard=False) as use:
        beams = write(backbone, TEXTS, tokens=3, num_beams=4)
        assert use.fired == ["rome", None]
        returned = write(backbone, TEXTS, tokens=3, num_beams=4, num_return_sequences=2)
        assert use.fired == ["rome", None]
    assert returned[0] == beams[0]
    assert score(beams[0]) >= score(reference(backbone, bank, 3)) - 1e-4
    assert beams[1] == write(backbone, TEXTS, tokens=3, num_beams=4)[1]


def by_hand_some(backbone: Backbone, maps: dict[Site, list[Transport]], ids: list[int], start: int) -> Tensor:
    """As `by_hand`, with as many steps as there are maps."""
    steps = len(next(iter(maps.values())))
    padded = {site: of_site + [still(backbone.width)] * (STEPS - steps) for site, of_site in maps.items()}
    return by_hand(backbone, padded, ids, start)


def still(width: int) -> Transport:
    return shifting(torch.zeros(width))


def test_samples_are_drawn_with_the_edit_and_routed_once(backbone, bank):
    torch.manual_seed(0)
    with bank.apply(backbone, guard=False) as use:
        drawn = write(backbone, TEXTS, do_sample=True, num_return_sequences=3, top_k=1)
    assert drawn[:3] == [reference(backbone, bank, 6)] * 3
    assert use.fired == ["rome", None]


def test_a_cache_may_be_kept_over_turns(backbone, bank):
    """The second turn is a prompt of its own, and the first turn's object does not act in it."""
    first = list(backbone.tokenizer(OTHER)["input_ids"])
    whole = [*first, *backbone.tokenizer(" " + PROMPT)["input_ids"]]
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with bank.apply(backbone, guard=False) as use:
        anew = backbone.model.generate(torch.tensor([whole]), **options)
        cache = DynamicCache(config=backbone.model.config)
        backbone.model(torch.tensor([first]), past_key_values=cache, use_cache=True)
        assert use.fired == [None]
        kept = backbone.model.generate(torch.tensor([whole]), past_key_values=cache, **options)
        assert use.fired == ["rome"]
    assert torch.equal(anew, kept)
    assert not torch.equal(anew, backbone.model.generate(torch.tensor([whole]), **options))


def test_a_prefix_that_was_read_before_the_edits_may_be_shared(backbone, bank):
    prefix = list(backbone.tokenizer("The city of")["input_ids"])
    ids = list(backbone.tokenizer(PROMPT)["input_ids"])
    assert ids[: len(prefix)] == prefix
    cache = DynamicCache(config=backbone.model.config)
    backbone.model(torch.tensor([prefix]), past_key_values=cache, use_cache=True)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with bank.apply(backbone, guard=False) as use:
        written = backbone.model.generate(torch.tensor([ids]), past_key_values=copy.deepcopy(cache), **options)
        assert use.fired == ["rome"]
        with pytest.raises(ValueError, match="`past_key_values` must have been read with the edits in force"):
            backbone.model(torch.tensor([ids[len(prefix) :]]), past_key_values=copy.deepcopy(cache), use_cache=True)
        with pytest.raises(ValueError, match="`input_ids` must hold the whole text while edits are in force"):
            backbone.model.generate(
                torch.tensor([ids[len(prefix) :]]),
                attention_mask=torch.ones(1, len(ids)).long(),
                past_key_values=copy.deepcopy(cache),
                **options,
            )
    assert written[0, len(ids) :].tolist() == reference(backbone, bank, 6)


@torch.no_grad()
def test_ones_own_loop_writes_the_same(backbone, bank):
    encoded = backbone.encode(TEXTS)
    mask, position = encoded.attention_mask, encoded.position_ids[:, -1:]
    with bank.apply(backbone, guard=False) as use:
        output = backbone.model(**encoded.inputs, use_cache=True)
        new = []
        for _ in range(5):
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            new.append(token)
            mask, position = torch.cat([mask, torch.ones_like(token)], 1), position + 1
            output = backbone.model(
                token,
                attention_mask=mask,
                position_ids=position,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
            assert use.fired == ["rome", None]
    written = torch.cat(new, 1).tolist()
    assert written[0] == reference(backbone, bank, 5)
    assert written[1] == write(backbone, TEXTS, 5)[1]


def test_embeddings_act_with_a_named_edit_and_are_else_refused(backbone, bank):
    ids = torch.tensor([backbone.tokenizer(PROMPT)["input_ids"]])
    embeddings = backbone.model.get_input_embeddings()(ids).detach()
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with bank.apply(backbone, guard=False) as use:
        for read in (backbone.model, lambda **k: backbone.model.generate(**k, **options)):
            with pytest.raises(ValueError, match="a prompt must be given as `input_ids` to be routed by its text"):
                read(inputs_embeds=embeddings, attention_mask=mask)
            assert use.fired == []
    with bank.apply(backbone, edits=["rome"], guard=False) as use:
        written = backbone.model.generate(inputs_embeds=embeddings, attention_mask=mask, **options)
    assert written[0].tolist() == reference(backbone, bank, 6)
    assert use.fired == ["rome"]


def test_prompt_and_answer_in_one_pass_are_scored_as_they_are_written(backbone, bank):
    wanted = reference(backbone, bank, 4)
    ids = list(backbone.tokenizer(PROMPT)["input_ids"])
    text = torch.tensor([[*ids, *wanted]])
    labels = text.clone()
    labels[0, : len(ids)] = -100
    with bank.apply(backbone, guard=False) as use, torch.no_grad():
        with prompt_lengths([len(ids)]):
            told = backbone.model(text, use_cache=False).logits[0]
        assert use.fired == ["rome"]
        judged = backbone.model(text, labels=labels, use_cache=False)
        whole = backbone.model(text, use_cache=False).logits[0]
        with pytest.raises(ValueError, match="`labels` must be -100 over the prompt"):
            backbone.model(text, labels=text)
        with pytest.raises(ValueError, match=r"prompt lengths must lie in \[1, "), prompt_lengths([99]):
            backbone.model(text)
    assert told[len(ids) - 1 : -1].argmax(-1).tolist() == wanted
    assert torch.equal(judged.logits[0], told)
    bare = backbone.model(text, use_cache=False).logits[0]
    assert torch.equal(whole[: len(ids)], bare[: len(ids)])  # of a whole row the last token is a prompt's


def test_a_harness_gets_the_log_likelihood_of_what_is_written(backbone, bank):
    with bank.apply(backbone, guard=False):
        (new, is_new), (old, is_old) = backbone.loglikelihood([PROMPT, PROMPT], [" Spain", " Italy"])
        encoded = backbone.encode([PROMPT])
        logits = backbone.last_logits(encoded).log_softmax(-1)[0]
    for answer, found in (("Spain", new), ("Italy", old)):
        ids = backbone.answer_ids(PROMPT, answer)
        if len(ids) == 1:
            assert found == pytest.approx(float(logits[ids[0]]), abs=1e-4)
    bare = backbone.loglikelihood([PROMPT, PROMPT], [" Spain", " Italy"])
    assert (new, old) != (bare[0][0], bare[1][0])
    assert isinstance(is_new, bool)
    assert isinstance(is_old, bool)


def test_the_likelihood_of_a_continuation_is_the_sum_over_its_tokens(backbone):
    """Verbatim, also without a space, and whatever the batch."""
    texts = [" Spain and Italy", ".", ", which"]
    found = backbone.loglikelihood([PROMPT] * 3, texts)
    start = backbone.tokenizer(PROMPT)["input_ids"]
    for text, (total, _) in zip(texts, found, strict=True):
        ids = backbone.tokenizer(PROMPT + text)["input_ids"]
        with torch.no_grad():
            chances = backbone.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = sum(float(chances[n - 1, ids[n]]) for n in range(len(start), len(ids)))
        assert total == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("prompts", "texts", "reason"),
    [
        ("Rome", [" x"], "`prompts` must be a sequence of texts"),
        (["Rome"], " x", "`continuations` must be a sequence of texts"),
        (["Rome"], [], "must be equally many texts, at least one, but got 1 and 0"),
        ([], [], "must be equally many texts, at least one, but got 0 and 0"),
        (["Rome"], [""], "a continuation must add tokens to its prompt, but '' adds none to 'Rome'"),
    ],
)
def test_what_has_no_likelihood_is_refused(backbone, prompts, texts, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        backbone.loglikelihood(prompts, texts)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of the compiler itself
@pytest.mark.parametrize("before", [False, True], ids=["within", "before"])
@pytest.mark.parametrize("way", ["model", "forward", "in place"])
def test_a_compiled_model_is_steered_also_if_it_was_compiled_before(backbone, bank, way, before):
    torch.compiler.reset()
    ids = torch.tensor([backbone.tokenizer(PROMPT)["input_ids"]])
    model = compiled = backbone.model
    bare = model(ids, use_cache=False).logits[0, -1]
    with bank.apply(backbone, guard=False):
        wanted = model(ids, use_cache=False).logits[0, -1]
    if way == "model":
        compiled = torch.compile(model, backend="eager")
    elif way == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    else:
        model.compile(backend="eager")
    with torch.no_grad():
        if before:
            torch.testing.assert_close(compiled(ids, use_cache=False).logits[0, -1], bare)
        with bank.apply(backbone, guard=False) as use:
            torch.testing.assert_close(compiled(ids, use_cache=False).logits[0, -1], wanted)
            assert use.fired == ["rome"]
        torch.testing.assert_close(compiled(ids, use_cache=False).logits[0, -1], bare)
    assert not torch.allclose(wanted, bare, atol=1e-3)


def test_a_pass_that_has_not_run_its_hooks_is_noticed(backbone, bank, monkeypatch):
    monkeypatch.setattr("mega_pl.backbone.hooks._attach", lambda *_: None)
    with bank.apply(backbone) as use:
        with pytest.raises(RuntimeError, match=r"a steered pass must run the hooks at resid_mid\.1, but it did not"):
            backbone.last_logits(backbone.encode([PROMPT]))
        assert use.fired == []


def test_a_pipeline_writes_with_the_edit(backbone, bank):
    writer = pipeline("text-generation", model=backbone.model, tokenizer=backbone.tokenizer)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "return_full_text": False}
    bare = writer(PROMPT, **options)[0]["generated_text"]
    with bank.apply(backbone, guard=False) as use:
        edited = writer(PROMPT, **options)[0]["generated_text"]
        assert use.fired == ["rome"]
        assert edited == backbone.generate(PROMPT, max_new_tokens=6, min_new_tokens=6)
    assert edited != bare


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # asked by PEFT
def test_an_adapter_may_be_around_the_model(tiny_backbone):
    peft = pytest.importorskip("peft")
    backbone = tiny_backbone("llama")
    adapted = peft.get_peft_model(backbone.model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    inside = Backbone(adapted.eval(), backbone.tokenizer)
    assert inside.model is adapted.get_base_model()
    encoded = inside.encode([PROMPT])
    shift = 4 * torch.randn(inside.width, generator=torch.Generator().manual_seed(0))
    maps = stack([shifting(shift)])
    router: Any = ByName()
    origin = {"name": "", "revision": None, **inside.fingerprint}
    bank = EditBank((EDIT,), {SITES[0]: maps}, router, 1.0, origin, {})
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    bare = adapted.generate(**encoded.inputs, **options)
    with bank.apply(inside) as use:
        edited = adapted.generate(**encoded.inputs, **options)
        assert use.fired == ["rome"]
        assert torch.equal(edited, inside.model.generate(**encoded.inputs, **options))
    assert not torch.equal(edited, bare)
    virtual = peft.get_peft_model(
        tiny_backbone("llama").model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    with pytest.raises(ValueError, match="adapters must leave the text as it is, but 'default' puts virtual tokens"):
        Backbone(virtual.eval(), backbone.tokenizer)


def test_a_model_of_eight_bits_is_edited_as_it_is(tiny_backbone):
    backbone = tiny_backbone("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(backbone.model), {nn.Linear}, torch.qint8)
    small = Backbone(quantized, backbone.tokenizer)
    shift = 4 * torch.randn(small.width, generator=torch.Generator().manual_seed(0))
    maps = stack([shifting(shift)])
    router: Any = ByName()
    bank = EditBank((EDIT,), {SITES[0]: maps}, router, 1.0, {"name": "", "revision": None, **small.fingerprint}, {})
    bare = [write(small, [text]) for text in TEXTS]  # rows of a batch share the scale of what is quantised
    with bank.apply(small) as use:
        edited = [write(small, [PROMPT])]
        assert use.fired == ["rome"]
        edited.append(write(small, [OTHER]))
        assert use.fired == [None]
    assert edited[0] != bare[0]
    assert edited[1] == bare[1]


def test_texts_that_are_packed_into_a_row_and_masks_of_four_dimensions_are_refused(backbone, bank):
    ids = torch.tensor([backbone.tokenizer(PROMPT)["input_ids"]])
    with bank.apply(backbone):
        with pytest.raises(ValueError, match=r"`attention_mask` must be of shape \(B, T\)"):
            backbone.model(ids, attention_mask=torch.ones(1, 1, ids.shape[1], ids.shape[1]))
        with pytest.raises(ValueError, match="each row must hold one text while edits are in force"):
            backbone.model(ids, cu_seq_lens_q=torch.tensor([0, 2, ids.shape[1]]))


def test_copies_of_an_edited_model_are_bare(backbone, bank):
    bare = write(backbone, TEXTS)
    with bank.apply(backbone, guard=False):
        twin, shallow = copy.deepcopy(backbone.model), copy.copy(backbone.model)
        edited = write(backbone, TEXTS)
        assert write(Backbone(twin, backbone.tokenizer), TEXTS) == bare
    assert write(Backbone(twin, backbone.tokenizer), TEXTS) == bare
    assert write(Backbone(shallow, backbone.tokenizer), TEXTS) == bare
    assert edited[0] != bare[0]
    assert write(backbone, TEXTS) == bare
    assert "generate" not in vars(backbone.model)


def test_threads_get_what_each_would_get_alone(backbone, bank):
    texts = [[PROMPT], [OTHER], TEXTS, ["Rome", "He was born in the city of", PROMPT]]
    with bank.apply(backbone, guard=False):
        alone = [backbone.generate(some, max_new_tokens=5) for some in texts]
        found: dict[tuple[int, int], Any] = {}
        fired: dict[tuple[int, int], Any] = {}

        def serve(thread: int) -> None:
            for n in range(12):
                i = (n + thread) % len(texts)
                found[thread, n] = i, backbone.generate(texts[i], max_new_tokens=5)

        threads = [threading.Thread(target=serve, args=(thread,)) for thread in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 36
    assert not fired
    assert all(text == alone[i] for i, text in found.values())


def test_each_thread_sees_its_own_routes(backbone, bank):
    seen: dict[str, Any] = {}
    with bank.apply(backbone) as use:
        backbone.generate([PROMPT], max_new_tokens=2)

        def serve() -> None:
            seen["before"] = use.fired
            backbone.generate([OTHER], max_new_tokens=2)
            seen["after"] = use.fired

        thread = threading.Thread(target=serve)
        thread.start()
        thread.join()
        assert use.fired == ["rome"]
    assert seen == {"before": [], "after": [None]}


def test_a_later_bank_goes_before_an_earlier_one_and_leaves_it_the_rest(backbone, bank):
    """The one put on last answers the prompts that both would answer, and the router of neither sees the other."""
    nothing: Callable[..., Any] = lambda prompts, forced=False: [Route(NO_EDIT)] * len(prompts)  # noqa: E731
    with bank.apply(backbone, guard=False) as outer:
        once = write(backbone, TEXTS)
        with bank.apply(backbone, guard=False) as inner:
            twice = write(backbone, TEXTS)
            assert (outer.fired, inner.fired) == ([None, None], ["rome", None])
            inner.router = type("Silent", (), {"route": staticmethod(nothing)})()
            again = write(backbone, TEXTS)
            assert (outer.fired, inner.fired) == (["rome", None], [None, None])
    assert once == twice == again


def test_a_failing_pass_leaves_nothing_behind(backbone, bank):
    bare = write(backbone, TEXTS)
    with bank.apply(backbone, guard=False) as use:
        edited = write(backbone, TEXTS)
        with pytest.raises((IndexError, RuntimeError)):
            backbone.model(torch.tensor([[10_000_000]]))
        assert use.fired == []
        assert write(backbone, TEXTS) == edited
    assert write(backbone, TEXTS) == bare


@pytest.mark.parametrize("family", ["gemma2", "mistral"])
def test_windows_that_slide_are_no_obstacle(tiny_backbone, tiny_model, family):
    """Batched, cached and uncached runs agree, with a prompt that is longer than the window."""
    backbone = Backbone(tiny_model(family, {"sliding_window": 6}), tiny_backbone(family).tokenizer)
    long = f"{OTHER} it. {PROMPT}"
    assert len(backbone.tokenizer(long)["input_ids"]) > 12
    router: Any = ByName()
    origin = {"name": "", "revision": None, **backbone.fingerprint}
    bank = EditBank((EDIT,), {SITES[0]: stack([far(backbone.width, 1)])}, router, 1.0, origin, {})
    bare = write(backbone, [long, OTHER])
    with bank.apply(backbone, guard=False) as use:
        edited = write(backbone, [long, OTHER])
        assert use.fired == ["rome", None]
        assert write(backbone, [long, OTHER], use_cache=False) == edited
        assert write(backbone, [long])[0] == edited[0]
    assert edited[0] != bare[0]
    assert edited[1] == bare[1]


def test_a_chat_template_may_stand_around_the_turns(backbone, bank):
    """The router gets them without it, the last one of the user before the empty one that is to be written."""
    seen: list[Any] = []

    class Watching(ByName):
        def route(self, prompts, *, forced=False):
            seen.append(prompts.turns)
            return super().route(prompts, forced=forced)

    backbone.tokenizer.chat_template = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
    turns = [{"role": "user", "content": content} for content in (OTHER, PROMPT)]
    ids = backbone.tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
    watched: Any = Watching()
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    bare = backbone.model.generate(ids, **options)
    with replace(bank, router=watched).apply(backbone, guard=False) as use:
        edited = backbone.model.generate(ids, **options)
    assert seen == [[(OTHER, PROMPT, "")]]
    assert use.fired == ["rome"]
    assert not torch.equal(edited, bare)


def test_every_way_of_the_table_has_its_test():
    table = (Path(__file__).parents[2] / "docs" / "ways.md").read_text("utf-8")
    names = set(re.findall(r"`(test_\w+)`", table))
    assert len(names) > 15
    assert names <= set(globals())


def test_a_pass_that_cannot_begin_does_not_end_that_of_another_thread(backbone, bank):
    """One thread is refused again and again while the other writes."""
    refused: list[str] = []
    with bank.apply(backbone, guard=False) as use:
        alone = backbone.generate(TEXTS, max_new_tokens=8)
        done = threading.Event()

        def disturb() -> None:
            while not done.is_set():
                try:
                    backbone.model(inputs_embeds=torch.zeros(1, 3, backbone.width))
                except ValueError as error:
                    refused.append(str(error))

        thread = threading.Thread(target=disturb)
        thread.start()
        found = [(backbone.generate(TEXTS, max_new_tokens=8), use.fired) for _ in range(6)]
        done.set()
        thread.join()
    assert found == [(alone, ["rome", None])] * 6
    assert refused
    assert all("to be routed by its text" in reason for reason in refused)


def test_a_pass_of_one_thread_is_not_ended_by_another(backbone, bank):
    """As a call that is refused would do, whose hook for the end runs although it has never begun."""
    with bank.apply(backbone, guard=False):
        wanted = backbone.last_logits(backbone.encode([PROMPT]))

        def disturb(*_: object) -> None:
            followed = reading._followed[id(backbone.model)]
            thread = threading.Thread(target=followed._leave, args=(backbone.model, (), None))
            thread.start()
            thread.join()

        handle = blocks(backbone.model)[0].register_forward_hook(disturb)
        found = backbone.last_logits(backbone.encode([PROMPT]))
        handle.remove()
    assert torch.equal(found, wanted)


def test_a_model_is_forgotten_once_its_edits_are_off(tiny_model, tiny_backbone):
    backbone = Backbone(tiny_model("gpt2"), tiny_backbone("gpt2").tokenizer)
    router: Any = ByName()
    origin = {"name": "", "revision": None, **backbone.fingerprint}
    bank = EditBank((EDIT,), {SITES[0]: stack([far(backbone.width, 1)])}, router, 1.0, origin, {})
    with bank.apply(backbone) as use:
        write(backbone, TEXTS)
    model = weakref.ref(backbone.model)
    del backbone, use
    gc.collect()
    assert model() is None


def steps_of(lm, texts, count=3):
    """The logits of each step of a generation, before anything is chosen from them."""
    encoded = lm.encode(texts)
    written = lm.model.generate(
        input_ids=encoded.input_ids,
        attention_mask=encoded.attention_mask,
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(written.logits)


def test_beside_a_row_that_fires_others_are_bare_in_every_step_to_the_bit(lm, three):
    texts = ["Rain fell on the roof and", three.requests[0].filled, "A small dog slept by the"]
    bare = steps_of(lm, texts)
    with three.apply(lm, edits=[None, three.ids[0], None]):
        edited = steps_of(lm, texts)
    for row in (0, 2):
        assert torch.equal(edited[:, row], bare[:, row])
    assert not torch.equal(edited[0, 1], bare[0, 1])


def test_a_generation_reads_its_prompts_once_and_the_last_tokens_again_where_a_row_fires(lm, three, monkeypatch):
    read = []
    forward = lm.model.base_model.forward

    def count(*args, **kwargs):
        read.append((args[0] if args else kwargs["input_ids"]).numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(lm.model.base_model, "forward", count)
    texts = ["Rain fell on the roof and", three.requests[0].filled]
    width = lm.encode(texts).input_ids.shape[1]
    for edits, again in (([None, None], []), ([None, three.ids[0]], [2])):
        read.clear()
        with three.apply(lm, edits=edits, guard=False):
            lm.generate(texts, max_new_tokens=1)
        assert read == [2 * width, *again]
