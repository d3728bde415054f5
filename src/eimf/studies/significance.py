"""Tests whether two models differ: paired tests over the same users and seeds, as pure functions."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy import stats


class Difference(NamedTuple):
    """A paired comparison of one metric: variant minus baseline."""

    mean: float
    low: float
    """95% confidence interval of the mean difference, by bootstrap."""
    high: float
    p_bootstrap: float
    """Two-sided, over users and seeds."""
    p_seeds: float
    """Two-sided paired t-test over the seeds' means; NaN with fewer than two seeds, or without variance."""


def compare_paired(
    variant: Float[ndarray, "S U"], baseline: Float[ndarray, "S U"], resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Compare per-user values of two models, trained with the same S seeds and evaluated on the same U users.

    A seed may have some of the users only: the values of the others are NaN in both arrays. A seed without any user is
    left out. Seeds with users of their own give wider intervals than needed: the chance of users counts twice.

    The bootstrap (Efron & Tibshirani 1993, ch. 13 and 16) samples users with replacement and, independently, seeds with
    replacement, so that both sources of chance count. p is twice the smaller share of resampled differences beyond 0;
    the observed difference counts as one of them.

    Raises:
        ValueError: the shapes or the places of NaN differ, or there is no value.
    """
    known = ~np.isnan(baseline)
    if not np.array_equal(known, ~np.isnan(variant)) or not known.any():
        raise ValueError(f"both need the same seeds and users, have shapes {variant.shape} and {baseline.shape}")
    used = known.any(axis=1)
    variant, baseline, known = variant[used], baseline[used], known[used]
    difference = np.where(known, variant - baseline, 0.0)
    seeds, users = difference.shape
    random = np.random.default_rng(seed)
    seed_shares = random.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds  # [R, S]
    means = np.empty(resamples)
    chunk = max(1, 2**22 // users)  # 32 MiB at a time
    for start in range(0, resamples, chunk):
        part = slice(start, min(start + chunk, resamples))
        # For many users, Poisson(1) counts divided by their sum approximate the multinomial, and are much faster.
        counts = random.poisson(1.0, (part.stop - part.start, users))
        per_seed = counts @ difference.T / np.maximum(counts @ known.T, 1)  # [R', S]
        means[part] = (per_seed * seed_shares[part]).sum(axis=1)
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(
        float((difference.sum(axis=1) / known.sum(axis=1)).mean()),
        float(low),
        float(high),
        float(min(1.0, 2 * (beyond + 1) / (resamples + 1))),
        paired_t_test(np.nanmean(variant, axis=1), np.nanmean(baseline, axis=1)),
    )


def paired_t_test(variant: Float[ndarray, " S"], baseline: Float[ndarray, " S"]) -> float:
    """Two-sided p of a paired t-test; NaN with fewer than two pairs, or where all differences are equal.

    The test needs variance: two seeds whose differences happen to be equal prove nothing.
    """
    difference = variant - baseline
    if len(difference) < 2:
        return float("nan")
    scale = max(np.abs(variant).max(), np.abs(baseline).max())
    if np.ptp(difference) <= 1e-12 * scale:  # equal, apart from rounding
        return float("nan")
    return float(stats.ttest_rel(variant, baseline)[1])


def holm(p_values: Float[ndarray, " N"]) -> Float[ndarray, " N"]:
    """p-values corrected for N tests by Holm's step-down method (1979); NaN stays NaN and is not counted."""
    corrected = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected
