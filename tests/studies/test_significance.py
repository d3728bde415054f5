"""The tests of differences agree with what statistics says they should do."""

import numpy as np
import pytest
from scipy import stats

from eimf.studies.significance import compare_paired, holm, paired_t_test


def test_equal_models_are_not_different() -> None:
    values = np.random.default_rng(0).random((3, 50))
    found = compare_paired(values, values, resamples=200)
    assert (found.mean, found.low, found.high, found.p_bootstrap) == (0, 0, 0, 1)
    assert np.isnan(found.p_seeds)  # seeds that all differ by the same say nothing


def test_a_clear_difference_is_found_and_the_sign_is_the_variants() -> None:
    random = np.random.default_rng(0)
    base = random.random((3, 400))
    found = compare_paired(base + 0.1 + random.normal(0, 0.05, base.shape), base)
    assert 0 < found.low < found.mean < found.high
    assert found.p_bootstrap == pytest.approx(2 / 10_001)
    assert found.p_seeds < 0.01


def test_one_seed_gives_the_interval_of_the_mean_over_users() -> None:
    """With one seed the bootstrap is the ordinary one over users: its spread is the standard error."""
    random = np.random.default_rng(1)
    variant, base = random.normal(0.02, 1, (1, 900)), np.zeros((1, 900))
    found = compare_paired(variant, base)
    error = variant.std(ddof=1) / 30
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert found.p_bootstrap == pytest.approx(stats.ttest_1samp(variant[0], 0)[1], abs=0.03)
    assert np.isnan(found.p_seeds)


def test_false_alarms_are_as_rare_as_promised() -> None:
    random = np.random.default_rng(2)
    p = [
        compare_paired(random.normal(0, 1, (1, 200)), random.normal(0, 1, (1, 200)), 400).p_bootstrap
        for _ in range(200)
    ]
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.10


def test_seeds_count_as_chance() -> None:
    """A difference that comes from one lucky seed is less sure than one that all seeds show."""
    users = np.random.default_rng(3).normal(0, 0.01, (4, 300))
    lucky, steady = users.copy(), users + 0.01
    lucky[0] += 0.04
    zero = np.zeros_like(users)
    wide, narrow = compare_paired(lucky, zero), compare_paired(steady, zero)
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low)
    assert wide.p_bootstrap > 0.05 > narrow.p_bootstrap


def test_seeds_may_have_users_of_their_own() -> None:
    """More users make the interval narrower. It is too wide rather than too narrow: with disjoint users, their chance
    is also in the seeds' means, so that it counts twice in the variance."""
    random = np.random.default_rng(4)
    values = random.normal(0.1, 1, (4, 500))
    apart = np.full((4, 2000), np.nan)
    for seed in range(4):
        apart[seed, 500 * seed : 500 * (seed + 1)] = values[seed]
    same, other = compare_paired(values[:1], values[:1] * 0), compare_paired(apart, apart * 0)
    assert other.mean == pytest.approx(values.mean())
    error = values.std() / np.sqrt(values.size)
    assert 1 < (other.high - other.low) / (2 * 1.96 * error) < 1.5
    assert other.high - other.low < 0.75 * (same.high - same.low)
    assert other.p_seeds == pytest.approx(stats.ttest_1samp(values.mean(axis=1), 0)[1])


def test_users_that_no_seed_has_change_nothing() -> None:
    random = np.random.default_rng(5)
    variant, base = random.random((2, 300)), random.random((2, 300))
    nothing = np.full((1, 300), np.nan)
    assert compare_paired(variant, base) == compare_paired(
        np.concatenate([variant, nothing]), np.concatenate([base, nothing])
    )


def test_values_of_other_users_are_refused() -> None:
    with pytest.raises(ValueError, match="same seeds and users"):
        compare_paired(np.array([[0.5, np.nan]]), np.array([[np.nan, 0.5]]))


def test_t_test_over_seeds() -> None:
    a, b = np.array([0.3, 0.4, 0.35]), np.array([0.29, 0.36, 0.36])
    assert paired_t_test(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert np.isnan(paired_t_test(b + 0.5, b))  # no variance: no proof
    assert np.isnan(paired_t_test(b, b))
    assert np.isnan(paired_t_test(a[:1], b[:1]))


def test_holm_by_hand() -> None:
    corrected = holm(np.array([0.01, 0.04, np.nan, 0.03, 0.005]))
    np.testing.assert_allclose(corrected, [0.03, 0.06, np.nan, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_no_users_are_refused() -> None:
    with pytest.raises(ValueError, match="same seeds and users"):
        compare_paired(np.zeros((1, 0)), np.zeros((1, 0)))
