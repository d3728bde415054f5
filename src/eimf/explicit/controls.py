"""Controls of an experiment: labels with the same statistics but wrong content, and shares of labels."""

from dataclasses import replace

import numpy as np
import torch

from eimf.explicit.item_interests import ItemInterests
from eimf.explicit.supervision import Supervision
from eimf.labels.label import Label, newest_labels


def shuffled_links(links: ItemInterests, seed: int) -> ItemInterests:
    """Give every item the links of another item."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(links.interest) - 1) + 1)
    source = torch.zeros(len(links.interest), dtype=torch.int64)
    source[order] = order.roll(1)
    return links._replace(interest=links.interest[source], share=links.share[source])


def shuffled(supervision: Supervision, seed: int) -> Supervision:
    """Give every user the words of another user. Each user keeps the items, positions and groups."""
    order = np.random.default_rng(seed).permutation(len(supervision))
    source = np.empty_like(order)
    source[order] = np.roll(order, 1)  # one cycle through a random order: every user gets another user's words
    source_rows = torch.from_numpy(source)
    vectors, present = supervision.vectors[source_rows], supervision.present[source_rows]
    # If the other user has more interests, this user has no items for them: use those of the first interest.
    items = torch.where(
        supervision.present[:, :, None], supervision.items, supervision.items[:, :1].expand_as(supervision.items)
    )
    return replace(
        supervision, vectors=vectors, present=present, items=items, made_from=supervision.made_from[source_rows]
    )


def mixed_groups(supervision: Supervision, seed: int) -> Supervision:
    """Shuffle which of a user's items form a group, and keep the group sizes."""
    generator = np.random.default_rng(seed)
    groups = supervision.groups.numpy().copy()
    for row in groups:
        named = row >= 0
        row[named] = generator.permutation(row[named])
    return replace(supervision, groups=torch.from_numpy(groups))


def take_share(labels: list[Label], share: float, seed: int) -> list[Label]:
    """The labels of a seeded share of their users; smaller shares are subsets of larger ones."""
    users = [label.user_id for label in newest_labels(labels)]
    # The seed alone would repeat the permutation that splits the same number of users.
    order = np.random.default_rng([seed, len("share")]).permutation(len(users))
    chosen = {users[index] for index in order[: max(1, round(share * len(users)))]}
    return [label for label in labels if label.user_id in chosen]
