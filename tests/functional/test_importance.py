import pytest
import torch

from mega_pl.functional import importance
from mega_pl.functional.importance import Expansion, ReadOut, Spread, certified_top, log_probabilities, lower_bounds

VOCAB, WIDTH, POINTS, COUNT = 300, 12, 3, 40


def build(*, centred=True, scale=1.0, dtype=torch.double, seed=0):
    """A random read-out, points of the stream and rows of neurons, with activations of both signs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.double).to(dtype)

    read_out = ReadOut(draw(VOCAB, WIDTH) + 2.0, 1 + 0.3 * draw(WIDTH), torch.tensor(1.7, dtype=dtype), centred)
    return read_out, draw(POINTS, WIDTH), draw(COUNT, WIDTH), scale * draw(COUNT)


def slow(read_out, vector, target):
    """LP straight from its definition, in float64."""
    vector = vector.double()
    if read_out.centred:
        vector = vector - vector.mean()
    z = read_out.unembedding.double() @ (read_out.gain.double() * vector / read_out.scale.double())
    return float(z[target] - z.exp().sum().log())


@pytest.mark.parametrize("centred", [True, False])
def test_the_read_out_is_linear_and_its_transpose_is_one(centred):
    read_out, points, rows, _ = build(centred=centred)
    torch.testing.assert_close(read_out.logits(points + rows[:3]), read_out.logits(points) + read_out.logits(rows[:3]))
    torch.testing.assert_close(read_out.read(points) @ rows.T, points @ read_out.pull_back(rows).T)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("tile", [1, 2**21])
def test_log_probabilities_and_increases_equal_their_definition(monkeypatch, centred, tile):
    monkeypatch.setattr(importance, "_TILE", tile)  # 256 columns at least, so that the vocabulary takes two tiles
    read_out, points, rows, _ = build(centred=centred)
    targets = torch.tensor([7, 250])
    expansion = Expansion.at(read_out, points, targets)
    got = expansion.increase(rows.view(POINTS - 1, -1, WIDTH), torch.tensor([2, 0])).flatten(0, 1)
    scores = log_probabilities(read_out.logits(points), targets)
    for n, row in enumerate(rows):
        point = points[2 if n < COUNT // 2 else 0]
        for w, target in enumerate(targets.tolist()):
            expected = slow(read_out, point + row, target) - slow(read_out, point, target)
            assert float(got[n, w]) == pytest.approx(expected, abs=1e-10)
    assert float(scores[1, 0]) == pytest.approx(slow(read_out, points[1], 7), abs=1e-12)


def test_small_importances_keep_their_digits_in_float32():
    """Differences of log-probabilities would lose them: those are known to 1e-6 at best."""
    read_out, points, rows, _ = build(scale=1.0)
    narrow = ReadOut(read_out.unembedding.float(), read_out.gain.float(), read_out.scale.float(), True)
    exact = Expansion.at(read_out, points, torch.tensor([7])).increase(1e-5 * rows[None], torch.tensor([1]))
    got = Expansion.at(narrow, points.float(), torch.tensor([7])).increase(1e-5 * rows[None].float(), torch.tensor([1]))
    torch.testing.assert_close(got.double(), exact, atol=1e-10, rtol=1e-4)


def test_moves_beyond_the_range_of_float32_are_scored():
    read_out, points, rows, _ = build(dtype=torch.float)
    rows = 60 * rows[:9]
    got = Expansion.at(read_out, points, torch.tensor([7])).increase(rows[None], torch.tensor([1]))[0, :, 0]
    expected = [slow(read_out, points[1] + row, 7) - slow(read_out, points[1], 7) for row in rows]
    assert min(expected) < -250
    assert got.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_half_precision_unembedding_is_widened():
    read_out, points, rows, _ = build(dtype=torch.float)
    half = ReadOut(read_out.unembedding.bfloat16(), read_out.gain, read_out.scale, True)
    wide = ReadOut(read_out.unembedding.bfloat16().float(), read_out.gain, read_out.scale, True)
    for one in (half, wide):
        assert (
            Expansion.at(one, points, torch.tensor([7])).increase(rows[None, :9], torch.tensor([0])).dtype
            == torch.float
        )
    torch.testing.assert_close(half.logits(points), wide.logits(points))


@pytest.mark.parametrize("scale", [1e-3, 0.3, 3.0])
@pytest.mark.parametrize("rank", [1, 64])
def test_bounds_hold(scale, rank):
    read_out, points, rows, activations = build(scale=scale)
    expansion = Expansion.at(read_out, 3 * points, torch.tensor([7, 250]))
    spread = Spread.of(read_out, rank)
    for point in range(POINTS):
        exact = expansion.increase((activations[:, None] * rows)[None], torch.tensor([point]))[0]
        upper = activations[:, None] * (rows @ expansion.gradient[point].T)
        lower = lower_bounds(expansion, spread, point, rows, torch.stack([activations, 0 * activations]))
        assert (exact <= upper + 1e-12).all()
        assert (lower[0] <= exact + 1e-12).all()
        assert not lower[1].any()
        assert ((upper - lower[0]) > 0).all()


def test_the_lower_bound_sees_tokens_that_lie_far_from_the_likely_ones():
    """Likely tokens in one place and all others in another: the others' scatter around their mean is small."""
    unembedding = torch.zeros(VOCAB, WIDTH, dtype=torch.double)
    unembedding[:64, 0], unembedding[64:, 1] = 1.0, 1.0
    one = torch.tensor(1.0, dtype=torch.double)
    read_out = ReadOut(unembedding, torch.ones(WIDTH, dtype=torch.double), one, False)
    axes = torch.eye(WIDTH, dtype=torch.double)
    expansion = Expansion.at(read_out, 6 * axes[:1], torch.tensor([0]))
    exact = expansion.increase(0.1 * axes[None, 1:2])[0, 0]
    lower = lower_bounds(expansion, Spread.of(read_out), 0, axes[1:2], torch.full((1, 1), 0.1, dtype=torch.double))[
        0, 0
    ]
    assert lower < exact < 0
    torch.testing.assert_close(lower, exact, rtol=0.05, atol=0)


def test_the_lower_bound_is_close_where_components_are_small():
    """Its gap is of second order, and within a small factor of the true one."""
    read_out, points, rows, activations = build(scale=1e-2)
    expansion = Expansion.at(read_out, points, torch.tensor([7]))
    exact = expansion.increase((activations[:, None] * rows)[None], torch.tensor([1]))[0]
    upper = activations[:, None] * (rows @ expansion.gradient[1].T)
    lower = lower_bounds(expansion, Spread.of(read_out), 1, rows, activations[None])[0]
    assert ((upper - lower) < 4 * (upper - exact)).all()


@pytest.mark.parametrize("rank", [1, 5, 11])
def test_spread_bounds_the_scatter_in_every_direction(rank):
    read_out, _, rows, _ = build()
    spread = Spread.of(read_out, rank)
    around = read_out.unembedding - read_out.unembedding.mean(0)
    true = (around @ rows.T).square().sum(0)
    bound = spread.floor * rows.square().sum(1) + (rows @ spread.directions).square() @ spread.excess
    assert (true <= bound * (1 + 1e-12)).all()
    assert spread.radius == pytest.approx(float(around.norm(dim=1).max()))


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("step", [1, 8])
def test_a_certified_list_is_the_exhaustive_one(count, step):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(100, generator=generator)
    bounds = scores + torch.rand(100, generator=generator)
    asked: list[int] = []

    def score(index):
        asked.extend(index.tolist())
        return scores[index]

    found = certified_top(bounds, score, count, step)
    expected = scores.topk(count)
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.indices, expected.indices)
    assert found.evaluated == len(asked) == len(set(asked))
    needed = int((bounds > expected.values[-1]).sum())
    assert max(count, needed) <= found.evaluated <= max(count, needed + step)


def test_a_useless_bound_costs_every_evaluation_and_a_perfect_one_none():
    scores = torch.arange(50.0)
    assert certified_top(torch.full((50,), 99.0), lambda index: scores[index], 5).evaluated == 50
    assert certified_top(scores, lambda index: scores[index], 5).evaluated == 5


def test_capped_logits_are_capped_and_not_expanded():
    read_out, points, _, _ = build()
    capped = ReadOut(read_out.unembedding, read_out.gain, read_out.scale, True, cap=5.0)
    torch.testing.assert_close(capped.logits(points), 5 * (read_out.logits(points) / 5).tanh())
    with pytest.raises(ValueError, match=r"must be linear, but got a cap of 5\.0; use the layer level"):
        Expansion.at(capped, points, torch.tensor([7]))


@pytest.mark.parametrize("count", [0, 51])
def test_lists_of_impossible_length_are_refused(count):
    with pytest.raises(ValueError, match=rf"`count` must lie in \[1, 50\], but got {count}\."):
        certified_top(torch.arange(50.0), lambda index: index.float(), count)
