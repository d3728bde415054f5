"""Compares the variants of a suite: means over seeds, lifts, and paired tests."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars
from jaxtyping import Float, Int

from eimf.core.errors import ArtifactError
from eimf.evaluation.agreement import METRIC as AGREEMENT
from eimf.evaluation.groups import place_of_level
from eimf.runs.folder import read_frame, read_results
from eimf.studies.significance import Difference, compare_paired, holm

LEVEL = 0.05
"""A difference is called significant if its corrected p is below this."""

DESCRIBED = ("interest_cosine", "interest_overlap", "interests_used", "diversity", "coverage")
"""What a comparison says about a variant's interests and lists, without tests of significance."""


@dataclass(frozen=True)
class Cell:
    """One variant's results in one metric."""

    mean: float
    """Mean over seeds of the mean over users."""
    deviation: float
    """Standard deviation over seeds (n - 1); NaN with one seed."""
    seeds: int
    lift: float
    """Difference from the baseline over the seeds that both have, relative to it (0.03 = 3%) or not, see `relative`;
    NaN for the baseline."""
    low: float
    """95% confidence interval of the lift."""
    high: float
    p: float
    """Two-sided paired bootstrap over users and seeds, corrected over the table by Holm's method."""
    p_seeds: float
    """Two-sided paired t-test over seeds, corrected in the same way; NaN with fewer than two seeds."""
    relative: bool = True
    """Whether `lift` is relative. Agreement has differences: it is 0 by chance, which nothing can be relative to."""

    @property
    def significant(self) -> bool:
        return self.p < LEVEL


@dataclass(frozen=True)
class Comparison:
    """The results of all variants in all metrics."""

    name: str
    question: str
    baseline: str
    part: str
    """`test`, or `val` if a run has no results of test users."""
    metrics: tuple[str, ...]
    cells: dict[str, dict[str, Cell]]
    """Variant -> metric -> result."""
    costs: dict[str, dict[str, float]]
    """Variant -> name of a cost -> mean over its runs."""
    runs: dict[str, dict[int, str]]
    """Variant -> seed -> run folder."""
    lists: dict[str, dict[str, float]] = field(default_factory=dict)
    """Variant -> name of a value about its interests and lists (`DESCRIBED`) -> mean over its runs."""
    labels: dict[str, str] = field(default_factory=dict)
    """Names for tables and reports, of the variants that have one."""

    def label(self, variant: str) -> str:
        """Name of a variant for people."""
        return self.labels.get(variant, variant)

    def ranks(self, metric: str) -> list[str]:
        """Variants from best to worst; those without a value last."""
        return sorted(self.cells, key=lambda variant: -np.nan_to_num(self.cells[variant][metric].mean, nan=-np.inf))


class UserValues(NamedTuple):
    """A metric of a run, user by user."""

    users: Int[np.ndarray, " U"]
    """user_idx, ascending."""
    values: Float[np.ndarray, " U"]


def read_users(folder: Path, part: str) -> dict[str, UserValues]:
    """Per-user values of a run by metric key.

    Raises:
        ArtifactError: the run has no metrics of that part, or one that is no finite number.
    """
    frame = read_frame(folder / "metrics.parquet").filter(part=part)
    if frame.is_empty():
        raise ArtifactError(f"{folder}: has no results of the {part} users; train it with eval.test=true.")
    if not frame["value"].is_finite().all():
        raise ArtifactError(f"{folder}: metrics.parquet has values that are no finite numbers; evaluate the run again.")
    groups = frame.sort("user_idx").partition_by("metric", "k", as_dict=True)
    return {
        f"{metric}@{k}" if k else str(metric): UserValues(group["user_idx"].to_numpy(), group["value"].to_numpy())
        for (metric, k), group in groups.items()
    }


def compare(
    name: str,
    runs: Mapping[str, Mapping[int, Path]],
    baseline: str,
    metrics: tuple[str, ...],
    question: str = "",
    resamples: int = 10_000,
    labels: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare finished runs.

    Args:
        runs: variant -> seed -> run folder. The tests use the seeds that both a variant and the baseline have.
        labels: variant -> its name in tables and reports.

    Raises:
        ArtifactError: a run is not finished, or the runs were not evaluated on the same users.
    """
    results = {
        variant: {seed: read_results(path) for seed, path in by_seed.items()} for variant, by_seed in runs.items()
    }
    _check_filters(runs, results)
    part = "test" if all("test" in result for by_seed in results.values() for result in by_seed.values()) else "val"
    users = _read_all(runs, baseline, part)
    tests: dict[tuple[str, str], tuple[Difference, float]] = {}
    for metric in metrics:
        for variant, _, ours, base in _pairs(users, baseline, metric):
            tests[variant, metric] = (compare_paired(ours, base, resamples), _mean(base))
    p = holm(np.array([test.p_bootstrap for test, _ in tests.values()]))
    p_seeds = holm(np.array([test.p_seeds for test, _ in tests.values()]))
    corrected = dict(zip(tests, zip(p, p_seeds, strict=True), strict=True))
    cells: dict[str, dict[str, Cell]] = {}
    for variant, by_seed in users.items():
        cells[variant] = {}
        for metric in metrics:
            means = np.array(
                [found[metric].values.mean() for found in by_seed.values() if metric in found], dtype=float
            )
            spread = float(means.std(ddof=1)) if len(means) > 1 else float("nan")
            lift = [float("nan")] * 5
            if (variant, metric) in tests:
                test, base = tests[variant, metric]
                base = 1.0 if metric == AGREEMENT else base or float("nan")
                lift = [test.mean / base, test.low / base, test.high / base, *map(float, corrected[variant, metric])]
            mean = float(means.mean()) if len(means) else float("nan")  # some models have no agreement
            cells[variant][metric] = Cell(mean, spread, len(means), *lift, relative=metric != AGREEMENT)
    costs, lists = {}, {}
    for variant, by_seed in results.items():
        spent = [result.get("costs", {}) for result in by_seed.values()]
        summaries = [result.get(part, {}) for result in by_seed.values()]
        costs[variant], lists[variant] = _means(spent, spent[0]), _means(summaries, _described(summaries[0]))
    folders = {variant: {seed: str(path) for seed, path in by_seed.items()} for variant, by_seed in runs.items()}
    return Comparison(name, question, baseline, part, metrics, cells, costs, folders, lists, dict(labels or {}))


def _check_filters(
    runs: Mapping[str, Mapping[int, Path]], results_of: Mapping[str, Mapping[int, dict[str, Any]]]
) -> None:
    """Refuse to compare filtered lists with unfiltered ones. The lists of earlier versions are unfiltered."""
    kinds: dict[bool, Path] = {}
    for variant, by_seed in results_of.items():
        for seed, results in by_seed.items():
            kinds.setdefault(bool(results.get("filter_seen", False)), runs[variant][seed])
    if len(kinds) > 1:
        raise ArtifactError(
            f"{kinds[False]}: its lists are unfiltered, those of {kinds[True]} leave out the items that a user has; "
            "train or evaluate both with the same eval.filter_seen."
        )


Users = dict[str, dict[int, dict[str, UserValues]]]
"""Variant -> seed -> result of `read_users`."""


def _read_all(runs: Mapping[str, Mapping[int, Path]], baseline: str, part: str) -> Users:
    users = {
        variant: {seed: read_users(path, part) for seed, path in by_seed.items()} for variant, by_seed in runs.items()
    }
    evaluated: dict[int, set[int]] = {}
    for variant in (baseline, *users):
        for seed, found in users[variant].items():
            ours = set(np.concatenate([values.users for values in found.values()]).tolist())
            if ours != evaluated.setdefault(seed, ours):
                raise ArtifactError(f"{runs[variant][seed]}: was evaluated on other users than the baseline's runs.")
    return users


class _Pair(NamedTuple):
    """A variant and the baseline in one metric; NaN where a seed has other users."""

    variant: str
    users: Int[np.ndarray, " U"]
    ours: Float[np.ndarray, "S U"]
    base: Float[np.ndarray, "S U"]


def _pairs(users: Users, baseline: str, metric: str) -> Iterator[_Pair]:
    """For each other variant: its values and those of the baseline, for the seeds that both have."""
    for variant, by_seed in users.items():
        first = users[baseline]
        shared = [seed for seed in by_seed if seed in first and metric in by_seed[seed] and metric in first[seed]]
        if variant != baseline and shared:
            everyone = np.unique(np.concatenate([first[seed][metric].users for seed in shared]))
            ours, base = (_in_rows([of[seed][metric] for seed in shared], everyone) for of in (by_seed, first))
            yield _Pair(variant, everyone, ours, base)


def _in_rows(found: Sequence[UserValues], everyone: Int[np.ndarray, " U"]) -> Float[np.ndarray, "S U"]:
    rows = np.full((len(found), len(everyone)), np.nan)
    for row, (users, values) in zip(rows, found, strict=True):
        row[np.searchsorted(everyone, users)] = values
    return rows


def _mean(rows: Float[np.ndarray, "S U"]) -> float:
    """The mean over the seeds of the mean over their users; seeds without users are left out."""
    return float(np.mean([np.nanmean(row) for row in rows if not np.isnan(row).all()]))


@dataclass(frozen=True)
class GroupLift:
    """Lift of a variant over the baseline in one group of users, in one metric."""

    variant: str
    group: str
    level: str
    users: int
    baseline: float
    """The baseline's mean among these users."""
    lift: float
    low: float
    """95% confidence interval of the lift, by paired bootstrap over these users and the seeds."""
    high: float


def compare_groups(
    runs: Mapping[str, Mapping[int, Path]],
    baseline: str,
    metric: str,
    groups: polars.DataFrame,
    part: str = "test",
    resamples: int = 10_000,
) -> list[GroupLift]:
    """Lifts in groups of users. They are exploratory: nothing is corrected for the number of groups.

    Args:
        groups: `user_idx, group, level`, see `eimf.evaluation.groups.group_users`.

    Raises:
        ArtifactError: a run cannot be read.
    """
    users = _read_all(runs, baseline, part)
    groups = groups.sort("group", polars.col("level").map_elements(place_of_level, polars.Int64), maintain_order=True)
    lifts = []
    for (group, level), members in groups.partition_by("group", "level", as_dict=True, maintain_order=True).items():
        for variant, everyone, ours, base in _pairs(users, baseline, metric):
            left_out = ~np.isin(everyone, members["user_idx"].to_numpy())
            ours[:, left_out] = base[:, left_out] = np.nan
            if np.isnan(base).all():
                continue
            test, mean = compare_paired(ours, base, resamples), _mean(base)
            ratio = [value / mean if mean else float("nan") for value in (test.mean, test.low, test.high)]
            count = int((~np.isnan(base)).any(axis=0).sum())
            lifts.append(GroupLift(variant, str(group), str(level), count, mean, *ratio))
    return lifts


def _described(summary: Mapping[str, float]) -> list[str]:
    """The keys of a summary that `DESCRIBED` names, each at its longest cut-off (they ascend)."""
    names = {kind: name for kind in DESCRIBED for name in summary if name == kind or name.startswith(f"{kind}@")}
    return list(names.values())


def _means(runs: Sequence[Mapping[str, float]], names: Iterable[str]) -> dict[str, float]:
    """The mean of each value over the runs that have it."""
    return {name: float(np.mean([run[name] for run in runs if name in run])) for name in names}
