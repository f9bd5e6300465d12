import math
import random

import pytest
import torch

from mega_pl.functional.statistics import bootstrap_interval, check_columns, edit_means, harmonic_mean


def test_refusals():
    one, two = torch.ones(1), torch.ones(2)
    with pytest.raises(ValueError, match=r"`bare_new` must have the shape \(N,\) of `new`, but got \(2,\) and \(1,\)"):
        check_columns("probabilities", {"new": one, "bare_new": two})
    with pytest.raises(ValueError, match="`true` must hold probabilities, but got nan at index 1"):
        check_columns("probabilities", {"new": two, "true": torch.tensor([0.5, math.nan])})
    with pytest.raises(ValueError, match="must be equally long, but got 1, 2, 1"):
        bootstrap_interval([1.0], ["a", "b"], seed=0)
    with pytest.raises(ValueError, match=r"`level` must lie in \(0, 1\), but got 95"):
        bootstrap_interval([1.0], ["a"], seed=0, level=95)
    with pytest.raises(ValueError, match="`samples` must be at least 1, but got 0"):
        bootstrap_interval([1.0], ["a"], seed=0, samples=0)


def test_interval_is_that_of_a_slow_bootstrap():
    rng = random.Random(0)
    tests = [(f"{edit}", part, rng.random() < 0.3 + 0.4 * (edit % 2)) for edit in range(30) for part in "ab"]
    tests += [("3", "b", True)] * 4
    groups, parts, values = zip(*tests, strict=True)
    found = bootstrap_interval([float(v) for v in values], groups, parts=parts, seed=1)

    outcomes = {(edit, p): [v for g, q, v in tests if (g, q) == (edit, p)] for edit in set(groups) for p in "ab"}
    means = []
    for _ in range(1000):
        draw = rng.choices(sorted(set(groups)), k=30)
        drawn = [[v for edit in draw for v in outcomes[edit, part]] for part in "ab"]
        means.append(sum(sum(values) / len(values) for values in drawn) / 2)
    means.sort()
    assert found == pytest.approx((means[25], means[-26]), abs=0.02)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng, inside = random.Random(0), 0
    for seed in range(100):
        values = [float(rng.random() < 0.7) for _ in range(80)]
        low, high = bootstrap_interval(values, [str(i) for i in range(80)], seed=seed, samples=300, level=0.9)
        inside += low <= 0.7 <= high
    assert 0.82 <= inside / 100 <= 0.97


def test_interval_draws_edits_not_tests():
    # Forty tests of four edits know as much as four tests.
    values = [1.0, 0.0, 1.0, 0.0]
    names = ["a", "b", "c", "d"]
    few = bootstrap_interval(values, names, seed=0)
    many = bootstrap_interval(values * 10, names * 10, seed=0)
    as_if_independent = bootstrap_interval(values * 10, [str(i) for i in range(40)], seed=0)
    assert few == many
    assert as_if_independent[1] - as_if_independent[0] < 0.7 * (many[1] - many[0])


def test_interval_is_seeded_and_leaves_the_global_seed_alone():
    state = torch.get_rng_state()
    values, names = [1.0, 0.0, 0.0, 1.0, 1.0] * 4, [str(i) for i in range(20)]
    assert bootstrap_interval(values, names, seed=3) == bootstrap_interval(values, names, seed=3)
    assert torch.equal(state, torch.get_rng_state())


def test_interval_of_nothing_is_nan_and_of_certainty_a_point():
    assert all(math.isnan(end) for end in bootstrap_interval([], [], seed=0))
    assert bootstrap_interval([1.0] * 5, list("abcde"), seed=0) == (1.0, 1.0)


def test_a_part_that_a_draw_misses_is_left_out():
    low, high = bootstrap_interval([1.0, 1.0], ["a", "b"], parts=["x", "y"], seed=0)
    assert (low, high) == (1.0, 1.0)


def test_edit_means_are_the_slow_ones():
    rng = random.Random(0)
    edits = [str(rng.randrange(7)) for _ in range(50)]
    outcomes = torch.rand(50, generator=torch.Generator().manual_seed(0))
    means, names = edit_means(outcomes, edits)
    assert names == sorted(set(edits))
    for name, mean in zip(names, means.tolist(), strict=True):
        own = [value for value, edit in zip(outcomes.tolist(), edits, strict=True) if edit == name]
        assert mean == pytest.approx(sum(own) / len(own))
    assert edit_means(torch.tensor([True, False]), ["a", "a"])[0].tolist() == [0.5]
    assert edit_means(torch.zeros(0), [])[0].shape == (0,)


def test_a_macro_mean_is_not_a_micro_mean():
    outcomes, edits = torch.tensor([1.0, 0.0, 0.0, 0.0]), ["a", "b", "b", "b"]
    assert edit_means(outcomes, edits)[0].mean() == 0.5
    assert outcomes.mean() == 0.25


def test_harmonic_mean_is_below_the_arithmetic_one():
    values = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(harmonic_mean(values), 3 / (1 / values[:, 0] + 1 / values[:, 1] + 1 / values[:, 2]))
    assert (harmonic_mean(values) <= values.mean(-1)).all()
    assert harmonic_mean(torch.tensor([0.0, 1.0, 1.0])) == 0
    assert math.isnan(harmonic_mean(torch.tensor([math.nan, 1.0])))


def test_interval_of_a_harmonic_mean_is_that_of_a_slow_bootstrap():
    rng = random.Random(0)
    values = {(str(edit), part): rng.random() ** 2 for edit in range(25) for part in "ab"}
    groups, parts = zip(*values, strict=True)
    found = bootstrap_interval(list(values.values()), groups, parts=parts, seed=1, combine=harmonic_mean)
    draws = []
    for _ in range(2000):
        drawn = rng.choices(range(25), k=25)
        a, b = (sum(values[str(edit), part] for edit in drawn) / 25 for part in "ab")
        draws.append(2 * a * b / (a + b))
    draws.sort()
    assert found == pytest.approx((draws[50], draws[-51]), abs=0.02)
    assert found != bootstrap_interval(list(values.values()), groups, parts=parts, seed=1)


def test_a_harmonic_mean_leaves_out_draws_that_miss_a_part():
    low, high = bootstrap_interval([1.0, 0.5], ["a", "b"], parts=["x", "y"], seed=0, combine=harmonic_mean)
    assert low == high == pytest.approx(2 / 3)


def test_refusals_of_edit_means():
    with pytest.raises(ValueError, match="`outcomes` and `edits` must be equally long, but got 2 and 1"):
        edit_means(torch.ones(2), ["a"])
    with pytest.raises(ValueError, match="`outcomes` must hold outcomes, but got nan at index 1"):
        edit_means(torch.tensor([0.0, math.nan]), ["a", "a"])
