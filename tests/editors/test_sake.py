from dataclasses import asdict, replace

import pytest
import torch

from mega_pl.asking import final_states
from mega_pl.backbone import each_pass
from mega_pl.editors import Sake, SakeConfig
from mega_pl.editors.sake import fit_map
from mega_pl.editors.store import Store, of_model
from mega_pl.fitting.prompts import PromptConfig, expand, phrasings
from tests.editors.conftest import DARRIEUX, FRANCE, GERMANY, PROMPTS, hook_count, last_logits

CONFIG = SakeConfig(prompts=PROMPTS, margin=0.2)
REQUESTS = [FRANCE, GERMANY, DARRIEUX]
FAR = "He was born in the city of London and works as a teacher."
IMPLYING = replace(
    FRANCE,
    implications=(
        ("The mayor of the capital of {} is", "The river in the capital of {} is"),
        ("The language of the capital of {} is", "The country of the capital of {} is"),
    ),
)


def head(backbone, states):
    return states.to(backbone.dtype) @ backbone.model.get_output_embeddings().weight.T


def test_states_are_those_before_the_output_layer(backbone):
    prompts = [FRANCE.filled, FAR, DARRIEUX.filled]
    states = final_states(backbone, prompts)
    torch.testing.assert_close(head(backbone, states), last_logits(backbone, *prompts), rtol=1e-4, atol=1e-4)


def test_the_map_is_pots(backbone):
    try:
        import ot
    except ImportError:
        ot = pytest.importorskip("ot")
    prompts, asked = expand(FRANCE, PROMPTS), final_states(backbone, [FRANCE.filled, FAR])
    source, target = (final_states(backbone, some).double().numpy() for some in (prompts.source, prompts.target))
    assert len(source) == 2 * len(target) == 2 * len(phrasings(FRANCE, PROMPTS))
    reference = ot.da.LinearTransport(reg=1e-2).fit(Xs=source, Xt=target)
    wanted = torch.as_tensor(reference.transform(Xs=asked.double().numpy()))
    torch.testing.assert_close(fit_map(backbone, FRANCE, CONFIG)(asked).double(), wanted, rtol=1e-3, atol=1e-3)


def test_consequences_that_move_with_the_fact_are_kept_with_noisy_copies(backbone, monkeypatch):
    """The samples of the reference procedure, in a slow twin that draws the same noise."""
    config, seen = replace(CONFIG, implications=2, copies=3, noise=0.5), []

    def fake(*samples, **_):
        seen.append(samples)
        return FakeMap()

    monkeypatch.setattr("mega_pl.editors.sake.fit_transport", fake)
    fit_map(backbone, IMPLYING, config)
    prompts, count = expand(IMPLYING, PROMPTS), len(phrasings(FRANCE, PROMPTS))
    source, target = (final_states(backbone, some) for some in (prompts.source, prompts.target))
    move = target[:count].mean(0) - source[: 2 * count].mean(0)
    pairs = [(source[2 * count + i], target[count + i]) for i in range(4)]
    cosines = [torch.cosine_similarity(b - a, move, dim=0) for a, b in pairs]
    best = sorted(range(4), key=lambda i: -cosines[i])[:2]
    for samples, plain, side in zip(seen[0], (source[: 2 * count], target[:count]), (0, 1), strict=True):
        kept = torch.stack([pairs[i][side] for i in best])
        assert torch.equal(samples[: len(plain)], plain)
        assert torch.equal(samples[len(plain) : len(plain) + 2], kept)
        noise = samples[len(plain) + 2 :] - kept.repeat(3, 1)
        assert noise.shape[0] == 6
        assert 0.4 < float(noise.std()) < 0.6
    assert not torch.equal(seen[0][0][-1] - pairs[best[1]][0], seen[0][1][-1] - pairs[best[1]][1])


class FakeMap:
    def cast(self, dtype):
        return self


def test_the_output_layer_gets_the_mapped_state(backbone):
    """Prompts of three edits and one of none in a batch, each moved by its own map."""
    prompts = [DARRIEUX.filled, FAR, FRANCE.filled, GERMANY.filled]
    routes = ["darrieux", None, "france", "germany"]
    maps = {request.edit_id: fit_map(backbone, request, CONFIG) for request in REQUESTS}
    bare = last_logits(backbone, *prompts)
    for side in ("left", "right"):
        encoded = backbone.encode(prompts, side)
        silent = backbone.last_logits(encoded)
        with Sake(CONFIG).edit(backbone, REQUESTS) as edited:
            edited.route(routes)
            logits = backbone.last_logits(encoded)
        assert edited.fired == routes
        assert torch.equal(logits[1], silent[1])
        for i in (0, 2, 3):
            wanted = head(backbone, maps[str(routes[i])](final_states(backbone, [prompts[i]])))[0]
            torch.testing.assert_close(logits[i], wanted, rtol=1e-3, atol=1e-3)
            assert not torch.allclose(logits[i], bare[i], atol=1e-2)


def test_the_router_fires_for_the_edits_own_prompts(backbone):
    with Sake(CONFIG).edit(backbone, REQUESTS) as edited:
        last_logits(backbone, FRANCE.filled, DARRIEUX.filled, GERMANY.filled)
        assert edited.fired == ["france", "darrieux", "germany"]
        edited.route(forced=True)
        last_logits(backbone, FRANCE.filled, FAR)
        assert None not in edited.fired
        edited.route()
        last_logits(backbone, FAR)
        assert edited.fired == [None]


def test_a_cached_generation_is_mapped_once(backbone):
    """The first token is the mapped state's; what follows is the bare model's continuation of it."""
    encoded = backbone.encode([FRANCE.filled])
    options = {"do_sample": False, "pad_token_id": 0, "min_new_tokens": 5, "max_new_tokens": 5}
    count = hook_count(backbone.model)
    with Sake(CONFIG).edit(backbone, [FRANCE]) as edited:
        edited.route(["france"])
        first = backbone.last_logits(encoded).argmax(-1)
        assert hook_count(backbone.model) == count + 2  # those that read along, none that maps
        written = backbone.model.generate(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, **options)
    begun = torch.cat([encoded.input_ids, first[:, None]], 1)
    options |= {"min_new_tokens": 4, "max_new_tokens": 4}
    bare = backbone.model.generate(input_ids=begun, attention_mask=torch.ones_like(begun), **options)
    assert torch.equal(written, bare)


def test_a_prompt_with_beams_is_routed_once(backbone):
    encoded = backbone.encode([FRANCE.filled, FAR])
    with Sake(CONFIG).edit(backbone, [FRANCE]) as edited:
        backbone.model.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            num_beams=2,
            do_sample=False,
            max_new_tokens=2,
            pad_token_id=0,
        )
        assert edited.fired == ["france", None]


def test_routes_that_do_not_fit_are_refused(backbone):
    with Sake(CONFIG).edit(backbone, [FRANCE]) as edited:
        with pytest.raises(KeyError, match="`edits` must name edits in force, but got 'rome'"):
            edited.route(["rome"])
        edited.route(["france", None])
        with pytest.raises(ValueError, match="`edits` must name one edit a prompt, but got 2 for 1 prompts"):
            last_logits(backbone, FRANCE.filled)
    lonely = Sake(SakeConfig(prompts=replace(PROMPTS, prefixes=0)))
    alone = replace(DARRIEUX, phrasings=())
    with pytest.raises(ValueError, match="2 phrasings or more"), lonely.edit(backbone, [alone]):
        pass


def test_each_reading_is_closed_also_after_an_exception(backbone):
    opened: list[str] = []

    class Around:
        def __init__(self, reading, taken):
            assert not taken
            assert reading.last.tolist() == [reading.ids.shape[1] - 1]

        def __enter__(self):
            opened.append("open")

        def __exit__(self, *_):
            opened.append("closed")

        def logits(self, logits, cache):
            return logits

    count = hook_count(backbone.model)
    with each_pass(backbone.model, Around):
        last_logits(backbone, "Rome is")
        with pytest.raises((IndexError, RuntimeError)):
            backbone.model(torch.tensor([[10_000]]))
        last_logits(backbone, "Rome is")
    assert opened == ["open", "closed"] * 3
    assert hook_count(backbone.model) == count


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regularization": 0.0}, "`regularization` must be above 0"),
        ({"margin": 0.0}, "`margin` must be above 0"),
        ({"implications": -1}, "`implications` must be at least 0"),
        ({"recall": 1.5}, r"`recall` must lie in \(0, 1\], but got 1.5"),
        ({"prompts": PromptConfig()}, "`prompts.bare_implications` must be false for SAKE"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SakeConfig(**settings)


def test_maps_that_another_version_has_kept_are_not_read(backbone, tmp_path):
    """It told maps by model, settings and request alone, and kept a mean of theirs."""
    key = ["sake", *of_model(backbone), asdict(CONFIG), asdict(FRANCE)]
    Store(str(tmp_path)).each([key], lambda _: ({"mean": torch.zeros(backbone.width)}, None), "maps")
    with Sake(CONFIG, folder=str(tmp_path)).edit(backbone, [FRANCE]):
        assert len(list(tmp_path.glob("*.safetensors"))) == 2
