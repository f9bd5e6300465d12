import math
import random
from statistics import fmean, harmonic_mean

import pytest
import torch

from mega_pl.metrics import bootstrap_interval
from mega_pl.metrics import harmonic_mean as harmonic
from mega_pl.metrics.scores import NOT_AVAILABLE, average_score, harmonic_score, macro_score, rate_score


def outcomes(seed, n=40, edits=9):
    """Outcomes of both models, and whose they are."""
    rng = random.Random(seed)
    columns = torch.tensor([[rng.random() for _ in range(n)] for _ in range(2)], dtype=torch.float64)
    return columns[0], columns[1], [str(rng.randrange(edits)) for _ in range(n)]


def means(values, edits):
    """Each edit's mean, edits sorted."""
    pairs = list(zip(values.tolist(), edits, strict=True))
    return [fmean(value for value, edit in pairs if edit == name) for name in sorted(set(edits))]


def test_a_rate_counts_tests_and_a_macro_mean_counts_edits():
    edited, bare, edits = outcomes(0)
    rate, macro = rate_score(edited, bare, edits, seed=3), macro_score(edited, bare, edits, seed=3)
    assert [rate.value, rate.bare] == pytest.approx([edited.mean().item(), bare.mean().item()])
    assert [macro.value, macro.bare] == pytest.approx([fmean(means(edited, edits)), fmean(means(bare, edits))])
    assert (rate.n, macro.n) == (40, len(set(edits)))
    assert rate.value != pytest.approx(macro.value)
    assert rate.ci95 == bootstrap_interval(edited.tolist(), edits, seed=3)
    assert macro.ci95 == bootstrap_interval(means(edited, edits), sorted(set(edits)), seed=3)


def test_harmonic_and_average_have_joint_intervals():
    parts = [outcomes(seed) for seed in range(3)]
    scores = [macro_score(*part, seed=5) for part in parts]
    values = [value for edited, _, edits in parts for value in means(edited, edits)]
    names = [name for _, _, edits in parts for name in sorted(set(edits))]
    labels = [str(i) for i, (_, _, edits) in enumerate(parts) for _ in set(edits)]

    found = harmonic_score(parts, seed=5)
    assert found.value == pytest.approx(harmonic_mean([score.value for score in scores]))
    assert found.bare == pytest.approx(harmonic_mean([score.bare for score in scores]))
    assert found.n == len(set(names))
    assert found.ci95 == bootstrap_interval(values, names, parts=labels, seed=5, combine=harmonic)

    tests = [(torch.tensor(means(edited, edits)), sorted(set(edits))) for edited, _, edits in parts]
    average = average_score(scores, tests, seed=5)
    assert average.value == pytest.approx(fmean(score.value for score in scores))
    assert average.n == sum(score.n for score in scores)
    assert average.ci95 == pytest.approx(bootstrap_interval(values, names, parts=labels, seed=5), abs=1e-6)
    assert average.ci95 != pytest.approx(found.ci95, abs=1e-4)


def test_what_counts_nothing_is_not_available():
    nothing: tuple[torch.Tensor, torch.Tensor, list[str]] = (torch.zeros(0), torch.zeros(0), [])
    for score in (
        rate_score(*nothing, seed=0),
        macro_score(*nothing, seed=0),
        harmonic_score([outcomes(0), nothing], seed=0),
        average_score([NOT_AVAILABLE], [(torch.zeros(0), [])], seed=0),
    ):
        assert score.n == 0
        assert all(math.isnan(value) for value in (score.value, score.bare, *score.ci95))
    one = macro_score(*outcomes(1), seed=0)
    parts = [(torch.ones(3), ["a", "b", "c"]), (torch.zeros(0), [])]
    assert average_score([one, NOT_AVAILABLE], parts, seed=0).value == one.value
