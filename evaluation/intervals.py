"""How sure a number is: Wilson intervals for rates, the clustered paired bootstrap and McNemar's test for
differences.
"""

from collections.abc import Callable
from math import comb, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray], float]
MAX_UNDEFINED_SHARE = 0.05


class UndefinedStatisticError(ValueError):
    """A statistic has no value on the data, or on too many resamples, for instance a rate over no example."""


class Estimate(NamedTuple):
    """A number and its confidence interval."""

    value: float
    low: float
    high: float


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson 1927), without continuity correction.

    With `n == 0` nothing is known, and the interval is [0, 1].

    Args:
        successes: Number of successes, 0 <= successes <= n.
        n: Number of independent trials.
        confidence: Coverage in (0, 1).

    Returns:
        Lower and upper end, both in [0, 1].

    Raises:
        ValueError: If the counts are impossible or `confidence` is outside (0, 1).

    Examples:
        >>> low, high = wilson_interval(50, 100)
        >>> round(low, 4), round(high, 4)
        (0.4038, 0.5962)
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes={successes} of n={n} is impossible; expected 0 <= successes <= n.")
    z = _normal_quantile(confidence)
    if n == 0:
        return 0.0, 1.0
    rate = successes / n
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half_width = z / (1 + z**2 / n) * sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    # At 0 and n successes one end is exactly the rate; rounding would leave 1e-17.
    return (
        0.0 if successes == 0 else max(0.0, centre - half_width),
        1.0 if successes == n else min(1.0, centre + half_width),
    )


def bootstrap(
    rows: ArrayLike,
    statistic: Statistic,
    clusters: ArrayLike | None = None,
    runs: ArrayLike | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap of any statistic of the rows, resampling whole clusters, and whole training runs.

    Questions about one concept or picture stand and fall together, so clusters are drawn with replacement,
    not rows. Training runs (seeds) are *crossed* with the clusters: every run is tested on the same concepts.
    Both are therefore drawn independently and a row weighs (times its cluster was drawn) x (times its run was
    drawn): the pigeonhole bootstrap (Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics). It
    speaks about new concepts and new seeds, and errs on the wide side. With one run only the concepts vary;
    with three, the interval is rough.

    Args:
        rows: What the statistic needs of each example, shape `(N,)` or `(N, columns)`.
        statistic: From rows to a float; NaN where it is undefined on a resample.
        clusters: Cluster of each row (for instance its concept), shape `(N,)`; None: every row is its own.
        runs: Training run of each row, shape `(N,)`; None: one run.
        num_resamples: Number of bootstrap resamples.
        confidence: Coverage in (0, 1).
        seed: Of the resampling.

    Returns:
        The statistic of the rows as they are, and the interval.

    Raises:
        ValueError: If there are no rows or lengths differ.
        UndefinedStatisticError: If the statistic is undefined on the rows or on more
            than 5 % of the resamples.
    """
    values = np.asarray(rows)
    if len(values) == 0:
        raise ValueError("no rows to resample; check that the evaluation produced outcomes.")
    cluster_of_row = _codes(clusters, len(values), "clusters", default=np.arange(len(values)))
    run_of_row = _codes(runs, len(values), "runs", default=np.zeros(len(values), dtype=int))
    _normal_quantile(confidence)  # rejects an impossible confidence before any work
    estimate = float(statistic(values))
    if np.isnan(estimate):
        raise UndefinedStatisticError(
            f"the statistic is undefined (NaN) on the {len(values)} rows themselves; there is nothing to "
            "bound."
        )

    generator = np.random.default_rng(seed)
    order = np.arange(len(values))
    resampled = np.empty(num_resamples)
    for index in range(num_resamples):
        weight = (
            _draw_counts(cluster_of_row, generator)[cluster_of_row]
            * _draw_counts(run_of_row, generator)[run_of_row]
        )
        resampled[index] = statistic(values[np.repeat(order, weight)]) if weight.any() else np.nan
    defined = resampled[~np.isnan(resampled)]
    if len(defined) < (1 - MAX_UNDEFINED_SHARE) * num_resamples:
        raise UndefinedStatisticError(
            f"the statistic is undefined on {num_resamples - len(defined)} of {num_resamples} resamples: "
            "too few examples (for an attack success rate: too few initially correct ones) for an interval."
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Estimate(estimate, float(low), float(high))


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike | None = None,
    statistic: Statistic = np.mean,
    seed: int = 0,
    runs: ArrayLike | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Estimate:
    """Interval of `statistic(a) - statistic(b)` for two models tested on the same examples.

    Both models see the same resampled examples, so what is common to them cancels. The statistic is
    recomputed per model and resample, so ratios whose denominators differ between the models (attack success
    rate) are treated right.

    Args:
        a: Per-example values of the first model, shape `(N,)` or `(N, columns)`.
        b: The same examples, same order, of the second.
        clusters: See `bootstrap`.
        statistic: From the rows of one model to a float.
        seed: Of the resampling.
        runs: See `bootstrap`.
        num_resamples: Number of bootstrap resamples.
        confidence: Coverage in (0, 1).

    Raises:
        ValueError: If the shapes of a and b differ; and as in `bootstrap`.
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape:
        raise ValueError(
            f"a has shape {first.shape}, b {second.shape}; a paired test needs the same examples in the "
            "same order."
        )
    return bootstrap(
        np.stack([first, second], axis=1),  # (N, 2) or (N, 2, columns)
        lambda rows: statistic(rows[:, 0]) - statistic(rows[:, 1]),
        clusters=clusters,
        runs=runs,
        num_resamples=num_resamples,
        confidence=confidence,
        seed=seed,
    )


def mcnemar(a_correct: ArrayLike, b_correct: ArrayLike) -> float:
    """Exact two-sided p-value that two models err equally often on the same examples (McNemar 1947, binomial
    form).

    Only examples on which exactly one model is right count. It takes examples as independent: with several
    questions per picture prefer `paired_bootstrap` with clusters.

    Args:
        a_correct: Whether the first model is right, bool, shape `(N,)`.
        b_correct: The same for the second.

    Raises:
        ValueError: If the shapes differ.
    """
    a, b = np.asarray(a_correct).astype(bool), np.asarray(b_correct).astype(bool)
    if a.shape != b.shape:
        raise ValueError(
            f"a_correct has shape {a.shape}, b_correct {b.shape}; pass the same examples in the same order."
        )
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    discordant = only_a + only_b
    tail = sum(comb(discordant, count) for count in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie in (0, 1); 0.95 is usual.")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _codes(labels: ArrayLike | None, n: int, name: str, default: NDArray) -> NDArray[np.int_]:
    if labels is None:
        return default
    array = np.asarray(labels)
    if array.shape != (n,):
        raise ValueError(f"{name} has shape {array.shape}; expected one label for each of the {n} rows.")
    return np.unique(array, return_inverse=True)[1]


def _draw_counts(codes: NDArray[np.int_], generator: np.random.Generator) -> NDArray[np.int_]:
    """How often each group is drawn when as many groups as there are are drawn with replacement."""
    groups = int(codes.max()) + 1
    if groups == 1:
        return np.ones(1, dtype=int)
    return np.bincount(generator.integers(groups, size=groups), minlength=groups)
