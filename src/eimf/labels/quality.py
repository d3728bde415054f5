"""Measures the quality of a set of labels, without new LLM calls."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars

from eimf.data.text import encode_items, encode_texts
from eimf.labels.label import Label


class Quality(NamedTuple):
    """Checks of a label set."""

    users: int
    interests: int
    interests_per_user: dict[int, int]
    """Number of interests -> number of users."""
    item_coverage: float
    """Share of the shown items that belong to an interest."""
    words_mean: float
    """Mean number of words of a name."""
    grounding: float
    """Mean cosine similarity of a name and its items."""
    grounding_random: float
    """The same for random items of the catalogue."""
    grounded: float
    """Share of interests that are more similar to their own items than to random ones."""
    shared_names: float
    """Share of interests whose exact name another user also has."""


def assess(
    labels: Sequence[Label], item_number: dict[str, int], item_vectors: np.ndarray, name_vectors: dict[str, np.ndarray]
) -> Quality:
    """Compare labels with the items that they were made from.

    Args:
        item_number: item id -> row of `item_vectors`; unknown items are left out.
        item_vectors: f32[I + 1, D], rows of length 1.
        name_vectors: name -> f32[D] of length 1.
    """
    rng = np.random.default_rng(0)
    with_own, with_random, n_used, n_shown = [], [], 0, 0
    for label in labels:
        n_shown += len(label.history)
        n_used += len({item for interest in label.interests for item in interest.items})
        for interest in label.interests:
            rows = [
                item_number[label.history[place - 1]]
                for place in interest.items
                if label.history[place - 1] in item_number
            ]
            if rows:
                random_rows = rng.integers(1, len(item_vectors), 20)
                with_own.append(float((item_vectors[rows] @ name_vectors[interest.name]).mean()))
                with_random.append(float((item_vectors[random_rows] @ name_vectors[interest.name]).mean()))
    names = Counter(interest.name.casefold() for label in labels for interest in label.interests)
    total = names.total()
    return Quality(
        users=len(labels),
        interests=total,
        interests_per_user=dict(sorted(Counter(len(label.interests) for label in labels).items())),
        item_coverage=n_used / max(n_shown, 1),
        words_mean=sum(len(name.split()) * count for name, count in names.items()) / max(total, 1),
        grounding=float(np.mean(with_own)) if with_own else 0.0,
        grounding_random=float(np.mean(with_random)) if with_random else 0.0,
        grounded=float(np.mean(np.array(with_own) > np.array(with_random))) if with_own else 0.0,
        shared_names=sum(count for count in names.values() if count > 1) / max(total, 1),
    )


def assess_items(labels: Sequence[Label], items: polars.DataFrame, encoder: str, root: str | Path) -> Quality:
    """`assess`, with the vectors of a text encoder.

    Raises:
        ConfigError: the encoder cannot be loaded.
    """
    names = sorted({interest.name for label in labels for interest in label.interests})
    vectors = encode_texts(names, encoder, root).vectors
    number = dict(zip(items["item_id"], items["item_idx"], strict=True))
    return assess(labels, number, encode_items(items, encoder, root).vectors, dict(zip(names, vectors, strict=True)))


def describe(found: Quality, counts: Mapping[str, int]) -> dict[str, str]:
    """The checks in words.

    Args:
        counts: status -> number of replies.
    """
    replies = max(1, sum(counts.values()))
    return {
        "replies": f"{sum(counts.values()):,}",
        "valid": f"{100 * counts.get('ok', 0) / replies:.1f}%",
        "refused": f"{100 * counts.get('refused', 0) / replies:.1f}%",
        "users": f"{found.users:,}",
        "interests": f"{found.interests:,}",
        "interests of a user": ", ".join(
            f"{count} users have {number}" for number, count in found.interests_per_user.items()
        ),
        "words of a name": f"{found.words_mean:.1f}",
        "shown items that belong to an interest": f"{100 * found.item_coverage:.1f}%",
        "cosine of names with their items": f"{found.grounding:.3f} (random items: {found.grounding_random:.3f})",
        "interests nearer to their own items": f"{100 * found.grounded:.1f}%",
        "interests with a name that another user has": f"{100 * found.shared_names:.1f}%",
    }
