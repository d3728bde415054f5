"""Controls of an experiment: labels with the same statistics whose content is wrong, and shares of labels."""

from dataclasses import replace

import numpy as np
import torch

from eimf.explicit.item_interests import ItemInterests
from eimf.explicit.supervision import Supervision
from eimf.labels.label import Label, newest_labels


def shuffled_links(links: ItemInterests, seed: int) -> ItemInterests:
    """Every item gets the links of another one."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(links.interest) - 1) + 1)
    donor = torch.zeros(len(links.interest), dtype=torch.int64)
    donor[order] = order.roll(1)
    return links._replace(interest=links.interest[donor], share=links.share[donor])


def shuffled(supervision: Supervision, seed: int) -> Supervision:
    """Every user keeps the own items, positions and groups, and gets the words of another user."""
    order = np.random.default_rng(seed).permutation(len(supervision))
    donor = np.empty_like(order)
    donor[order] = np.roll(order, 1)  # a cycle through a random order: nobody keeps the own words
    shift = torch.from_numpy(donor)
    vectors, present = supervision.vectors[shift], supervision.present[shift]
    # Where the other user has more interests, this one's item positions do not exist: take the first one's.
    items = torch.where(
        supervision.present[:, :, None], supervision.items, supervision.items[:, :1].expand_as(supervision.items)
    )
    return replace(supervision, vectors=vectors, present=present, items=items, made_from=supervision.made_from[shift])


def mixed_groups(supervision: Supervision, seed: int) -> Supervision:
    """Shuffles which of a user's items form a group, and keeps the group sizes."""
    generator = np.random.default_rng(seed)
    groups = supervision.groups.numpy().copy()
    for row in groups:
        named = row >= 0
        row[named] = generator.permutation(row[named])
    return replace(supervision, groups=torch.from_numpy(groups))


def take_share(labels: list[Label], share: float, seed: int) -> list[Label]:
    """The labels of a seeded share of their users; smaller shares are subsets of larger ones."""
    users = [label.user_id for label in newest_labels(labels)]
    # A stream of its own: the seed alone would repeat the permutation that splits as many users.
    order = np.random.default_rng([seed, len("share")]).permutation(len(users))
    chosen = {users[index] for index in order[: max(1, round(share * len(users)))]}
    return [label for label in labels if label.user_id in chosen]
