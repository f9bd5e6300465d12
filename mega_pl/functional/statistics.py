"""Means over tests and over edits, how sure they are, and other statistics that the measures of protocols need."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mega_pl.errors import MegaValueError


def check_columns(what: str, columns: dict[str, Tensor]) -> None:
    """Refuse columns that are not of one length, or that hold nan.

    Args:
        what: what the columns hold, for the message.
        columns: tensors (N,) by name.

    Raises:
        ValueError: naming the column.
    """
    first, shape = next((name, tuple(values.shape)) for name, values in columns.items())
    for name, values in columns.items():
        if values.ndim != 1 or values.shape != shape:
            raise MegaValueError(
                f"`{name}` must have the shape (N,) of `{first}`, but got {tuple(values.shape)} and {shape}."
            )
        if values.isnan().any():
            raise MegaValueError(
                f"`{name}` must hold {what}, but got nan at index {int(values.isnan().int().argmax())}."
            )


def edit_means(outcomes: Tensor, edits: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Mean outcome of each edit's tests, so that every edit counts once however many tests it has.

    >>> edit_means(torch.tensor([1.0, 0.0, 1.0]), ["b", "b", "a"])
    (tensor([1.0000, 0.5000], dtype=torch.float64), ['a', 'b'])

    Args:
        outcomes: (N,) outcome of each test, boolean or a number.
        edits: N edit ids.

    Returns:
        (E,) float64 means on the CPU, and the E edit ids that they belong to, sorted.

    Raises:
        ValueError: if the lengths differ or an outcome is nan.
    """
    check_columns("outcomes", {"outcomes": outcomes})
    if len(outcomes) != len(edits):
        raise MegaValueError(f"`outcomes` and `edits` must be equally long, but got {len(outcomes)} and {len(edits)}.")
    group, n_groups = _indices(edits)
    values = outcomes.cpu().double()
    sums = torch.zeros(n_groups, dtype=torch.float64).index_add_(0, group, values)
    return sums / torch.bincount(group, minlength=n_groups), sorted(set(edits))


def arithmetic_mean(values: Tensor) -> Tensor:
    """Mean over the last dimension of the values that are there; nan stands for a missing one."""
    return values.nanmean(dim=-1)


def harmonic_mean(values: Tensor) -> Tensor:
    """Harmonic mean n / Σ 1/x over the last dimension: 0 where a value is 0, nan where one is missing.

    >>> harmonic_mean(torch.tensor([[1.0, 0.5], [1.0, 0.0]]))
    tensor([0.6667, 0.0000])
    """
    return values.shape[-1] / values.reciprocal().sum(dim=-1)


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[str],
    *,
    seed: int,
    parts: Sequence[str] | None = None,
    samples: int = 1000,
    level: float = 0.95,
    combine: Callable[[Tensor], Tensor] = arithmetic_mean,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean whose values come in groups.

    Tests of one edit succeed and fail together, so that whole edits are drawn with replacement, not tests (cluster
    bootstrap; Davison and Hinkley 1997, section 3.8). With `parts`, the statistic combines the means of the parts,
    all parts seeing the same draw of edits; the mean of a part that a draw misses is nan.

    Args:
        values: N outcomes.
        groups: N group names, here edit ids.
        seed: of the draws; the same seed gives the same interval.
        parts: N part names, here metrics; None puts all values into one part.
        samples: number of draws.
        level: share of the draws inside the interval, in (0, 1).
        combine: maps the means (samples, P) of P parts to statistics (samples,); draws without one (nan) are left out.

    Returns:
        The lower and the upper end; (nan, nan) without values. A single group gives an interval of no width.

    Raises:
        ValueError: if lengths differ or a setting is out of range.
    """
    parts = [""] * len(values) if parts is None else parts
    if not len(values) == len(groups) == len(parts):
        raise MegaValueError(
            f"`values`, `groups` and `parts` must be equally long, but got {len(values)}, {len(groups)}, {len(parts)}."
        )
    if not 0 < level < 1:
        raise MegaValueError(f"`level` must lie in (0, 1), but got {level}.")
    if samples < 1:
        raise MegaValueError(f"`samples` must be at least 1, but got {samples}.")
    if not len(values):
        return float("nan"), float("nan")

    group, n_groups = _indices(groups)
    part, n_parts = _indices(parts)
    outcomes = torch.as_tensor(values, dtype=torch.float64)
    sums, counts = torch.zeros(2, n_groups, n_parts, dtype=torch.float64)
    sums.index_put_((group, part), outcomes, accumulate=True)
    counts.index_put_((group, part), torch.ones_like(outcomes), accumulate=True)

    # How often each group is drawn says all about a draw, and makes the resampled sums one matrix product.
    draws = torch.randint(n_groups, (samples, n_groups), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(samples, n_groups, dtype=torch.float64)
    times.scatter_add_(1, draws, torch.ones((), dtype=torch.float64).expand_as(draws))
    statistics = combine(times @ sums / (times @ counts))  # 0/0 is a part that the draw misses
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = statistics.nanquantile(ends).tolist()
    return low, high


def auroc(positives: Tensor, negatives: Tensor) -> float:
    """Area under the ROC curve: share of pairs whose positive is the greater one, ties half.

    >>> auroc(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0]))
    0.875

    Args:
        positives: (P,) values.
        negatives: (Q,) values.

    Returns:
        It; nan where a side is empty.

    Raises:
        ValueError: if a shape is another or a value is nan.
    """
    for name, side in {"positives": positives, "negatives": negatives}.items():
        check_columns("values", {name: side})
    if not len(positives) or not len(negatives):
        return float("nan")
    return float((positives[:, None] - negatives).sign().double().mean()) / 2 + 0.5


def coefficient_of_variation(values: Tensor) -> float:
    """Standard deviation over mean, std / mean with the population's std.

    >>> coefficient_of_variation(torch.tensor([0.25, 0.75]))
    0.5

    Args:
        values: (K,) values of 0 or more, such as the probabilities of one answer.

    Returns:
        It; nan where there are fewer than two, or all are 0.

    Raises:
        ValueError: if the shape is another, or a value is nan or negative.
    """
    check_columns("values", {"values": values})
    if len(values) and float(values.min()) < 0:
        raise MegaValueError(f"`values` must be 0 or more, but got {float(values.min())}.")
    doubles = values.double()
    if len(doubles) < 2 or not float(doubles.sum()):
        return float("nan")
    return float(doubles.std(correction=0) / doubles.mean())


def _indices(names: Sequence[str]) -> tuple[Tensor, int]:
    """The place of each name among the sorted distinct ones, and how many there are."""
    place = {name: i for i, name in enumerate(sorted(set(names)))}
    return torch.tensor([place[name] for name in names], dtype=torch.long), len(place)
