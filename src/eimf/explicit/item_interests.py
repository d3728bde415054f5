"""Links between items and explicit interests, by the similarity of their texts."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


class ItemInterests(NamedTuple):
    """The explicit interests (of all labels together) that each item is linked to."""

    vectors: Float[Tensor, "C D_text"]
    """Text vectors of all C explicit interests."""
    interest: Int[Tensor, "I_plus_1 M"]
    """The M interests whose names are nearest to each item's title; row 0 (padding) is meaningless."""
    share: Float[Tensor, "I_plus_1 M"]
    """Weights of these links; rows sum to 1."""

    def profiles(self) -> Float[np.ndarray, "I_plus_1 C"]:
        """Weight of the link of each item to each explicit interest, 0 where there is no link."""
        full = torch.zeros(len(self.interest), len(self.vectors)).scatter_(1, self.interest, self.share)
        return full.numpy()


def link_items(
    titles: Float[np.ndarray, "I_plus_1 D_text"],
    names: Float[np.ndarray, "C D_text"],
    most: int,
    temperature: float,
) -> ItemInterests:
    """Link each item to the explicit interests whose names are nearest to its title.

    Args:
        titles, names: text vectors of length 1.
        most: links per item.
        temperature: of the softmax that turns cosine similarities into weights.
    """
    most = min(most, len(names))
    nearest = np.empty((len(titles), most), np.int64)
    score = np.empty((len(titles), most), np.float32)
    for chunk in np.array_split(np.arange(len(titles)), max(1, len(titles) // 4096)):
        similarity = titles[chunk] @ names.T
        nearest[chunk] = np.argsort(-similarity, axis=1, kind="stable")[:, :most]
        score[chunk] = np.take_along_axis(similarity, nearest[chunk], axis=1)
    share = torch.from_numpy(score / temperature).softmax(dim=1)
    return ItemInterests(torch.from_numpy(names), torch.from_numpy(nearest), share)
