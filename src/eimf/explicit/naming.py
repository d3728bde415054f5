"""Finds the behavioural interest that each explicit interest describes."""

from collections.abc import Sequence

from eimf.labels.label import Label


def behind_words(label: Label, history: Sequence[str], attended: Sequence[int | None]) -> list[int | None]:
    """For each explicit interest, the behavioural one that attends to most of the items that show it.

    Args:
        history: item ids, oldest first.
        attended: the interest that attends to each of them, see `eimf.serving.recommender.Recommender.attended`.

    Returns:
        None if no item that shows it is attended to. On a tie, the lower number.
    """
    behavioural = []
    for interest in label.interests:
        shown = {label.history[position - 1] for position in interest.items}
        votes = [number for item, number in zip(history, attended, strict=True) if item in shown and number is not None]
        behavioural.append(max(sorted(set(votes)), key=votes.count) if votes else None)
    return behavioural
