import math
import pickle
import random

import pytest
import torch

from mega_pl.metrics import CI, DI, RS, SAKE_METRICS, Acc, Gen, HitRate, Spec, SuccessRate, sake_metrics

WORDS = ("Sweden", "Syria", "Spain", "Norway", "the", "")


def batch(n, seed):
    """N random tests as arguments of `HitRate.update`."""
    rng = random.Random(seed)
    predictions = [" " + rng.choice(WORDS)[: rng.choice((1, 2, 20))] for _ in range(n)]
    answers = [tuple(rng.choices(WORDS[:4], k=rng.choice((1, 2)))) for _ in range(n)]
    return predictions, answers, torch.tensor([rng.random() < 0.6 for _ in range(n)])


def probabilities(n, seed):
    """N random tests as arguments of `Spec.update`."""
    return tuple(torch.rand(4, n, generator=torch.Generator().manual_seed(seed)))


def slow_rate(predictions, answers, kept):
    """The measure, written down once more, from the protocol."""
    hits = total = 0
    for prediction, accepted, keep in zip(predictions, answers, kept.tolist(), strict=True):
        if keep:
            total += 1
            word = prediction.strip()
            hits += word != "" and any(answer[: len(word)] == word for answer in accepted)
    return hits / total


def slow_specificity(new, true, bare_new, bare_true):
    outcomes = [float(n < t) for n, t, bn, bt in zip(new, true, bare_new, bare_true, strict=True) if bn <= bt]
    return sum(outcomes) / len(outcomes)


def hit_rates():
    return [metric for metric in SAKE_METRICS.values() if issubclass(metric, HitRate)]


@pytest.mark.parametrize("metric", hit_rates())
def test_rate_is_the_slow_one_for_any_split(metric):
    predictions, answers, kept = batch(60, seed=1)
    expected = slow_rate(predictions, answers, kept)
    assert 0 < expected < 1
    for size in (1, 7, 60):
        rate = metric()
        for i in range(0, 60, size):
            rate.update(predictions[i : i + size], answers[i : i + size], kept[i : i + size])
        assert rate.compute().item() == expected
        assert rate.n == int(kept.sum())


def test_specificity_is_the_slow_one_for_any_split():
    columns = probabilities(60, seed=1)
    for size in (1, 7, 60):
        rate = Spec()
        for i in range(0, 60, size):
            rate.update(*(column[i : i + size] for column in columns))
        assert rate.compute().item() == slow_specificity(*columns)
        assert rate.n == int((columns[2] <= columns[3]).sum())


@pytest.mark.parametrize("metric", SAKE_METRICS.values())
def test_processes_add_up(metric):
    """Unequal shares of the tests, merged and synchronised, give the rate of all of them."""
    make = probabilities if metric is Spec else batch
    shares = [make(5, seed=2), make(31, seed=3)]
    here, there, alone = metric(), metric(), metric()
    for rate, share in ((here, shares[0]), (there, shares[1]), (alone, shares[0]), (alone, shares[1])):
        rate.update(*share)

    others = iter([there.hits, there.total])
    here.sync(dist_sync_fn=lambda state, group: [state, next(others)], distributed_available=lambda: True)
    assert (int(here.hits), int(here.total)) == (int(alone.hits), int(alone.total))
    here.unsync()
    here.merge_state(there)
    assert here.compute() == alone.compute()


def test_every_test_is_kept_without_a_mask():
    rate = Gen()
    rate.update(["a", "b", "c"], [["a"], ["b"], ["x"]])
    assert (rate.compute().item(), rate.n) == (2 / 3, 3)


def test_nothing_kept_is_nan():
    rate = CI()
    rate.update(["a"], [["a"]], torch.tensor([False]))
    assert math.isnan(rate.compute())
    assert rate.n == 0
    rate.update([], [])
    assert rate.n == 0


def test_forward_reset_and_pickle():
    rate = DI()
    assert rate(["a"], [["a"]]).item() == 1
    assert rate(["b"], [["a"]]).item() == 0
    assert pickle.loads(pickle.dumps(rate)).compute().item() == 0.5
    rate.reset()
    assert rate.n == 0


def test_literal_forms_of_the_notebooks():
    for empty_counts in (False, True):
        acc = Acc(empty_counts=empty_counts)
        acc.update(["", "b"], [["a"], ["a"]])
        assert acc.compute().item() == 0.5 * empty_counts

    silent = torch.tensor([True, False])
    for literal in (False, True):
        rs = RS(literal=literal)
        rs.update(["b", "b"], [["a"], ["a"]], silent=silent)
        assert rs.compute().item() == 0.5 * literal
        spec = Spec(literal=literal)
        tie = torch.tensor([0.2, 0.2])
        spec.update(tie, tie, tie, tie, silent=silent)
        assert spec.compute().item() == 0.5 * literal

    # A silent gate does not bring back a test that is not kept.
    rs = RS(literal=True)
    rs.update(["b", "b"], [["a"], ["a"]], kept=~silent, silent=silent)
    assert (rs.compute().item(), rs.n) == (0, 1)


def test_collection_keeps_measures_of_one_class_apart():
    metrics = sake_metrics()
    assert set(metrics.keys()) == {"acc", "gen", "spec", "di", "dii", "ci", "cii", "rs", "sa"}
    for name, metric in metrics.items():
        if name != "spec":
            metric.update(["a"], [["a"]])
    metrics["spec"].update(*probabilities(8, seed=0))
    metrics.compute()
    metrics["gen"].update(["b"], [["a"]])
    values = metrics.compute()
    assert values["gen"] == 0.5
    assert all(values[name] == 1 for name in values if name not in ("gen", "spec"))


@pytest.mark.parametrize("metric", SAKE_METRICS.values())
def test_declarations(metric):
    assert issubclass(metric, SuccessRate)
    assert (metric.higher_is_better, metric.is_differentiable, metric.full_state_update) == (True, False, False)
    assert metric.__doc__


def test_planted_mistakes_are_seen():
    """Each mistake that a caller could make in lining up tests moves the rate away from the slow one."""
    predictions, answers, kept = batch(60, seed=5)
    expected = slow_rate(predictions, answers, kept)
    swapped = answers[30:] + answers[:30]
    for wrong in (
        (predictions[-1:] + predictions[:-1], answers, kept),
        (predictions, swapped, kept),
        (predictions, answers, kept.roll(1)),
    ):
        rate = Gen()
        rate.update(*wrong)
        assert rate.compute().item() != expected

    new, true, bare_new, bare_true = probabilities(60, seed=5)
    for mistaken in (
        (true, new, bare_new, bare_true),
        (new, true, bare_true, bare_new),
        (bare_new, bare_true, new, true),
        (new.roll(1), true, bare_new, bare_true),
        (new, true, bare_new.roll(1), bare_true.roll(1)),
    ):
        spec = Spec()
        spec.update(*mistaken)
        assert spec.compute().item() != slow_specificity(new, true, bare_new, bare_true)


def test_refusals():
    with pytest.raises(TypeError, match=r"`kept` must be boolean, but got torch.int64"):
        Gen().update(["a"], [["a"]], torch.tensor([1]))
    with pytest.raises(ValueError, match=r"`kept` must have shape \(1,\), one entry a test, but got \(2,\)"):
        Gen().update(["a"], [["a"]], torch.tensor([True, False]))
    with pytest.raises(ValueError, match="`silent` must be given to a literal metric"):
        RS(literal=True).update(["a"], [["a"]])
    new, true, bare_new, bare_true = probabilities(2, seed=0)
    with pytest.raises(ValueError, match=r"`silent` must have shape \(2,\)"):
        Spec(literal=True).update(new, true, bare_new, bare_true, silent=torch.tensor([True]))
