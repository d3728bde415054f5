"""Which group a held-out user belongs to, by what he did: pure functions, for the report and for `compare`."""

import numpy as np
import polars as pl
from jaxtyping import Int
from numpy import ndarray

from eimf.data.sequences import Sequences
from eimf.data.splits import Holdout


def popularity_levels(item_counts: Int[ndarray, " I_plus_1"]) -> Int[ndarray, " I_plus_1"]:
    """0 head, 1 torso, 2 tail: the most popular items that make a third of training interactions are the head,
    the next third the torso. Entry 0 (padding) is meaningless."""
    order = np.argsort(-item_counts[1:], kind="stable") + 1
    before = np.cumsum(item_counts[order]) - item_counts[order]  # of the items that are more popular
    levels = np.full(len(item_counts), 2, dtype=np.int64)
    total = max(int(item_counts[1:].sum()), 1)
    levels[order] = np.where(item_counts[order] > 0, np.minimum(3 * before // total, 2), 2)
    return levels


def user_groups(
    sequences: Sequences,
    held: Holdout,
    item_counts: Int[ndarray, " I_plus_1"],
    rankings: pl.DataFrame | None = None,
    labelled: Int[ndarray, " N"] | None = None,
) -> pl.DataFrame:
    """Levels of every held-out user, as rows `user_idx, group, level`.

    Args:
        item_counts: occurrences in the training slices, entry 0 unused.
        rankings: `user_idx, interest` of a run's lists, for the number of interests used.
        labelled: user_idx of the users with labels, where labels exist.
    """
    users = held.user_idx.astype(np.int32)
    lengths = held.cut - held.start
    low, high = np.quantile(lengths, [1 / 3, 2 / 3]).astype(int)
    names = [f"short (1 to {low})", f"medium ({low + 1} to {high})", f"long (over {high})"]
    frames = [_frame(users, "history length", [names[int(n > low) + int(n > high)] for n in lengths])]
    levels = popularity_levels(item_counts)
    means = [levels[sequences.items[a:b]].mean() for a, b in zip(held.cut, held.end, strict=True)]
    kinds = ("head", "torso", "tail")
    # A user with several targets goes where the mean of their levels is nearest.
    frames.append(_frame(users, "target popularity", [kinds[int(mean + 0.5)] for mean in means]))
    if labelled is not None:
        found = np.isin(users, labelled)
        frames.append(_frame(users, "explicit interests", ["labelled" if one else "not labelled" for one in found]))
    if rankings is not None:
        used = rankings.group_by("user_idx").agg(pl.col("interest").n_unique().alias("n")).sort("user_idx")
        level = [f"{n} used" for n in used["n"]]
        frames.append(_frame(used["user_idx"].to_numpy().astype(np.int32), "interests in the list", level))
    return pl.concat(frames)


def _frame(users: ndarray, group: str, levels: list[str]) -> pl.DataFrame:
    return pl.DataFrame(
        {"user_idx": users, "group": [group] * len(users), "level": levels},
        schema={"user_idx": pl.Int32, "group": pl.String, "level": pl.String},
    )
