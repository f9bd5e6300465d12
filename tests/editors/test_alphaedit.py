"""AlphaEdit: the literal formula, and what lies outside the null space stays as it was."""

import pytest
import torch
from torch import Tensor

from mega_pl.backbone import Site
from mega_pl.editors import AlphaEdit, AlphaEditConfig, second_moments
from mega_pl.editors.alphaedit import null_space_step, unused
from mega_pl.editors.contexts import Wordings, sample_contexts
from mega_pl.editors.memit import _at_subjects, stream_shift
from mega_pl.editors.values import find_shift
from mega_pl.editors.weights import Projection
from tests.editors.conftest import DARRIEUX, FRANCE, GERMANY, VALUE, mom2


def config(moments, **settings):
    return AlphaEditConfig(layers=(1, 2), value=VALUE, mom2=mom2(moments), **{"L2": 0.5, **settings})


def threshold_of(backbone, moments, share):
    """A threshold below which lies a share of the directions of both blocks."""
    found = second_moments(backbone, [1, 2], mom2(moments)).values()
    return max(float(torch.linalg.eigvalsh(moment.double()).quantile(share)) for moment, _ in found)


@pytest.mark.parametrize("keys", [3, 40])
@pytest.mark.parametrize("count", [1, 3])
def test_the_step_is_the_literal_solve(keys, count):
    rows = torch.randn(keys, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    literal = torch.linalg.inv(rows.T @ rows + 0.3 * torch.eye(16, dtype=torch.float64)) @ rows[:count].T
    torch.testing.assert_close(null_space_step(rows, count, 0.3), literal)


def test_a_sequence_is_the_literal_one(backbone, moments):
    """Equation 14 with P, K_p and all, one edit after the other, on a copy."""
    threshold = threshold_of(backbone, moments, 0.7)
    editor = AlphaEdit(config(moments, nullspace_threshold=threshold))
    projections = {layer: Projection.of(backbone, layer) for layer in (1, 2)}
    start = {layer: p.weight.detach().clone() for layer, p in projections.items()}
    states = editor.sequence(backbone, [FRANCE, GERMANY, DARRIEUX], [3])
    next(states)
    found = {layer: p.weight.detach().clone() for layer, p in projections.items()}
    states.close()
    assert all(torch.equal(p.weight, start[layer]) for layer, p in projections.items())

    contexts = sample_contexts(backbone, VALUE.context_template_length_params, VALUE.seed)
    spaces: dict[int, Tensor] = {}
    earlier: dict[int, list[Tensor]] = {1: [], 2: []}
    for layer, (moment, _) in second_moments(backbone, [1, 2], mom2(moments)).items():
        free = unused(moment, threshold)
        assert 0 < free.shape[1] < len(free)
        spaces[layer] = free @ free.T
    site = Site(2, "resid_post")
    for request in (FRANCE, GERMANY, DARRIEUX):
        wordings = [Wordings.of(request, contexts)]
        _, h = _at_subjects(backbone, projections[2], site, wordings)
        shift = find_shift(backbone, request, contexts, VALUE, h[0], stream_shift(backbone, 2))
        aim = h.double() + shift.double()
        for i, layer in enumerate((1, 2)):
            k, now = _at_subjects(backbone, projections[layer], site, wordings)
            k, p = k.T, spaces[layer]
            residual = (aim - now.double()).T / (2 - i)
            previous = sum((e @ e.T for e in earlier[layer]), torch.zeros(len(k), len(k), dtype=torch.float64))
            inverse = torch.linalg.inv(previous @ p + k @ k.T @ p + 0.5 * torch.eye(len(k), dtype=torch.float64))
            projections[layer].add(residual @ k.T @ p @ inverse)
            earlier[layer].append(k)
    literal = {layer: p.weight.detach().clone() for layer, p in projections.items()}
    with torch.no_grad():
        for layer, projection in projections.items():
            projection.weight.copy_(start[layer])
    for layer in (1, 2):
        assert not torch.allclose(literal[layer], start[layer], atol=1e-4)
        torch.testing.assert_close(found[layer], literal[layer], rtol=1e-3, atol=1e-4)


def test_inputs_outside_the_null_space_are_written_as_before(backbone, moments):
    threshold = threshold_of(backbone, moments, 0.7)
    projection = Projection.of(backbone, 1)
    moment, _ = second_moments(backbone, [1], mom2(moments))[1]
    values, vectors = torch.linalg.eigh(moment.double())
    used, free = vectors[:, values >= threshold], vectors[:, values < threshold]

    def weight():
        stored = projection.weight.detach().double()
        return stored.T if projection.transposed else stored

    before = weight().clone()
    with AlphaEdit(config(moments, nullspace_threshold=threshold)).edit(backbone, [FRANCE, GERMANY]):
        moved = weight() - before
        assert (moved @ used).norm() < 1e-4 * (moved @ free).norm()
        assert (moved @ free).norm() > 1e-3  # control


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nullspace_threshold": 0.0}, "`nullspace_threshold` must be above 0, but got 0.0"),
        ({"L2": -1.0}, "`L2` must be above 0, but got -1.0"),
        ({"layers": (2, 1)}, "`layers` must be one or more different blocks in ascending order"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AlphaEditConfig(**{"layers": (1,), **settings})


def test_a_threshold_below_every_eigenvalue_is_refused(backbone, moments):
    editor = AlphaEdit(config(moments, nullspace_threshold=1e-12))
    with pytest.raises(ValueError, match="`nullspace_threshold` must be above the least eigenvalue"):
        editor.writing(backbone)
