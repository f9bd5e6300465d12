"""What counts as a success, and how sure a rate of successes is: pure functions behind the metric classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mega_pl.errors import MegaTypeError, MegaValueError


def first_token_hit(prediction: str, answers: Sequence[str], *, empty_counts: bool = False) -> bool:
    """Whether the model's next token begins one of the answers (the prefix test of SAKE's notebooks).

    hit = strip(prediction) ≠ "" and some answer starts with it. The test is case-sensitive and lenient: " S" already
    hits "Sweden", while "the" never hits "United States".

    >>> first_token_hit(" Sw", ["Kingdom of Sweden", "Sweden"]), first_token_hit(" sw", ["Sweden"])
    (True, False)

    Args:
        prediction: the decoded argmax token.
        answers: the accepted answers (a value and its aliases), without leading spaces.
        empty_counts: what a prediction of nothing but white space is worth; True only in the literal Acc on Popular.

    Raises:
        TypeError: if `answers` is one string.
    """
    if isinstance(answers, str):
        raise MegaTypeError(
            f"`answers` must be a sequence of strings, but got the string {answers!r}; wrap it in a tuple."
        )
    token = prediction.strip()
    if not token:
        return empty_counts
    return any(answer.startswith(token) for answer in answers)


def first_token_hits(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], *, empty_counts: bool = False
) -> Tensor:
    """Apply `first_token_hit` test by test.

    Args:
        predictions: N decoded argmax tokens.
        answers: N sequences of accepted answers.
        empty_counts: see `first_token_hit`.

    Returns:
        (N,) bool, on the CPU.

    Raises:
        ValueError: if the lengths differ.
    """
    if len(predictions) != len(answers):
        raise MegaValueError(
            f"`predictions` and `answers` must be equally long, but got {len(predictions)} and {len(answers)}."
        )
    pairs = zip(predictions, answers, strict=True)
    return torch.tensor([first_token_hit(p, a, empty_counts=empty_counts) for p, a in pairs], dtype=torch.bool)


def specificity_hits(new: Tensor, true: Tensor, bare_new: Tensor, bare_true: Tensor) -> tuple[Tensor, Tensor]:
    """Whether an edit leaves a neighbour's true object ahead of the new one, where it was not behind before.

    success = P(o*) < P(o) after the edit; kept = P(o*) ≤ P(o) in the bare model (SAKE's notebooks, which call the
    other tests badly defined).

    Args:
        new: (N,) probability of the new object's first token after the edit, as a fraction.
        true: (N,) the same for the true object.
        bare_new: (N,) probability of the new object's first token in the bare model.
        bare_true: (N,) the same for the true object.

    Returns:
        success and kept, both (N,) bool.

    Raises:
        ValueError: if the shapes differ or a value is not a number.
    """
    check_columns("probabilities", {"new": new, "true": true, "bare_new": bare_new, "bare_true": bare_true})
    return new < true, bare_new <= bare_true


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


def mask_of(name: str, mask: Tensor | None, length: int) -> Tensor:
    """The mask of tests on the CPU, where strings are judged; None stands for every test.

    Raises:
        TypeError: if the mask is not boolean.
        ValueError: if it has not one entry a test.
    """
    if mask is None:
        return torch.ones(length, dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise MegaTypeError(f"`{name}` must be boolean, but got {mask.dtype}.")
    if mask.shape != (length,):
        raise MegaValueError(f"`{name}` must have shape ({length},), one entry a test, but got {tuple(mask.shape)}.")
    return mask.cpu()


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


def _indices(names: Sequence[str]) -> tuple[Tensor, int]:
    """The place of each name among the sorted distinct ones, and how many there are."""
    place = {name: i for i, name in enumerate(sorted(set(names)))}
    return torch.tensor([place[name] for name in names], dtype=torch.long), len(place)
