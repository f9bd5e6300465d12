import pytest
import torch

from mega_pl.backbone import Site, record
from mega_pl.editors import Memit, MemitConfig
from mega_pl.editors.contexts import Wordings, sample_contexts, subject_positions
from mega_pl.editors.memit import stream_shift
from mega_pl.editors.mom2 import factored_moments
from mega_pl.editors.rome import at_subject
from mega_pl.editors.values import ValueConfig, find_shift
from mega_pl.editors.weights import Projection
from tests.editors.conftest import DARRIEUX, FRANCE, GERMANY, VALUE, last_logits, mom2

CLEAN = ValueConfig(v_num_grad_steps=8, v_lr=0.5, v_weight_decay=1e-3, context_template_length_params=())
REQUESTS = [FRANCE, GERMANY, DARRIEUX]


def state(backbone, request, layer):
    """The block's output at the subject's last token of the bare prompt."""
    wordings = Wordings.of(request)
    encoded = backbone.encode(wordings.texts)
    site, positions = Site(layer, "resid_post"), subject_positions(backbone, wordings.texts, wordings.subject_ends)
    with torch.no_grad(), record(backbone.model, [site], positions) as seen:
        backbone.model(**encoded.inputs)
    return seen[site][0]


def aims(backbone, contexts, config, layer):
    shifted = stream_shift(backbone, layer)
    starts = [state(backbone, request, layer) for request in REQUESTS]
    return [
        start + find_shift(backbone, request, contexts, config, start, shifted)
        for request, start in zip(REQUESTS, starts, strict=True)
    ]


def test_one_layer_that_spares_nothing_reaches_every_aim(backbone, moments):
    memit = Memit(MemitConfig(layers=(1,), value=CLEAN, mom2=mom2(moments), mom2_update_weight=1e-9))
    wanted = aims(backbone, ("",), CLEAN, 1)
    with memit.edit(backbone, REQUESTS):
        reached = [state(backbone, request, 1) for request in REQUESTS]
    for one, aim in zip(reached, wanted, strict=True):
        assert (one - aim).norm() < 1e-3 * aim.norm()


def test_sparing_everything_else_leaves_the_model_as_it_is(backbone, moments):
    memit = Memit(MemitConfig(layers=(1,), value=CLEAN, mom2=mom2(moments), mom2_update_weight=1e9))
    bare = last_logits(backbone, FRANCE.filled)
    with memit.edit(backbone, REQUESTS):
        torch.testing.assert_close(last_logits(backbone, FRANCE.filled), bare, atol=1e-4, rtol=1e-4)


def test_the_updates_are_the_literal_ones(backbone, moments):
    """Layer by layer with dense solves, the rest measured anew after each."""
    layers, spare = (1, 2, 3), 10.0
    memit = Memit(MemitConfig(layers=layers, value=VALUE, mom2=mom2(moments), mom2_update_weight=spare))
    contexts = sample_contexts(backbone, VALUE.context_template_length_params, VALUE.seed)
    wanted = torch.stack(aims(backbone, contexts, VALUE, 3)).double()
    known = factored_moments(backbone, layers, memit.config.mom2)
    projections = [Projection.of(backbone, layer) for layer in layers]
    bare = [projection.weight.detach().clone() for projection in projections]
    try:
        for i, projection in enumerate(projections):
            keys = []
            for request in REQUESTS:
                of_contexts = at_subject(backbone, projection, Wordings.of(request, contexts))[0].double()
                keys.append((of_contexts[0] + of_contexts[1:].mean(0)) / 2)
            k = torch.stack(keys, 1)
            now = torch.stack([state(backbone, request, 3) for request in REQUESTS]).double()
            r = ((wanted - now) / (3 - i)).T
            c = known[layers[i]].factor @ known[layers[i]].factor.T
            projection.add(r @ torch.linalg.solve(spare * c + k @ k.T, k).T)
        slow = [projection.weight.detach().clone() for projection in projections]
    finally:
        for projection, weight in zip(projections, bare, strict=True):
            projection.weight.data.copy_(weight)
    with memit.edit(backbone, REQUESTS):
        for projection, weight, before in zip(projections, slow, bare, strict=True):
            assert (projection.weight - before).norm() > 1e-2
            torch.testing.assert_close(projection.weight.detach(), weight, rtol=1e-3, atol=1e-4)


def test_the_order_of_a_batch_does_not_matter(backbone, moments):
    memit = Memit(MemitConfig(layers=(1, 2), value=VALUE, mom2=mom2(moments), mom2_update_weight=10.0))
    found = []
    for requests in (REQUESTS, REQUESTS[::-1]):
        with memit.edit(backbone, requests):
            found.append(last_logits(backbone, *(request.filled for request in REQUESTS)))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_an_mlp_that_does_not_write_straight_into_the_stream_is_refused(tiny_backbone, moments):
    memit = Memit(MemitConfig(layers=(1,), mom2=mom2(moments)))
    editing = memit.edit(tiny_backbone("gemma2"), REQUESTS)
    with pytest.raises(ValueError, match="writes straight into the stream"), editing:
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, r"`layers` must be one or more different blocks in ascending order, but got \(\)"),
        ({"layers": (2, 1)}, r"ascending order, but got \(2, 1\)"),
        ({"layers": (1, 1)}, r"different blocks"),
        ({"layers": (1,), "mom2_update_weight": 0.0}, "`mom2_update_weight` must be above 0, but got 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MemitConfig(**settings)
