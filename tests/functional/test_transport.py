import dataclasses
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from mega_pl.functional import Transport, fit_transport, map_bytes, mean_shift, shifting, stack


def clouds(width: int, sources: int, targets: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two correlated clouds with different means and covariances, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def cloud(count: int) -> Tensor:
        mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
        offset = torch.randn(width, generator=generator, dtype=torch.float64)
        samples = torch.randn(count, width, generator=generator, dtype=torch.float64)
        return torch.addmm(offset, samples, mixing)

    return cloud(sources), cloud(targets)


def fitted(width: int = 24, seed: int = 0, rank: int | float | None = 5) -> Transport:
    return fit_transport(*clouds(width, 20, 15, seed), rank=rank)


def covariance(samples: Tensor) -> Tensor:
    return torch.cov(samples.T, correction=0)


def outside(transport: Transport, seed: int = 7) -> Tensor:
    """Random vectors, (3, D), orthogonal to the basis."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, len(transport.shift), generator=generator, dtype=torch.float64)
    return torch.addmm(x, x @ transport.basis, transport.basis.T, alpha=-1)


@pytest.mark.parametrize("rank", [1, 6, 0.5, 0.95, None])
@pytest.mark.parametrize(("width", "sources", "targets"), [(12, 80, 50), (60, 20, 12)])
def test_mean_goes_to_mean_at_every_rank(rank, width, sources, targets):
    source, target = clouds(width, sources, targets)
    transport = fit_transport(source, target, rank=rank)
    moved = transport(source)
    torch.testing.assert_close(moved.mean(0), target.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(transport(source.mean(0, keepdim=True))[0], target.mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 6, 0.9, None])
@pytest.mark.parametrize(("width", "sources", "targets"), [(12, 80, 50), (60, 20, 12)])
def test_map_carries_the_regularised_covariance_inside_the_basis(rank, width, sources, targets):
    source, target = clouds(width, sources, targets)
    transport = fit_transport(source, target, rank=rank, regularization=0.03, relative=False)
    eye = torch.eye(transport.rank, dtype=torch.float64)
    linear = eye + transport.matrix
    before = transport.basis.T @ covariance(source) @ transport.basis + 0.03 * eye
    after = transport.basis.T @ covariance(target) @ transport.basis + 0.03 * eye
    torch.testing.assert_close(linear @ before @ linear, after, rtol=0, atol=1e-10)
    torch.testing.assert_close(linear, linear.T, rtol=0, atol=1e-13)
    assert torch.linalg.eigvalsh(linear).min() > 0


@pytest.mark.parametrize("regularization", [1e-12, 1e-8])
def test_map_stays_positive_definite_when_hardly_regularised(regularization):
    source, target = clouds(40, 15, 10)
    transport = fit_transport(source * 100, target * 100, rank=None, regularization=regularization, relative=False)
    linear = torch.eye(transport.rank, dtype=torch.float64) + transport.matrix
    assert torch.linalg.eigvalsh(linear).min() > 0
    assert transport(source * 100).isfinite().all()


@pytest.mark.parametrize("rank", [3, 0.8, None])
def test_outside_the_basis_the_map_only_shifts(rank):
    transport = fitted(width=60, rank=rank)
    eye = torch.eye(transport.rank, dtype=torch.float64)
    torch.testing.assert_close(transport.basis.T @ transport.basis, eye, rtol=0, atol=1e-12)
    x = clouds(60, 20, 15, 0)[0].mean(0) + outside(transport)
    torch.testing.assert_close(transport(x), x + transport.shift, rtol=0, atol=1e-12)


def test_basis_holds_the_shift():
    transport = fitted(width=60, rank=2)
    assert transport.rank == 3
    inside = transport.basis @ (transport.basis.T @ transport.shift)
    torch.testing.assert_close(inside, transport.shift, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("width", "sources", "targets"), [(64, 200, 150), (64, 400, 60), (300, 120, 80)], ids=["D64", "D64-few", "D300"]
)
@pytest.mark.parametrize("regularization", [1e-2, 0.5])
def test_full_rank_equals_pot(width, sources, targets, regularization):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ot = pytest.importorskip("ot")
    source, target = clouds(width, sources, targets)
    reference = ot.da.LinearTransport(reg=regularization).fit(Xs=source.numpy(), Xt=target.numpy())
    transport = fit_transport(source, target, rank=None, regularization=regularization, relative=False)
    fresh = torch.cat([source, 2 * clouds(width, 40, 2, seed=3)[0]])
    expected = torch.from_numpy(np.asarray(reference.transform(Xs=fresh.numpy())))
    torch.testing.assert_close(transport(fresh), expected, rtol=0, atol=1e-8)


def test_truncated_map_is_not_the_full_one():
    source, target = clouds(40, 90, 60)
    full = fit_transport(source, target, rank=None)
    assert (fit_transport(source, target, rank=3)(source) - full(source)).abs().max() > 0.1
    assert (mean_shift(source, target)(source) - full(source)).abs().max() > 0.1


@pytest.mark.parametrize("rank", [4, 0.9, None])
@pytest.mark.parametrize(("width", "sources", "targets"), [(12, 80, 50), (60, 20, 12)])
def test_order_of_samples_does_not_matter(rank, width, sources, targets):
    source, target = clouds(width, sources, targets)
    x = clouds(width, 9, 2, seed=5)[0]
    shuffled = fit_transport(source.flip(0), target.roll(3, 0), rank=rank)
    torch.testing.assert_close(shuffled(x), fit_transport(source, target, rank=rank)(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_samples_of_any_dtype_are_solved_in_float64(dtype):
    source, target = (samples.to(dtype) for samples in clouds(30, 20, 15))
    transport = fit_transport(source, target, rank=None)
    wide = fit_transport(source.double(), target.double(), rank=None)
    for field in dataclasses.fields(transport):
        value = getattr(transport, field.name)
        assert value.dtype == torch.float64
        assert torch.equal(value, getattr(wide, field.name))


def test_huge_offset_keeps_its_digits():
    source, target = clouds(20, 60, 40)
    x = clouds(20, 9, 2, seed=5)[0]
    moved = fit_transport(source + 1e6, target + 1e6, rank=None)(x + 1e6) - 1e6
    torch.testing.assert_close(moved, fit_transport(source, target, rank=None)(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_result_has_the_dtype_of_the_activations(dtype):
    transport, x = fitted().cast(torch.float32), clouds(24, 6, 2, seed=1)[0].to(dtype)
    assert transport(x).dtype == dtype
    exact = fitted()(x.double())
    tolerance = 4 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) * float(exact.abs().max())
    torch.testing.assert_close(transport(x).double(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_strength_zero_is_the_identity_to_the_bit(dtype):
    x = clouds(24, 6, 2, seed=1)[0].to(dtype)
    assert torch.equal(fitted()(x, strength=0.0), x)
    assert torch.equal(stack([fitted()]).apply(x, torch.zeros(6, dtype=torch.long), strength=0.0), x)


def test_strength_scales_the_move_and_leaves_its_input_alone():
    transport, x = fitted(), clouds(24, 6, 2, seed=1)[0]
    before = x.clone()
    torch.testing.assert_close(transport(x, strength=0.25) - x, 0.25 * (transport(x) - x), rtol=0, atol=1e-12)
    assert torch.equal(x, before)


def test_rank_options():
    source, target = clouds(60, 20, 12)
    pooled = torch.linalg.svdvals(torch.cat([source, target]) - torch.cat([source, target]).mean(0)).square()
    share = pooled.cumsum(0) / pooled.sum()
    kept = int((share < 0.9).sum()) + 1
    assert share[kept - 1] >= 0.9 > share[kept - 2]
    assert fit_transport(source, target, rank=0.9).rank == kept + 1  # and the direction of the shift
    assert fit_transport(source, target, rank=0.9, max_rank=4).rank == 4 + 1
    assert fit_transport(source, target, rank=7, max_rank=4).rank == 7 + 1
    assert fit_transport(source, target, rank=500).rank == 20 + 12 - 1
    assert fit_transport(source, target, rank=None, max_rank=4).rank == 20 + 12 - 1


def test_relative_regularization_makes_the_map_independent_of_the_unit():
    source, target = clouds(30, 40, 30)
    x = clouds(30, 9, 2, seed=5)[0]
    scaled = fit_transport(100 * source, 100 * target, rank=8)(100 * x) / 100
    torch.testing.assert_close(scaled, fit_transport(source, target, rank=8)(x), rtol=0, atol=1e-10)
    absolute = fit_transport(100 * source, 100 * target, rank=8, relative=False)(100 * x) / 100
    assert (absolute - scaled).abs().max() > 1e-3


def test_relative_regularization_is_in_multiples_of_the_mean_retained_eigenvalue():
    source, target = clouds(30, 40, 30)
    retained = torch.linalg.eigvalsh(covariance(torch.cat([source, target])))[-8:].mean()
    relative = fit_transport(source, target, rank=8, regularization=0.2)
    absolute = fit_transport(source, target, rank=8, regularization=0.2 * float(retained), relative=False)
    torch.testing.assert_close(relative(source), absolute(source), rtol=0, atol=1e-12)


def test_mean_shift():
    source, target = clouds(24, 20, 15)
    transport = mean_shift(source.float(), target.float())
    assert transport.rank == 0
    assert transport.shift.dtype == torch.float64
    torch.testing.assert_close(transport(source), source + (target.mean(0) - source.mean(0)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("directions", [1, 3, 40])
def test_directions_keep_what_moves_the_source_most(directions):
    source, target = clouds(60, 30, 25)
    whole = fit_transport(source, target, rank=None)
    transport = fit_transport(source, target, rank=None, directions=directions)
    kept = min(directions, whole.rank)
    assert transport.rank == kept
    eye = torch.eye(kept, dtype=torch.float64)
    torch.testing.assert_close(transport.basis.T @ transport.basis, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(transport(source).mean(0), target.mean(0), rtol=0, atol=1e-10)
    values, vectors = torch.linalg.eigh(whole.basis @ whole.matrix @ whole.basis.T)
    along = values * ((source - source.mean(0)) @ vectors)
    least = along.square().mean(0).sort().values[:-kept].sum()  # what the other eigenvectors would have done
    lost = (transport(source) - whole(source)).square().sum(1).mean()
    torch.testing.assert_close(lost, least, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("far", [0, 1000])
def test_rounding_keeps_where_the_mean_goes(dtype, far):
    source, target = (samples + far for samples in clouds(60, 30, 25))
    mean = source.mean(0)
    transport = fit_transport(source, target, directions=4)
    small = transport.rounded(dtype, mean)
    kept = (small.shift.dtype, small.basis.dtype)
    half = torch.float32 if dtype == "float32" else torch.float16
    assert kept == (half, getattr(torch, dtype))
    assert (small.matrix.dtype, small.center.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(small(mean[None])[0], mean + small.shift.double(), rtol=0, atol=1e-6 + 1e-5 * far)
    assert sum(tensor.nbytes for tensor in small.tensors) == map_bytes(60, small.rank, dtype)
    size = float((transport(source) - source).norm(dim=1).max())
    error = float((small(source) - transport(source)).norm(dim=1).max())
    assert error <= {"int8": 0.05, "float32": 1e-6}[dtype] * size + 1e-5 * far
    stacked = stack([small, shifting(small.shift.double()).rounded(dtype, mean)])
    x = torch.cat([source[:2], source[:1]]).to(half)
    moved = stacked.apply(x, torch.tensor([0, 0, 1]))
    assert moved.dtype == half
    torch.testing.assert_close(moved[:2], small(x[:2]), rtol=0, atol=torch.finfo(half).eps * (far + 10))


def test_what_does_not_fit_a_dtype_is_refused():
    with pytest.raises(FloatingPointError, match="the shift of a map must fit into float16, but reaches 1e"):
        shifting(torch.tensor([0.0, 1e5])).rounded("int8", torch.zeros(2))


def test_samples_without_spread():
    point = torch.full((4, 6), 0.1)
    assert fit_transport(point, point).rank == 0
    transport = fit_transport(point, point + 1)
    torch.testing.assert_close(transport(point), point + 1)
    torch.testing.assert_close(transport.matrix, torch.zeros(1, 1, dtype=torch.float64))


def test_stack_equals_the_single_maps_row_by_row():
    singles = [fitted(seed=0, rank=5), mean_shift(*clouds(24, 8, 8, seed=1)), fitted(seed=2, rank=None)]
    edit = torch.tensor([2, 0, 0, 1, 2, 1, 0])
    x = clouds(24, len(edit), 2, seed=9)[0]
    for strength in (1.0, 0.5, -1.0):
        expected = torch.stack([singles[e](row[None], strength)[0] for e, row in zip(edit.tolist(), x, strict=True)])
        torch.testing.assert_close(stack(singles).apply(x, edit, strength), expected, rtol=0, atol=1e-12)


def test_stack_moves_rows_by_their_own_edit_only():
    transports = stack([fitted(seed=seed) for seed in range(3)])
    x = clouds(24, 3, 2, seed=9)[0]
    moved = transports.apply(x, torch.tensor([0, 1, 2]))
    other = transports.apply(x, torch.tensor([0, 2, 2]))
    torch.testing.assert_close(moved[[0, 2]], other[[0, 2]], rtol=0, atol=1e-12)
    assert (moved[1] - other[1]).abs().max() > 0.1


def test_stack_of_pure_shifts_and_empty_batches():
    transports = stack([mean_shift(*clouds(24, 8, 8, seed=seed)) for seed in range(2)])
    x = clouds(24, 3, 2, seed=9)[0]
    torch.testing.assert_close(transports.apply(x, torch.tensor([1, 1, 0])), x + transports.shift[[1, 1, 0]])
    assert transports.apply(x[:0], torch.zeros(0, dtype=torch.long)).shape == (0, 24)


def test_stack_gives_its_maps_back_to_the_bit():
    singles = [fitted(seed=0, rank=5), mean_shift(*clouds(24, 8, 8, seed=1)), fitted(seed=2, rank=9)]
    transports = stack(singles)
    assert len(transports) == 3
    assert transports.ranks.tolist() == [single.rank for single in singles]
    for index, single in enumerate(singles):
        for field in dataclasses.fields(single):
            assert torch.equal(getattr(transports[index], field.name), getattr(single, field.name))


def test_select_and_cast():
    transports = stack([fitted(seed=0, rank=5), fitted(seed=1, rank=2), fitted(seed=2, rank=9)])
    chosen = transports.select([1, 0])
    assert chosen.ranks.tolist() == [transports.ranks[1], transports.ranks[0]]
    assert chosen.basis.shape == (int(chosen.ranks.sum()), 24)
    x = clouds(24, 4, 2, seed=9)[0]
    edit = torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(chosen.apply(x, edit), transports.apply(x, 1 - edit), rtol=0, atol=1e-12)
    assert len(transports.select([])) == 0
    half = transports.cast(torch.float32)
    assert half.basis.dtype == torch.float32
    assert half.ranks.dtype == torch.int64
    torch.testing.assert_close(half.apply(x.half(), edit), transports.apply(x, edit).half(), rtol=0, atol=2e-2)
    assert transports.cast(device="cpu").shift.dtype == torch.float64


def test_thousands_of_stacked_maps_are_applied_at_once():
    single = fitted(rank=2).cast(torch.float32)
    transports = stack([single] * 3000)
    x = clouds(24, 3000, 2, seed=9)[0].float()
    torch.testing.assert_close(transports.apply(x, torch.arange(3000)), single(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("fit", [fit_transport, mean_shift])
def test_samples_that_are_not_finite_are_refused(fit, bad):
    source, target = clouds(6, 10, 8)
    target[3, 2] = bad
    with pytest.raises(ValueError, match=r"^`target` must be finite, but 1 of its 8 samples are not\.$"):
        fit(source, target)


@pytest.mark.parametrize("fit", [fit_transport, mean_shift])
@pytest.mark.parametrize("shape", [(1, 6), (0, 6), (6,), (2, 3, 6), (4, 0)])
def test_samples_of_a_wrong_shape_are_refused(fit, shape):
    with pytest.raises(ValueError, match="`source` must hold at least 2 samples, shape"):
        fit(torch.zeros(shape), torch.zeros(4, 6))


@pytest.mark.parametrize("fit", [fit_transport, mean_shift])
def test_samples_of_different_widths_are_refused(fit):
    with pytest.raises(ValueError, match="`source` and `target` must be of one width, but got 6 and 7"):
        fit(torch.zeros(4, 6), torch.zeros(4, 7))


@pytest.mark.parametrize("rank", [0, -1, 0.0, 1.0, 1.5, float("nan"), True])
def test_rank_out_of_range_is_refused(rank):
    with pytest.raises(ValueError, match=r"`rank` must be a positive int, a share in \(0, 1\) or None"):
        fit_transport(*clouds(6, 10, 8), rank=rank)


@pytest.mark.parametrize("regularization", [0.0, -1e-2, float("nan"), float("inf")])
def test_regularization_out_of_range_is_refused(regularization):
    with pytest.raises(ValueError, match="`regularization` must be finite and above 0"):
        fit_transport(*clouds(6, 10, 8), regularization=regularization)


def test_max_rank_out_of_range_is_refused():
    with pytest.raises(ValueError, match="`max_rank` must be at least 1, but got 0"):
        fit_transport(*clouds(6, 10, 8), max_rank=0)


@pytest.mark.parametrize("shape", [(24,), (3, 23), (2, 3, 24)])
def test_activations_of_a_wrong_shape_are_refused(shape):
    message = r"`x` must have shape \(N, 24\) for this map"
    with pytest.raises(ValueError, match=message):
        fitted()(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        stack([fitted()]).apply(torch.zeros(shape), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("edit", "message"),
    [([0, 1], r"one index a row, shape \(3,\)"), ([0, 1, 2], r"lie in \[0, 1\]"), ([-1, 0, 1], "but got -1 to 1")],
)
def test_edit_indices_out_of_range_are_refused(edit, message):
    with pytest.raises(ValueError, match=message):
        stack([fitted(), fitted()]).apply(torch.zeros(3, 24), torch.tensor(edit))


def test_maps_that_do_not_stack_are_refused():
    with pytest.raises(ValueError, match="at least one map"):
        stack([])
    with pytest.raises(ValueError, match="one width, dtype and device"):
        stack([fitted(), fitted(width=25)])
    with pytest.raises(ValueError, match="cast them first"):
        stack([fitted(), fitted().cast(torch.float32)])
