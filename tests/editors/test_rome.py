import pytest
import torch

from mega_pl.editors import Rome, RomeConfig
from mega_pl.editors.contexts import Wordings, sample_contexts
from mega_pl.editors.mom2 import FactoredMoment, factored_moments
from mega_pl.editors.rome import at_subject, key_direction
from mega_pl.editors.values import find_shift
from mega_pl.editors.weights import Projection
from tests.editors.conftest import DARRIEUX, FRANCE, GERMANY, VALUE, last_logits, mom2

LAYER = 1


@pytest.fixture(params=[True, False], ids=["mom2", "key alone"])
def rome(request, moments):
    return Rome(RomeConfig(layer=LAYER, value=VALUE, mom2=mom2(moments) if request.param else None))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(width=12, seed=3):
    keys = draw(40, width, seed=seed) * torch.arange(1, width + 1)
    return keys.T @ keys / 40


@pytest.mark.parametrize("request_", [FRANCE, DARRIEUX])
def test_the_output_at_the_subject_becomes_the_wanted_value(backbone, rome, request_):
    """The theorem: W' k0 = v0 + d."""
    projection, contexts = (
        Projection.of(backbone, LAYER),
        sample_contexts(backbone, VALUE.context_template_length_params, VALUE.seed),
    )
    _, before = at_subject(backbone, projection, Wordings.of(request_))
    shift = find_shift(backbone, request_, contexts, VALUE, before[0], projection.shifted)
    with rome.edit(backbone, [request_]):
        _, after = at_subject(backbone, projection, Wordings.of(request_))
    wanted = before[0] + shift
    assert (after[0] - wanted).norm() < 1e-4 * wanted.norm()
    assert shift.norm() > 0.1 * before[0].norm()


def test_the_update_is_the_literal_one(backbone, rome):
    projection, contexts = (
        Projection.of(backbone, LAYER),
        sample_contexts(backbone, VALUE.context_template_length_params, VALUE.seed),
    )
    keys, values = at_subject(backbone, projection, Wordings.of(FRANCE, contexts))
    assert len(keys) == 3
    shift = find_shift(backbone, FRANCE, contexts, VALUE, values[0], projection.shifted)
    u = keys.double().mean(0)
    if rome.config.mom2 is not None:
        (known,) = factored_moments(backbone, [LAYER], rome.config.mom2).values()
        u = torch.linalg.inv(known.factor @ known.factor.T) @ u
    u = u / u.norm()
    update = torch.outer(shift.double() / (keys[0].double() @ u), u)
    before = projection.weight.detach().clone()
    with rome.edit(backbone, [FRANCE]):
        after = projection.weight.detach().clone()
    change = (after - before).T if projection.transposed else after - before
    torch.testing.assert_close(change.double(), update, rtol=1e-3, atol=1e-5)
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 1


@pytest.mark.parametrize("scale", [1e-6, 7.0, 1e6])
def test_the_direction_does_not_depend_on_the_scale_of_the_moment(scale):
    keys = draw(3, 12)
    usual, scaled = (key_direction(keys, FactoredMoment.of(c * moment(), 40, 1e-3)) for c in (1.0, scale))
    torch.testing.assert_close(usual, scaled, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(usual.norm(), torch.tensor(1.0, dtype=torch.float64))
    other = key_direction(keys, FactoredMoment.of(moment(seed=4), 40, 1e-3))
    assert usual @ other < 0.999
    torch.testing.assert_close(key_direction(keys, None), keys.mean(0) / keys.mean(0).norm())


def test_edits_are_written_one_after_the_other(backbone, rome):
    with rome.edit(backbone, [FRANCE, GERMANY]):
        together = last_logits(backbone, FRANCE.filled, GERMANY.filled)
    with rome.edit(backbone, [FRANCE]), rome.edit(backbone, [GERMANY]):
        nested = last_logits(backbone, FRANCE.filled, GERMANY.filled)
    with rome.edit(backbone, [GERMANY, FRANCE]):
        reversed_ = last_logits(backbone, FRANCE.filled, GERMANY.filled)
    assert torch.equal(together, nested)
    assert not torch.equal(together, reversed_)


def test_a_layer_that_is_not_there_is_refused(backbone):
    with pytest.raises(ValueError, match="but got 9"), Rome(RomeConfig(layer=9)).edit(backbone, [FRANCE]):
        pass
