"""Which behavioural interest the words of an explicit one are about."""

from collections.abc import Sequence

from eimf.labels.label import Label


def behind_words(label: Label, history: Sequence[str], attended: Sequence[int | None]) -> list[int | None]:
    """For each explicit interest, the behavioural one that attends to most of the items which show it.

    Args:
        history: item ids, oldest first.
        attended: the interest that attends to each of them, see `eimf.serving.recommender.Recommender.attended`.

    Returns:
        None where no item that shows it is attended to; on a tie the lower number.
    """
    found = []
    for interest in label.interests:
        shown = {label.history[place - 1] for place in interest.items}
        votes = [k for item, k in zip(history, attended, strict=True) if item in shown and k is not None]
        found.append(max(sorted(set(votes)), key=votes.count) if votes else None)
    return found
