import numpy as np
import pytest
from scipy import stats

from rmcl_hub.evaluation.intervals import (
    UndefinedStatisticError,
    bootstrap,
    mcnemar,
    paired_bootstrap,
    wilson_interval,
)


def success_rate(rows):
    clean, attacked = rows[:, 0].astype(bool), rows[:, 1].astype(bool)
    return float((~attacked[clean]).mean()) if clean.any() else float("nan")


class TestWilson:
    @pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (1, 1), (250, 654)])
    @pytest.mark.parametrize("confidence", [0.8, 0.95])
    def test_equals_scipy(self, successes, n, confidence):
        expected = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
        assert wilson_interval(successes, n, confidence) == pytest.approx(tuple(expected), abs=1e-12)

    def test_nothing_observed_means_nothing_known(self):
        assert wilson_interval(0, 0) == (0.0, 1.0)

    def test_ends_are_exact(self):
        assert wilson_interval(0, 7)[0] == 0.0
        assert wilson_interval(7, 7)[1] == 1.0

    def test_errors(self):
        with pytest.raises(ValueError, match="successes=3 of n=2 is impossible"):
            wilson_interval(3, 2)
        with pytest.raises(ValueError, match=r"confidence=95 must lie in \(0, 1\)"):
            wilson_interval(1, 2, confidence=95)


class TestBootstrap:
    def test_mean_has_the_normal_interval(self):
        values = np.random.default_rng(0).normal(size=2000)
        estimate = bootstrap(values, np.mean)
        half_width = 1.96 * values.std() / np.sqrt(len(values))
        assert estimate.value == pytest.approx(values.mean())
        assert estimate.low == pytest.approx(values.mean() - half_width, abs=0.08 * half_width)
        assert estimate.high == pytest.approx(values.mean() + half_width, abs=0.08 * half_width)

    def test_clusters_of_copies_count_once(self):
        """Every value ten times, in one cluster: the interval is that of the single values."""
        values = np.random.default_rng(0).random(100)
        single = bootstrap(values, np.mean, seed=1)
        copied = bootstrap(np.repeat(values, 10), np.mean, clusters=np.repeat(np.arange(100), 10), seed=1)
        assert copied == pytest.approx(single)
        blind = bootstrap(np.repeat(values, 10), np.mean, seed=1)
        assert blind.high - blind.low < 0.5 * (copied.high - copied.low)

    def test_runs_that_disagree_widen_the_interval(self):
        values = np.concatenate([np.zeros(200), np.ones(200)])
        concepts = np.tile(np.arange(200), 2)
        pooled = bootstrap(values, np.mean, clusters=concepts)
        crossed = bootstrap(values, np.mean, clusters=concepts, runs=np.repeat([7, 9], 200))
        assert (pooled.low, pooled.high) == (0.5, 0.5)
        assert (crossed.low, crossed.high) == (0.0, 1.0)

    def test_one_run_is_no_source_of_variation(self):
        values = np.random.default_rng(0).random(50)
        assert bootstrap(values, np.mean, runs=np.full(50, 3)) == bootstrap(values, np.mean)

    def test_coverage(self):
        """About 95 % of the intervals of a clustered rate hold the truth; fewer if rows were independent."""
        generator = np.random.default_rng(0)
        clusters = np.repeat(np.arange(60), 5)
        covered, blind = [], []
        for _ in range(120):
            rates = generator.beta(1, 1, size=60)  # mean 0.5
            values = generator.random(300) < rates[clusters]
            for hits, of in ((covered, clusters), (blind, None)):
                estimate = bootstrap(values, np.mean, clusters=of, num_resamples=300)
                hits.append(estimate.low <= 0.5 <= estimate.high)
        assert 0.88 <= np.mean(covered) <= 0.99
        assert np.mean(blind) < np.mean(covered)

    def test_same_seed_same_interval(self):
        values = np.random.default_rng(0).random(50)
        assert bootstrap(values, np.mean, seed=3) == bootstrap(values, np.mean, seed=3)
        assert bootstrap(values, np.mean, seed=3) != bootstrap(values, np.mean, seed=4)

    def test_errors(self):
        with pytest.raises(ValueError, match="no rows to resample"):
            bootstrap([], np.mean)
        with pytest.raises(
            ValueError, match=r"clusters has shape \(2,\); expected one label for each of the 3"
        ):
            bootstrap([1, 2, 3], np.mean, clusters=[0, 1])
        with pytest.raises(ValueError, match="must lie in"):
            bootstrap([1, 2, 3], np.mean, confidence=1.0)
        with pytest.raises(UndefinedStatisticError, match=r"undefined \(NaN\) on the 2 rows"):
            bootstrap([[0, 0], [0, 1]], success_rate)

    def test_a_rate_that_rests_on_one_cluster_is_refused(self):
        rows = np.array([[1, 0]] + [[0, 0]] * 9)
        with pytest.raises(UndefinedStatisticError, match="too few initially correct"):
            bootstrap(rows, success_rate)


class TestPairedBootstrap:
    def test_sign_is_first_minus_second(self):
        a, b = np.ones(40), np.concatenate([np.zeros(10), np.ones(30)])
        estimate = paired_bootstrap(a, b)
        assert estimate.value == 0.25
        assert 0 < estimate.low < 0.25 < estimate.high

    def test_what_is_common_cancels(self):
        difficulty = np.random.default_rng(0).normal(size=100)
        estimate = paired_bootstrap(difficulty + 0.1, difficulty)
        assert (estimate.low, estimate.high) == pytest.approx((0.1, 0.1))

    def test_matches_scipy_paired_bootstrap(self):
        generator = np.random.default_rng(0)
        a, b = generator.random(300) < 0.6, generator.random(300) < 0.5
        expected = stats.bootstrap(
            (a.astype(float), b.astype(float)),
            lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=2000,
            rng=0,
        ).confidence_interval
        estimate = paired_bootstrap(a, b)
        assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), abs=0.008)

    def test_success_rate_keeps_its_own_denominator_in_every_resample(self):
        """Model a: right on all, half broken. Model b: right on a tenth, none broken."""
        n = 200
        a = np.stack([np.ones(n), np.arange(n) % 2], axis=1)
        b = np.stack([np.arange(n) % 10 == 0, np.arange(n) % 10 == 0], axis=1)
        estimate = paired_bootstrap(a, b, statistic=success_rate)
        assert estimate.value == 0.5
        assert estimate.low == pytest.approx(0.43, abs=0.02)  # sqrt(.25 / 200) * 1.96 = 0.069
        assert estimate.high == pytest.approx(0.57, abs=0.02)

    def test_equal_models_do_not_differ(self):
        a = np.random.default_rng(0).random((50, 2)) < 0.5
        assert paired_bootstrap(a, a, statistic=success_rate) == (0.0, 0.0, 0.0)

    def test_error(self):
        with pytest.raises(ValueError, match=r"a has shape \(3,\), b \(2,\)"):
            paired_bootstrap([1, 2, 3], [1, 2])


class TestMcNemar:
    @pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 1), (12, 12), (30, 55), (400, 300)])
    def test_is_the_binomial_test_on_discordant_pairs(self, only_a, only_b):
        a = [1] * only_a + [0] * only_b + [1, 0] * 10
        b = [0] * only_a + [1] * only_b + [1, 0] * 10
        expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert mcnemar(a, b) == pytest.approx(expected)

    def test_error(self):
        with pytest.raises(ValueError, match="the same examples in the same order"):
            mcnemar([1, 0], [1])
