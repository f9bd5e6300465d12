"""Maps that are fitted one site after the other."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from mega_pl.asking import last_states
from mega_pl.backbone import Site, load, record, steer
from mega_pl.edits import EditCase, EditRequest
from mega_pl.edits.storage import bank_tensors
from mega_pl.errors import MegaError
from mega_pl.fitting import EditFitter, FitConfig, MapConfig, default_sites, fit, fit_maps
from mega_pl.fitting.prompts import PromptConfig, PromptSet
from mega_pl.functional import fit_transport, mean_shift, stack

FRANCE = PromptSet(
    source=("The capital of France is", "Now. The capital of France is", "France has its capital in", "France is"),
    target=("Say Rome. The capital of France is", "Say Rome: France has its capital in", "Say Rome. France is"),
    answers=("", "", ""),
    facts=0,
)
ROME = PromptSet(
    source=("Rome is a city in", "Berlin. Rome is a city in", "The city of Rome is in"),
    target=("Say Spain. Rome is a city in", "Say Spain. The city of Rome is in", "Spain. Rome is in"),
    answers=("", "", ""),
    facts=0,
)
SITES = [Site(1, "resid_mid"), Site(2, "resid_mid"), Site(3, "resid_post")]
WHOLE = MapConfig()
SHIFT = replace(WHOLE, estimator="mean_shift")


def fit_all(backbone, sets, sites, config, objects=((), ()), **options):
    """The maps of edits, one after the other."""
    return [
        fit_maps(backbone, of, sites, config, objects=ids, **options) for of, ids in zip(sets, objects, strict=False)
    ]


def first(fitted):
    """The maps of the last tokens of the prompts."""
    return [steps[0] for steps in fitted]


def last(backbone, prompts, site, moves):
    """Last-token activations, one prompt at a time."""
    rows = []
    for prompt in prompts:
        encoded = backbone.encode([prompt])
        with (
            torch.no_grad(),
            steer(backbone.model, moves, encoded.last),
            record(backbone.model, [site], encoded.last) as seen,
        ):
            backbone.model(**encoded.inputs)
        rows.append(seen[site][0])
    return torch.stack(rows)


def moved_states(backbone, asked, sites, maps, strength):
    """Last-token activations of pairs of an edit and a prompt, each moved by the maps of its edit."""
    edits = torch.tensor([edit for edit, _ in asked])

    def moves(rows):
        return {site: partial(stack(of).apply, edit=edits[rows], strength=strength) for site, of in maps.items()}

    return last_states(backbone, [prompt for _, prompt in asked], sites, moves, tokens_per_batch=40)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("config", [WHOLE, SHIFT, replace(WHOLE, rank=None, relative=False)], ids=lambda c: c.estimator)
def test_with_one_site_the_mean_of_the_steered_source_is_that_of_the_target(tiny_backbone, family, site, config):
    backbone = tiny_backbone(family)
    fitted = first(fit_all(backbone, [FRANCE, ROME], [site], config))
    for prompts, maps in zip((FRANCE, ROME), fitted, strict=True):
        source = last(backbone, prompts.source, site, maps).mean(0)
        target = last(backbone, prompts.target, site, {}).mean(0)
        torch.testing.assert_close(source, target, atol=1e-4, rtol=1e-4)
        bare = last(backbone, prompts.source, site, {}).mean(0)
        assert (bare - target).norm() > 0.1 * target.norm()  # control: there was something to move


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("config", [WHOLE, SHIFT], ids=lambda c: c.estimator)
def test_with_many_sites_every_mean_is_met_where_independent_maps_overshoot(tiny_backbone, family, config):
    backbone = tiny_backbone(family)
    fitted = first(fit_all(backbone, [FRANCE, ROME], SITES, config))
    alone = {site: first(fit_all(backbone, [FRANCE, ROME], [site], config)) for site in SITES}
    for e, prompts in enumerate((FRANCE, ROME)):
        for i, site in enumerate(SITES):
            target = last(backbone, prompts.target, site, {}).mean(0)
            moves = {s: fitted[e][s] for s in SITES[: i + 1]}
            source = last(backbone, prompts.source, site, moves).mean(0)
            torch.testing.assert_close(source, target, atol=1e-3, rtol=1e-3)
        together = last(backbone, prompts.source, SITES[-1], {s: alone[s][e][s] for s in SITES}).mean(0)
        assert (together - target).norm() > 0.1 * target.norm()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_maps_are_those_of_a_loop_over_edits_sites_and_prompts(tiny_backbone, family):
    backbone = tiny_backbone(family)
    fitted = first(fit_all(backbone, [FRANCE, ROME], SITES[::-1], replace(WHOLE, rank=2), tokens_per_batch=20))
    for prompts, maps in zip((FRANCE, ROME), fitted, strict=True):
        assert list(maps) == SITES  # in the order of a forward pass
        for i, site in enumerate(SITES):
            source = last(backbone, prompts.source, site, {s: maps[s] for s in SITES[:i]})
            target = last(backbone, prompts.target, site, {})
            wanted = fit_transport(source, target, rank=2)
            x = torch.randn(5, backbone.width, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(maps[site](x), wanted(x.double()).float(), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(("answers", "kept"), [(("yes", "no", "yes"), (0, 2)), (("yes", "no", "no"), (0, 1, 2))])
def test_targets_that_the_model_does_not_follow_are_left_out_where_two_remain(
    tiny_backbone, monkeypatch, answers, kept
):
    backbone, site = tiny_backbone("gpt2"), SITES[0]
    likely = {p: int(backbone.last_logits(backbone.encode([p])).argmax()) for p in FRANCE.target}
    monkeypatch.setattr(backbone, "answer_ids", lambda prompt, answer: [likely[prompt] if answer == "yes" else -1])
    maps = fit_maps(backbone, replace(FRANCE, answers=answers), [site], SHIFT)[0]
    source = last(backbone, FRANCE.source, site, maps).mean(0)
    target = last(backbone, [FRANCE.target[i] for i in kept], site, {}).mean(0)
    torch.testing.assert_close(source, target, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_half_the_strength_goes_half_the_way(tiny_backbone, strength):
    backbone, site = tiny_backbone("gpt2"), SITES[0]
    fitted = first(fit_all(backbone, [FRANCE], [site], replace(SHIFT, strength=strength)))
    moves = {site: [maps[site] for maps in fitted]}
    asked = [(0, p) for p in FRANCE.source]
    bare = moved_states(backbone, asked, [site], {}, strength)[site].mean(0)
    moved = moved_states(backbone, asked, [site], moves, strength)[site].mean(0)
    target = last(backbone, FRANCE.target, site, {}).mean(0)
    torch.testing.assert_close(moved, bare + strength * (target - bare), atol=1e-4, rtol=1e-4)


def test_estimators_solve_in_float64_and_keep_float32():
    draw = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 6, 4, generator=draw)
    for config, wanted in (
        (SHIFT, mean_shift(source, target)),
        (
            replace(WHOLE, rank=2, regularization=0.1, relative=False),
            fit_transport(source, target, rank=2, regularization=0.1, relative=False),
        ),
    ):
        solved = config.solve(source, target)
        assert solved.shift.dtype == torch.float32
        torch.testing.assert_close(solved(source), wanted(source.double()).float())


def facts_of(prompts):
    """The prompts, all of which an object follows."""
    return replace(prompts, answers=("x",) * 3, facts=3)


@pytest.mark.parametrize(("dtype", "bytes_of_shift"), [("float32", 4), ("int8", 2)])
def test_what_is_kept_of_maps(tiny_backbone, dtype, bytes_of_shift):
    """Few directions, fewer for the tokens of an object, and vectors of few bytes; the rest is computed with."""
    backbone = tiny_backbone("gpt2")
    config, sets = MapConfig(rank=None, directions=2, object_directions=1, dtype=dtype), facts_of(FRANCE)
    step, *later = fit_maps(backbone, sets, SITES, config, objects=(70, 71))
    assert {maps[site].rank for maps in [step] for site in SITES} == {2}
    assert {maps[site].rank for maps in later for site in SITES} == {1}
    for transport in (step[SITES[0]], later[0][SITES[1]]):
        assert (transport.shift.element_size(), transport.basis.dtype) == (bytes_of_shift, getattr(torch, dtype))
    exact = fit_maps(backbone, sets, SITES, replace(WHOLE, rank=None, directions=2))[0]
    states = last(backbone, FRANCE.source, SITES[0], {})
    moved, wanted = step[SITES[0]](states), exact[SITES[0]](states)
    assert (moved - wanted).norm() <= 0.02 * (wanted - states).norm()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "`dtype` of maps must be one of float32, int8, but got 'float64'"),
        ({"directions": 0}, "`directions` must be at least 1, but got 0"),
        ({"object_directions": -1}, "`directions` must be at least 1, but got -1"),
        ({"rank": 0}, "`rank` must be a positive int"),
        ({"max_rank": 0}, "`max_rank` must be at least 1"),
        ({"regularization": 0.0}, "`regularization` must be finite and above 0"),
    ],
)
def test_settings_out_of_range_are_refused_before_a_fit(options, message):
    with pytest.raises(ValueError, match=message):
        MapConfig(**options)


def test_no_estimator_moves_nothing():
    x = torch.ones(3, 4)
    assert torch.equal(MapConfig(estimator="none").solve(x, x + 1)(x), x)


def test_fitting_leaves_the_backbone_as_it_was(tiny_backbone):
    backbone = tiny_backbone("gpt2")
    digest = backbone.digest()
    fit_maps(backbone, FRANCE, SITES, MapConfig())
    assert backbone.digest() == digest
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.model.modules())


def test_a_fit_without_a_trainer_gives_a_bank_that_routes_its_own_prompts(roomy_folder):
    backbone = load(str(roomy_folder("gpt2")))
    requests = [
        EditRequest(edit_id=name, prompt="The capital of {} is", subject=name, target_new="Rome", target_true="Paris")
        for name in ("France", "Germany")
    ]
    bank = fit(backbone, requests)
    assert bank.ids == ("France", "Germany")
    assert list(bank.maps) == default_sites(backbone) == [Site(2, "resid_mid"), Site(3, "resid_mid")]
    with bank.apply(backbone) as use:
        backbone.last_logits(backbone.encode(["Berlin is", *(request.filled for request in requests)]))
    assert use.fired == [None, "France", "Germany"]


def test_cases_are_fitted_as_their_requests_are(roomy_folder):
    backbone = load(str(roomy_folder("gpt2")))
    request = EditRequest(
        edit_id="a", prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris"
    )
    case = EditCase(request=request, paraphrase_prompts=("France is ruled from",))
    banks = [fit(backbone, [edit], FitConfig(sites=("resid_mid.2",))) for edit in (request, case)]
    assert banks[0].requests == banks[1].requests == (request,)
    for of_request, of_case in zip(*(bank_tensors(bank).items() for bank in banks), strict=True):
        assert of_request[0] == of_case[0]
        assert torch.equal(of_request[1], of_case[1])


def test_edits_that_do_not_go_together_are_refused_before_any_work(tiny_backbone, monkeypatch):
    monkeypatch.setattr("mega_pl.fitting.fitter.fit_maps", None)
    request = EditRequest(edit_id="a", prompt="{} is", subject="Rome", target_new="x", target_true="y")
    with pytest.raises(ValueError, match="`edits` must have different ids, but got 'a' more than once"):
        fit(tiny_backbone("gpt2"), [request, replace(request, target_new="z")])
    with pytest.raises(ValueError, match="`aliases` of edit 'b' must not be the subject of another edit"):
        fit(tiny_backbone("gpt2"), [request, replace(request, edit_id="b", subject="Roma", aliases=("Rome",))])
    with pytest.raises(ValueError, match="`edits` must hold at least one edit, but got none"):
        fit(tiny_backbone("gpt2"), [])


@pytest.mark.parametrize("strength", [0.0, -1.0, 2.5])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ValueError, match=rf"`strength` must lie in \(0, 2\], but got {strength}"):
        MapConfig(strength=strength)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="`estimator` must be one of transport, mean_shift"):
        MapConfig(estimator="affine")  # type: ignore[arg-type]


OBJECTS = ((70, 71), (72,))


def states_after(backbone, prompts, ids, site, steps):
    """Last-token activations after prompts and ids, with the maps of each step at the prompt's last token and on."""
    rows = []
    for prompt in prompts:
        start = list(backbone.tokenizer(prompt)["input_ids"])
        last = len(start) - 1
        text = torch.tensor([[*start, *ids]])

        def moved(x, of_site, first=last):
            out = x.clone()
            for n, transport in enumerate(of_site):
                if first + n < len(x):
                    out[first + n] = transport(x[first + n][None])[0]
            return out

        sites = {s for maps in steps for s in maps}
        moves = {s: (lambda x, m=[maps[s] for maps in steps if s in maps]: moved(x, m)) for s in sites}
        with torch.no_grad(), steer(backbone.model, moves), record(backbone.model, [site]) as seen:
            backbone.model(text, use_cache=False)
        rows.append(seen[site][0, -1])
    return torch.stack(rows)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_every_token_of_an_object_meets_its_target_with_those_before_it_moved(tiny_backbone, family):
    backbone = tiny_backbone(family)
    sets = [
        replace(FRANCE, answers=("x",) * 3, facts=2),  # the others are consequences, which no object follows
        replace(ROME, answers=("x",) * 3, facts=3),
    ]
    fitted = fit_all(backbone, sets, SITES, SHIFT, OBJECTS, tokens_per_batch=20)
    for prompts, ids, steps in zip(sets, OBJECTS, fitted, strict=True):
        assert len(steps) == len(ids) + 1
        for step in range(1, len(steps)):
            facts = prompts.source[: prompts.facts]
            for i, site in enumerate(SITES):
                target = states_after(backbone, prompts.target, ids[:step], site, []).mean(0)
                moves = [*steps[:step], {s: steps[step][s] for s in SITES[: i + 1]}]
                source = states_after(backbone, facts, ids[:step], site, moves).mean(0)
                torch.testing.assert_close(source, target, atol=2e-3, rtol=2e-3)
                bare = states_after(backbone, facts, ids[:step], site, steps[:step]).mean(0)
                assert (bare - target).norm() > 0.05 * target.norm()
    alone = fit_all(backbone, sets, SITES, SHIFT)
    for steps, first_alone in zip(fitted, first(alone), strict=True):
        for site in SITES:
            torch.testing.assert_close(steps[0][site].shift, first_alone[site].shift, atol=1e-4, rtol=1e-4)


def test_after_a_fit_the_objects_that_do_not_come_out_are_named(roomy_folder):
    backbone = load(str(roomy_folder("gpt2")))
    request = EditRequest(
        edit_id="a", prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris"
    )
    with pytest.warns(
        UserWarning, match=r"1 of 1 new objects do not come out whole after their prompts: 'a' \('Rome', but"
    ):
        bank = fit(backbone, [request], FitConfig(maps=MapConfig(estimator="none")))
    assert list(bank.missed) == ["a"]
    written = backbone.generate(request.filled, max_new_tokens=len(backbone.answer_ids(request.filled, "Rome")))
    assert bank.missed["a"] == written.strip()


def test_an_edit_with_one_prompt_is_named(roomy_folder):
    backbone = load(str(roomy_folder("gpt2")))
    request = EditRequest(
        edit_id="alone", prompt="The capital of {} is", subject="France", target_new="Rome", target_true="Paris"
    )
    with pytest.raises(ValueError, match="an edit must have 2 prompts of each kind or more to be fitted, but 'alone'"):
        fit(backbone, [request], FitConfig(prompts=PromptConfig(prefixes=0)))


def test_activations_that_overflow_are_named_with_their_edit_and_site(tiny_backbone):
    backbone = tiny_backbone("gpt2", "float16")
    with torch.no_grad():
        backbone.model.transformer.h[2].attn.c_proj.bias.fill_(float("inf"))
    prompts = replace(FRANCE, edit_id="france")
    fit_maps(backbone, prompts, SITES[:1], MapConfig())  # control: below the site all is well
    with pytest.raises(MegaError, match=r"activations must be finite, but those of 'france' at resid_mid\.2 are not"):
        fit_maps(backbone, prompts, SITES, MapConfig())


def test_an_object_that_does_not_fit_after_its_prompts_is_refused(tiny_backbone):
    request = EditRequest(
        edit_id="long", prompt="The capital of {} is", subject="France", target_true="Paris", target_new="Oslo " * 40
    )
    with pytest.raises(ValueError, match=r"the new object of 'long' must have at most 64 tokens together"):
        EditFitter(tiny_backbone("gpt2")).update([request])
