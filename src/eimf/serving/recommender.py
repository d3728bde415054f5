"""Load a trained run and recommend, for known and new users: behaviour in, ranked items out.

```python
import eimf

model = eimf.load("lightning_logs/demo-comirec_sa/version_0")
for item in model.recommend(["P00017", "P00342"], n=5):
    print(item.title, item.score)
```

A request goes through four steps: item ids become numbers, a history becomes interest vectors, the vectors retrieve
items (`Recommender.rank`), and numbers become ids and titles again.
"""

import copy
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eimf.backbones import Backbone, Interests
from eimf.config.schema import Config
from eimf.core.errors import ArtifactError, ConfigError, DataError
from eimf.core.files import sha256_file
from eimf.data.batch import Ragged
from eimf.data.prepared import leaf_categories
from eimf.evaluation.retrieval import (
    NEVER,
    ItemIndex,
    Retrieved,
    controlled_pool,
    fill_proportionally,
    rerank_diverse,
    retrieve,
    retrieve_each,
)
from eimf.runs.folder import BEST, ORIGIN, open_index, read_checkpoint, read_frame, read_run, restore_backbone
from eimf.runs.interest_names import read_interest_names
from eimf.runs.text_map import read_text_map
from eimf.runs.versions import current_run
from eimf.serving.cache import Cache
from eimf.serving.filters import Conditions, allowed_items, filter_key, join_columns, plain_conditions, read_columns
from eimf.serving.ids import History, id_text, item_ids, python_value
from eimf.serving.texts import Texts, check_words, read_new_items

__all__ = ["ListOptions", "Recommendation", "Recommendations", "Recommender", "load"]

POPULAR = -1
"""In place of an interest: the item is there because it is popular."""
LARGEST_WEIGHT = 1_000_000
"""Of diversity: with it, scores do not matter any more."""
_MASKS_KEPT = 16


class Recommendation(NamedTuple):
    """One recommended item."""

    item_id: str
    title: str
    score: float
    """Inner product with the interest; of a popular item, its number of training interactions; of a similar item, the
    cosine."""
    interest: int | None
    """The interest (from 0) that retrieved it; K + s for phrase s of `words`. None: no interest did, the item is
    popular or similar."""


class Recommendations(list[Recommendation]):
    """A list of items, best first.

    Attributes:
        skipped: how many items of the history are not in the catalogue and were left out.
        fallback: the history had no known item, so that the list is of the most popular items of the training data.
        name: of the interest whose list this is, where interests have names that hold for all users; else empty.
    """

    def __init__(
        self, items: Iterable[Recommendation] = (), skipped: int = 0, fallback: bool = False, name: str = ""
    ) -> None:
        super().__init__(items)
        self.skipped, self.fallback, self.name = skipped, fallback, name


@dataclass(frozen=True, eq=False)
class ListOptions:
    """What a list may hold, and how it is put together. Python, the command line and HTTP share it.

    Values and arrays of NumPy, and series, are kept as plain Python values; `allow` and `deny` by column.

    Raises:
        ConfigError: a value is out of range, or two do not go together.
    """

    n: int = 10
    """Length of the list; it is shorter only if fewer items may be listed."""
    filter_seen: bool | None = None
    """Leave out the items of the history; None: as in the run's evaluation."""
    allow: Conditions = None
    """Conditions that each item must meet, see `eimf.serving.filters`."""
    deny: Conditions = None
    """Conditions of which each item must meet none."""
    merge: Literal["best", "proportional"] = "best"
    """How the interests' lists become one: by each item's best score, or by the interests' shares, see
    `eimf.evaluation.retrieval.fill_proportionally`."""
    diversity: float = 0.0
    """Weight of ComiRec's controllable aggregation by category; 0 ranks by score alone."""
    by_interest: bool = False
    """A list for each interest, instead of one merged list."""
    unknown: Literal["skip", "error"] = "skip"
    """Items of a history that are not in the catalogue are left out and counted, or refused."""
    words: Sequence[str] = ()
    """Interests in words: each phrase is one more interest, numbered after those of the history. Needs `eimf map`."""

    def __post_init__(self) -> None:
        check_words(self.words)
        for name in ("n", "filter_seen", "diversity", "by_interest"):
            object.__setattr__(self, name, python_value(getattr(self, name)))
        for name in ("allow", "deny"):
            object.__setattr__(self, name, plain_conditions(getattr(self, name), name))
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise ConfigError(f"n: must be a whole number from 1, is {self.n!r}.")
        if self.filter_seen not in (None, True, False):
            raise ConfigError(f"filter_seen: must be true, false or null, is {self.filter_seen!r}.")
        for name, choices in (("merge", ("best", "proportional")), ("unknown", ("skip", "error"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name}: must be {' or '.join(choices)}, is {getattr(self, name)!r}.")
        number = isinstance(self.diversity, int | float) and not isinstance(self.diversity, bool)
        if not number or not 0 <= self.diversity <= LARGEST_WEIGHT:
            raise ConfigError(f"diversity: must be a number from 0 to {LARGEST_WEIGHT:,}, is {self.diversity!r}.")
        if self.diversity and (self.merge != "best" or self.by_interest):
            raise ConfigError("diversity: has an effect on lists merged by best score only; set it to 0.")
        if self.by_interest and self.merge != "best":
            raise ConfigError("merge: has no effect on lists by interest; leave one of them out.")


class Recommender:
    """A trained backbone with its catalogue and a retrieval index. Safe to share between threads.

    Args:
        items: `item_idx, item_id, title, categories` of the catalogue, and any other columns to filter by; `count` has
            the number of training interactions, for users without a history.
        filters_seen: whether lists leave out the items of the history by default.
        about: plain values that describe the run, such as digests.
        texts: gives vectors to words and to new items, if the run keeps a text map.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: Config,
        items: polars.DataFrame,
        index: ItemIndex,
        filters_seen: bool = True,
        about: dict[str, Any] | None = None,
        texts: Texts | None = None,
        interest_names: Sequence[str] = (),
    ) -> None:
        self.backbone, self.config, self.items = backbone.eval(), config, items
        self._number = dict(zip(items["item_id"], items["item_idx"], strict=True))
        self._titles = ["", *items["title"]]
        self._ids = ["", *items["item_id"]]
        self._categories = torch.from_numpy(leaf_categories(items)).long()
        self.index, self.filters_seen, self.about = index, filters_seen, about or {}
        self.texts = texts
        self.interest_names = list(interest_names)
        """A name for each interest, the same for all users; empty for models without semantic prototypes."""
        # Requests work on copies of the attributes, which share these.
        self._masks: Cache[Bool[Tensor, " I_plus_1"] | None] = Cache(_MASKS_KEPT)
        self._lengths: Cache[Float[np.ndarray, " I"]] = Cache(1)
        self._growing = threading.Lock()

    @property
    def n_interests(self) -> int:
        """K: the number of interest lists that `recommend_by_interest` gives."""
        with torch.inference_mode():
            return self.backbone(torch.zeros(1, 1, dtype=torch.long)).vectors.shape[1]

    def with_columns(self, table: polars.DataFrame) -> "Recommender":
        """The same model with further columns of the items to filter by, such as stock.

        Args:
            table: keyed by `item_id`, see `eimf.serving.filters.join_columns`.

        Raises:
            DataError: `item_id` is missing or repeated.
        """
        other = copy.copy(self)
        other.items, other._masks = join_columns(self.items, table), Cache(_MASKS_KEPT)
        return other

    def add_items(self, items: Sequence[Mapping[str, Any]] | polars.DataFrame) -> None:
        """Add new items by their titles, without training; histories may have them from now on.

        They are kept in memory only: add them again after loading, until the next training includes them. A call
        copies the item vectors and the index, so add many items at once. Requests in other threads see all of them
        or none.

        Args:
            items: `item_id`, `title`, and optionally `categories` (a list, or a text with `|` between them), `brand`
                and other columns of the catalogue. With a text map of own vectors (`text.vectors`): `vector` instead of
                the title.

        Raises:
            ConfigError: the run keeps no text map, or the encoder cannot be loaded.
            DataError: an item is known already, has no title, or a wrong field.
        """
        with self._growing:  # two callers at once must not lose each other's items
            texts = self._texts("items")
            rows, own = read_new_items(items, self.items, own_vectors=not texts.text_map.encoder)
            if rows.is_empty():
                return
            with torch.inference_mode():
                backbone = self.backbone.with_items(torch.from_numpy(texts.items(rows, own)))
                vectors = backbone.item_vectors().float().numpy()[len(self._ids) :]
            table = polars.concat([self.items, rows])
            index = self.index.with_items(vectors)
            grown = Recommender(
                backbone, self.config, table, index, self.filters_seen, self.about, texts, self.interest_names
            )
            grown._growing = self._growing
            self.__dict__.update(grown.__dict__)  # in one step; requests work on a copy of the attributes

    def _texts(self, subject: str) -> Texts:
        """What gives vectors to texts.

        Raises:
            ConfigError: the run keeps no text map.
        """
        if self.texts is None:
            raise ConfigError(
                f"{subject}: need the run's text map, which {self.about.get('run', 'its folder')} does not have; make "
                f"it with: eimf map {self.about.get('run', 'RUN')}"
            )
        return self.texts

    def title(self, item_id: str | int) -> str:
        """Title of an item, empty where unknown.

        Raises:
            DataError: it is no id, see `eimf.serving.ids`.
        """
        return self._titles[self._number.get(id_text(item_id, "item_id") or "", 0)]

    def knows(self, item_id: str | int) -> bool:
        """Whether an item is in the catalogue.

        Raises:
            DataError: it is no id, see `eimf.serving.ids`.
        """
        return id_text(item_id, "item_id") in self._number

    def interests(self, history: History) -> torch.Tensor:
        """Interest vectors [K, D] of a history of item ids, oldest first; see `encode` for many.

        Raises:
            DataError: the history is empty or has an unknown item.
        """
        return self._extract(history).vectors[0].float()

    def item_vectors(self) -> Float[np.ndarray, "I D"]:
        """Vectors of all items, in the order of `items`."""
        with torch.inference_mode():
            return self.backbone.item_vectors().float().numpy()[1:]

    def encode(self, histories: Sequence[History], batch_size: int = 1024) -> Float[np.ndarray, "U K D"]:
        """Interest vectors of many histories of item ids, each oldest first.

        Raises:
            DataError: a history is empty or has an unknown item.
        """
        if isinstance(histories, str) or any(isinstance(history, str) for history in histories):
            raise DataError("histories: must be a list of lists of item ids, such as [['P1', 'P2'], ['P3']].")
        rows = Ragged.of([self._known(history) for history in histories])
        parts = [self._vectors(rows.select(part)) for part in torch.arange(len(histories)).split(batch_size)]
        if not len(histories):
            return np.zeros((0, self.n_interests, self.backbone.embed_dim), np.float32)
        return torch.cat(parts).numpy()

    def attended(self, history: History) -> list[int | None]:
        """For each item of a history, the interest (from 0) that has most of it; None for items before the last
        `data.max_len`, which the model does not see, and for models of several interests without routing weights.

        Raises:
            DataError: the history is empty or has an unknown item.
        """
        history = item_ids(history)
        interests = self._extract(history)
        recent = min(len(history), self.config.data.max_len)
        earlier: list[int | None] = [None] * (len(history) - recent)
        if (shares := interests.item_shares()) is not None:
            return earlier + shares[0, :, -recent:].argmax(dim=0).tolist()
        return earlier + [0 if interests.vectors.shape[1] == 1 else None] * recent

    def _extract(self, history: History) -> Interests:
        numbers = torch.tensor([self._known(history)])
        with torch.inference_mode():
            return self.backbone(numbers[:, -self.config.data.max_len :])

    def _vectors(self, histories: Ragged) -> Float[Tensor, "B K D"]:
        """Interest vectors of histories of numbers, none of them empty."""
        length = self.config.data.max_len
        width = min(length, max(histories.lengths.tolist(), default=1))
        padded = torch.zeros(len(histories.lengths), width, dtype=torch.long)
        from_end = histories.offsets[1:][histories.owners] - torch.arange(len(histories.values))
        recent = from_end <= width
        padded[histories.owners[recent], width - from_end[recent]] = histories.values[recent]
        with torch.inference_mode():
            return self.backbone(padded).vectors.float()

    def _known(self, history: History) -> list[int]:
        """Numbers of the items of a history that may be neither empty nor have unknown items."""
        numbers, _ = self.numbers(history, "error")
        if not numbers:
            raise DataError("history: is empty; give at least one item id, oldest first.")
        return numbers

    def numbers(
        self, history: History, unknown: Literal["skip", "error"] = "skip", subject: str = "history"
    ) -> tuple[list[int], int]:
        """Numbers of the known items of a history, and how many unknown ones were left out; missing ids are unknown.

        Raises:
            DataError: the history is no list of ids (see `eimf.serving.ids`), or has an unknown item and `unknown` is
                `error`.
        """
        ids = item_ids(history, subject)
        numbers = [self._number[item] for item in ids if item in self._number]
        if unknown == "error" and len(numbers) < len(ids):
            missing = [item or "" for item in ids if item not in self._number]
            known = ", ".join(map(repr, self.items["item_id"].head(3)))
            raise DataError(
                f"{subject}: {', '.join(map(repr, missing[:5]))} not in the catalogue of {len(self.items)} items that "
                f"the model was trained on (its ids look like {known}); leave unknown items out."
            )
        return numbers, len(ids) - len(numbers)

    def recommend(
        self,
        history: History,
        n: int = 10,
        *,
        filter_seen: bool | None = None,
        diversity: float = 0.0,
        allow: Conditions = None,
        deny: Conditions = None,
        merge: Literal["best", "proportional"] = "best",
        unknown: Literal["skip", "error"] = "skip",
        words: Sequence[str] = (),
    ) -> Recommendations:
        """The n best items for a history, over all interests.

        Args:
            history: item ids, oldest first; the user need not have been in the training data. Without any known item,
                and without words, the list is of the most popular items of the training data, and marked (`fallback`).
            n, filter_seen, diversity, allow, deny, merge, unknown, words: see `ListOptions`.

        Raises:
            ConfigError, DataError: see the message.
        """
        options = ListOptions(n, filter_seen, allow, deny, merge, diversity, unknown=unknown, words=words)
        return self.answer([history], options)[0][0]

    def recommend_by_interest(
        self,
        history: History,
        n: int = 10,
        *,
        filter_seen: bool | None = None,
        allow: Conditions = None,
        deny: Conditions = None,
        unknown: Literal["skip", "error"] = "skip",
        words: Sequence[str] = (),
    ) -> list[Recommendations]:
        """The n best items of each interest; an item may be in several lists. A history without any known item gives
        the lists of the words, or one list, of popular items.

        Raises:
            ConfigError, DataError: see the message.
        """
        options = ListOptions(n, filter_seen, allow, deny, by_interest=True, unknown=unknown, words=words)
        return self.answer([history], options)[0]

    def answer(self, histories: Sequence[History], options: ListOptions) -> list[list[Recommendations]]:
        """Lists for many histories at once: for each, one merged list, or one for each interest.

        Raises:
            ConfigError, DataError: see the message.
        """
        model = copy.copy(self)  # items may be added meanwhile
        known = [model.numbers(history, options.unknown) for history in histories]
        ranked = model.rank(Ragged.of([numbers for numbers, _ in known]), options)
        rows = len(ranked.items) // max(1, len(known))
        own = (model.interest_names + [""] * rows)[: rows - len(options.words)] if options.by_interest else []
        names = [*own, *options.words]
        lists = []
        for row, (numbers, skipped) in enumerate(known):
            places = range(row * rows, (row + 1) * rows)
            if not numbers:  # the lists of the words are the last ones; popular items are in the first
                places = places[-len(options.words) :] if options.words and options.by_interest else places[:1]
            popular = not numbers and not options.words
            found = [Recommendations(model._named(ranked, place), skipped, popular) for place in places]
            if options.by_interest and not popular:
                for one, place in zip(found, places, strict=True):
                    one.name = names[place - row * rows]
            lists.append(found)
        return lists

    def rank(self, histories: Ragged, options: ListOptions) -> Retrieved:
        """Ranked numbers of items for histories of numbers; the step between `numbers` and names.

        Returns:
            A row of min(n, I) places for each history; with `options.by_interest`, K + S rows for each. Of an empty
            history, the first K of them have no items; without words, the first has the most popular ones, with the
            interest `POPULAR`.

        Raises:
            ConfigError, DataError: see the message.
        """
        allowed = self._allowed(options)
        options = replace(options, n=min(options.n, len(self.items)))
        full = histories.lengths > 0
        words = self._texts("words").interests(options.words) if options.words else None
        if bool(full.all()) and len(full):
            return self._retrieve(self._queries(histories, words), histories, options, allowed)
        count, extra = self.n_interests, len(options.words)
        rows = count + extra if options.by_interest else 1
        empty = torch.zeros(len(full), rows, options.n)
        whole = Retrieved(empty.long(), empty + NEVER, empty.long())
        if bool(full.any()):
            some = histories.select(full.nonzero()[:, 0])
            found = self._retrieve(self._queries(some, words), some, options, allowed)
            for values, new in zip(whole, found, strict=True):
                values[full] = new.view(-1, rows, options.n)
        if not bool(full.all()) and words is not None:
            none = histories.select((~full).nonzero()[:, 0])
            found = self._retrieve(words.expand(len(none.lengths), -1, -1), none, options, allowed)
            found = found._replace(interest=found.interest + count)
            for values, new in zip(whole, found, strict=True):
                values[~full, count if options.by_interest else 0 :] = new.view(len(none.lengths), -1, options.n)
        elif not bool(full.all()):
            items, counts = self._popular(options.n, allowed)
            whole.items[~full, 0], whole.scores[~full, 0], whole.interest[~full, 0] = items, counts, POPULAR
        return Retrieved(*(values.flatten(0, 1) for values in whole))

    def _queries(self, histories: Ragged, words: Float[Tensor, "S D"] | None) -> Float[Tensor, "B K_plus_S D"]:
        """The interest vectors of histories, none of them empty, and of words."""
        vectors = self._vectors(histories)
        return vectors if words is None else self._texts("words").beside(vectors, words)

    def _retrieve(
        self,
        vectors: Float[Tensor, "B K D"],
        histories: Ragged,
        options: ListOptions,
        allowed: Bool[Tensor, " I_plus_1"] | None,
    ) -> Retrieved:
        """Lists for interest vectors, see `rank`.

        Args:
            histories: what the users have, left out if the options say so.
        """
        n = options.n
        seen = histories if (self.filters_seen if options.filter_seen is None else options.filter_seen) else None
        if options.by_interest or options.merge == "proportional":
            items, scores = retrieve_each(self.index, vectors, n, seen, allowed)
            if options.merge == "proportional":
                return fill_proportionally(items, scores, n)
            interest = torch.arange(items.shape[1])[:, None].expand_as(items)
            return Retrieved(items.flatten(0, 1), scores.flatten(0, 1), interest.flatten(0, 1))
        pool = controlled_pool(n, vectors.shape[1]) if options.diversity else 0
        ranked = retrieve(self.index, vectors, n, seen, pool, allowed)
        if options.diversity:
            ranked = rerank_diverse(ranked, self._categories, n, options.diversity)
        short = n - ranked.items.shape[1]
        if short > 0:  # the whole catalogue was not enough for the choice of diverse items
            pad = torch.nn.functional.pad
            ranked = Retrieved(
                pad(ranked.items, (0, short)),
                pad(ranked.scores, (0, short), value=NEVER),
                pad(ranked.interest, (0, short)),
            )
        return ranked

    def _allowed(self, options: ListOptions) -> Bool[Tensor, " I_plus_1"] | None:
        """The items that the options allow; the last few masks are kept."""
        key = filter_key(options.allow, options.deny)
        return self._masks.get(key, lambda: allowed_items(self.items, options.allow, options.deny))

    def _popular(self, n: int, allowed: Bool[Tensor, " I_plus_1"] | None) -> tuple[Tensor, Tensor]:
        """The n most popular items of the training data, and their counts; 0 and -inf where there are no more."""
        if "count" not in self.items.columns:
            raise DataError(
                "history: has no known item, and this run does not have the items' counts for a list of popular ones "
                "(it was trained by an earlier version); give a known item, or train again from its config.yaml."
            )
        counts = torch.from_numpy(self.items["count"].to_numpy().astype(np.float32))
        if allowed is not None:
            counts = counts.masked_fill(~allowed[1:], NEVER)
        order = counts.sort(descending=True, stable=True).indices[:n]
        short = n - len(order)
        best = counts[order]
        items = (order + 1).masked_fill(best == NEVER, 0)
        return torch.nn.functional.pad(items, (0, short)), torch.nn.functional.pad(best, (0, short), value=NEVER)

    def similar_items(
        self, item_id: str | int, n: int = 10, *, allow: Conditions = None, deny: Conditions = None
    ) -> Recommendations:
        """The n items whose vectors have the largest cosine with that of an item, which is left out. Exact.

        Raises:
            ConfigError: see `ListOptions`; or the model has no item vectors.
            DataError: the item is not in the catalogue.
        """
        options = ListOptions(n, allow=allow, deny=deny)
        model = copy.copy(self)  # items may be added meanwhile
        return model._similar(item_id, options)

    def _similar(self, item_id: str | int, options: ListOptions) -> Recommendations:
        allowed = self._allowed(options)
        row = self.numbers([item_id], "error", "item_id")[0][0] - 1
        cosines = self._similarities(row)
        cosines[row] = NEVER
        if allowed is not None:
            cosines.masked_fill_(~allowed[1:], NEVER)
        best = cosines.topk(min(options.n, len(cosines)))
        items = (best.indices + 1).masked_fill(best.values == NEVER, 0)
        return Recommendations(
            self._named(Retrieved(items[None], best.values[None], torch.full_like(items, POPULAR)[None]), 0)
        )

    def _similarities(self, row: int) -> Float[Tensor, " I"]:
        """Cosine of the vectors of all items with that of the item in a row of `items`.

        A model without item vectors (item_knn, ease) gives its own similarities.
        """
        vectors = self.item_vectors()
        if vectors.shape[1] == 0:
            with torch.inference_mode():
                scores = self.backbone(torch.tensor([[row + 1]])).vectors[0, 0, 1:].float()
            return scores.clone()  # outside of inference mode, so that it may be changed
        lengths = self._lengths.get((), lambda: np.linalg.norm(vectors, axis=1).clip(1e-12))
        return torch.from_numpy(vectors @ vectors[row] / (lengths * lengths[row]))

    def _named(self, ranked: Retrieved, row: int) -> list[Recommendation]:
        rows = zip(*(values[row].tolist() for values in ranked), strict=True)
        return [
            Recommendation(self._ids[item], self._titles[item], score, k if k != POPULAR else None)
            for item, score, k in rows
            if item
        ]


def load(run: str | PathLike[str], columns: str | PathLike[str] | polars.DataFrame | None = None) -> Recommender:
    """Load a run folder for serving; needs nothing but the folder. That of several versions stands for the newest.

    Args:
        columns: a table (or its file: CSV, Parquet, JSON lines) keyed by `item_id`, with further columns to filter by.

    Raises:
        ArtifactError: the folder is not a finished run, or its files are of different runs.
        DataError: the table cannot be read, or its `item_id` is missing or repeated.
    """
    folder = current_run(Path(run))
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
        vectors = backbone.item_vectors().float().numpy()
    index = open_index(folder, vectors)
    text_map = read_text_map(folder)
    texts = Texts(text_map, vectors) if text_map is not None else None
    about = {name: origin.get(name, "") for name in ("data_digest", "package_version")}
    about |= {"run": str(folder), "checkpoint_sha256": sha256_file(folder / BEST)}
    names = [phrases[0] if phrases else "" for phrases in read_interest_names(folder)]
    model = Recommender(backbone, config, items, index, origin.get("filter_seen", True), about, texts, names)
    if columns is None:
        return model
    return model.with_columns(columns if isinstance(columns, polars.DataFrame) else read_columns(Path(columns)))
