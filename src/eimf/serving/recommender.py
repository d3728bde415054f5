"""Load a trained run and recommend, for known and new users: behaviour in, ranked items out.

```python
import eimf

model = eimf.load("lightning_logs/demo-comirec_sa/version_0")
for item in model.recommend(["P00017", "P00342"], n=5):
    print(item.title, item.score)
```
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars
import torch
from jaxtyping import Float

from eimf.backbones import Backbone, Interests
from eimf.config.schema import Config
from eimf.core.errors import ArtifactError, DataError
from eimf.data.batch import Ragged
from eimf.data.prepared import leaf_categories
from eimf.evaluation.retrieval import CONTROLLED_POOL, ItemIndex, rerank_diverse, retrieve
from eimf.runs.folder import ORIGIN, open_index, read_checkpoint, read_frame, read_run, restore_backbone
from eimf.runs.versions import newest_version

__all__ = ["Recommendation", "Recommender", "load"]


class Recommendation(NamedTuple):
    """One recommended item."""

    item_id: str
    title: str
    score: float
    interest: int
    """The interest (from 0) that retrieved it."""


class Recommender:
    """A trained backbone with its catalogue and a retrieval index. Safe to share between threads for reading."""

    def __init__(
        self,
        backbone: Backbone,
        config: Config,
        items: polars.DataFrame,
        index: ItemIndex,
        filters_seen: bool = True,
    ) -> None:
        self.backbone, self.config, self.items = backbone.eval(), config, items
        self._number = dict(zip(items["item_id"], items["item_idx"], strict=True))
        self._titles = ["", *items["title"]]
        self._ids = ["", *items["item_id"]]
        self._categories = torch.from_numpy(leaf_categories(items)).long()
        self.index, self.filters_seen = index, filters_seen

    @property
    def n_interests(self) -> int:
        """K: the number of interest lists that `recommend_by_interest` gives."""
        with torch.inference_mode():
            return self.backbone(torch.zeros(1, 1, dtype=torch.long)).vectors.shape[1]

    def title(self, item_id: str) -> str:
        """Title of an item, empty where unknown."""
        return self._titles[self._number.get(item_id, 0)]

    def knows(self, item_id: str) -> bool:
        """Whether an item is in the catalogue."""
        return item_id in self._number

    def interests(self, history: Sequence[str]) -> torch.Tensor:
        """Interest vectors [K, D] of a history of item ids, oldest first; see `encode` for many.

        Raises:
            DataError: the history is empty or has an unknown item.
        """
        return self._extract(history).vectors[0].float()

    def item_vectors(self) -> Float[np.ndarray, "I D"]:
        """Vectors of all items, in the order of `items`."""
        with torch.inference_mode():
            return self.backbone.item_vectors().float().numpy()[1:]

    def encode(self, histories: Sequence[Sequence[str]], batch_size: int = 1024) -> Float[np.ndarray, "U K D"]:
        """Interest vectors of many histories of item ids, each oldest first.

        Raises:
            DataError: a history is empty or has an unknown item.
        """
        if isinstance(histories, str) or any(isinstance(history, str) for history in histories):
            raise DataError("histories: must be a list of lists of item ids, such as [['P1', 'P2'], ['P3']].")
        length = self.config.data.max_len
        rows = [self._numbers(history)[-length:] for history in histories]
        padded = torch.zeros(len(rows), length, dtype=torch.long)
        for row, numbers in enumerate(rows):
            padded[row, length - len(numbers) :] = torch.tensor(numbers)
        with torch.inference_mode():
            parts = [self.backbone(part).vectors.float() for part in padded.split(batch_size)]
        if not parts:
            return np.zeros((0, self.n_interests, self.backbone.embed_dim), np.float32)
        return torch.cat(parts).numpy()

    def attended(self, history: Sequence[str]) -> list[int | None]:
        """For each item of a history, the interest (from 0) that attends to it most; None for items before the last
        `data.max_len`, which the model does not see, and for models of several interests without routing weights.

        Raises:
            DataError: the history is empty or has an unknown item.
        """
        interests = self._extract(history)
        recent = min(len(history), self.config.data.max_len)
        earlier: list[int | None] = [None] * (len(history) - recent)
        if interests.routing is not None:
            return earlier + interests.routing[0, :, -recent:].argmax(dim=0).tolist()
        return earlier + [0 if interests.vectors.shape[1] == 1 else None] * recent

    def _extract(self, history: Sequence[str]) -> Interests:
        numbers = torch.tensor([self._numbers(history)])
        with torch.inference_mode():
            return self.backbone(numbers[:, -self.config.data.max_len :])

    def _numbers(self, history: Sequence[str]) -> list[int]:
        """Numbers of the items of a history."""
        if isinstance(history, str):
            raise DataError(
                f"history: must be a list of item ids, oldest first, is the text {history!r}; give [{history!r}]."
            )
        if len(history) == 0:
            raise DataError("history: is empty; give at least one item id, oldest first.")
        unknown = [item for item in history if item not in self._number]
        if unknown:
            known = ", ".join(map(repr, self.items["item_id"].head(3)))
            raise DataError(
                f"history: {', '.join(map(repr, unknown[:5]))} not in the catalogue of {len(self.items)} items that "
                f"the model was trained on (its ids look like {known}); leave unknown items out."
            )
        return [self._number[item] for item in history]

    def recommend(
        self, history: Sequence[str], n: int = 10, *, filter_seen: bool | None = None, diversity: float = 0.0
    ) -> list[Recommendation]:
        """The n best items for a history, over all interests.

        Args:
            history: item ids, oldest first; the user need not have been in the training data.
            filter_seen: leave out the items of the history; None: as in the run's evaluation.
            diversity: weight of ComiRec's controllable aggregation by category; 0 ranks by score alone.

        Raises:
            DataError: the history is empty or has an unknown item.
        """
        vectors = self.interests(history)[None]
        seen = self._seen(history) if self._filters(filter_seen) else None
        ranked = retrieve(self.index, vectors, n, seen, CONTROLLED_POOL if diversity else 0)
        if diversity:
            ranked = rerank_diverse(ranked, self._categories, n, diversity)
        return self._named(ranked.items[0], ranked.scores[0], ranked.interest[0])

    def recommend_by_interest(
        self, history: Sequence[str], n: int = 10, *, filter_seen: bool | None = None
    ) -> list[list[Recommendation]]:
        """The n best items of each interest; an item may be in several lists.

        Raises:
            DataError: the history is empty or has an unknown item.
        """
        vectors = self.interests(history)[:, None]  # each interest as a separate user
        seen = self._seen(history, len(vectors)) if self._filters(filter_seen) else None
        ranked = retrieve(self.index, vectors, n, seen)
        return [
            self._named(ranked.items[k], ranked.scores[k], torch.full_like(ranked.items[k], k))
            for k in range(len(vectors))
        ]

    def _filters(self, asked: bool | None) -> bool:
        return self.filters_seen if asked is None else asked

    def _seen(self, history: Sequence[str], rows: int = 1) -> Ragged:
        """The items of a history, repeated for each row."""
        return Ragged.of([[self._number[item] for item in history]] * rows)

    def _named(self, items: torch.Tensor, scores: torch.Tensor, interest: torch.Tensor) -> list[Recommendation]:
        rows = zip(items.tolist(), scores.tolist(), interest.tolist(), strict=True)
        return [Recommendation(self._ids[item], self._titles[item], score, k) for item, score, k in rows if item]


def load(run: str | PathLike[str]) -> Recommender:
    """Load a run folder for serving; needs nothing but the folder. That of several versions stands for the newest.

    Raises:
        ArtifactError: the folder is not a finished run, or its files are of different runs.
    """
    folder = newest_version(Path(run))
    checkpoint = read_checkpoint(folder)
    origin = checkpoint[ORIGIN]
    items = read_frame(folder / "items.parquet", read_run(folder).get("items_sha256", ""))
    if len(items) != origin["n_items"]:
        raise ArtifactError(
            f"{folder}/items.parquet: has {len(items)} items, the checkpoint {origin['n_items']}; they are of "
            "different runs. Train again."
        )
    backbone, config = restore_backbone(checkpoint, folder)
    with torch.inference_mode():
        index = open_index(folder, backbone.item_vectors().float().numpy())
    return Recommender(backbone, config, items, index, origin.get("filter_seen", True))
