"""Texts in the space of a run's vectors: interests in words, and new items by title.

Shapes: B users, K interests of their behaviour, S interests in words, D dimensions, N new items.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars
import torch
from jaxtyping import Float
from torch import Tensor

from eimf.core.errors import ConfigError, DataError
from eimf.data.text import item_texts, open_encoder
from eimf.runs.text_map import TextMap
from eimf.serving.ids import id_text, python_value

VECTOR = "vector"
"""Field of a new item with its own vector, for maps of own vectors (`text.vectors`)."""


class Texts:
    """Gives vectors to words and to new items, by a run's text map. The encoder is loaded at its first use.

    Args:
        text_map: see `eimf.runs.text_map`.
        items: item vectors of the run's catalogue, row 0 padding.
    """

    def __init__(self, text_map: TextMap, items: Float[np.ndarray, "I_plus_1 D"]) -> None:
        self.text_map = text_map
        self._items, self._lock = items, threading.Lock()

    def interests(self, words: Sequence[str]) -> Float[Tensor, "S D"]:
        """An interest vector for each phrase.

        Raises:
            DataError: `words` is no list of phrases.
            ConfigError: the map was fitted on vectors of a file, or the encoder cannot be loaded.
        """
        check_words(words)
        return torch.from_numpy(self.text_map(self._encode(list(words))))

    def beside(self, behaviour: Float[Tensor, "B K D"], words: Float[Tensor, "S D"]) -> Float[Tensor, "B K_plus_S D"]:
        """The interests of behaviour, and those in words after them.

        Vectors of words are shorter than trained ones. Each is scaled so that its scores over the catalogue have the
        same standard deviation as those of the user's interests have on average. Then both compete as equals.
        """
        wanted = self._spread(behaviour).mean(dim=1)
        scale = wanted[:, None] / self._spread(words[None]).clamp(min=1e-12)
        return torch.cat([behaviour, scale[:, :, None] * words], dim=1)

    def items(self, items: polars.DataFrame, vectors: Float[np.ndarray, "N T"] | None) -> Float[np.ndarray, "N D"]:
        """Item vectors of new items, all as long as a trained item is on average.

        The map's own vectors are shorter (ridge regression shrinks them), so that no list would have a new item.

        Args:
            items: `title, categories, brand`.
            vectors: the items' own vectors, if the map was fitted on such.

        Raises:
            ConfigError: the encoder cannot be loaded.
        """
        if vectors is None:
            made = self.text_map(self._encode(item_texts(items)))
        else:
            made = self.text_map(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
        length = np.linalg.norm(self._items[1:], axis=1).mean()
        return made * (length / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-12))

    def _spread(self, interests: Float[Tensor, "B K D"]) -> Float[Tensor, "B K"]:
        """Standard deviation of an interest's scores over the catalogue."""
        return torch.einsum("bkd,de,bke->bk", interests, self._covariance, interests).clamp(min=0).sqrt()

    @cached_property
    def _covariance(self) -> Float[Tensor, "D D"]:
        rows = torch.from_numpy(self._items[1:])
        return (rows.T @ rows) / len(rows) - torch.outer(rows.mean(dim=0), rows.mean(dim=0))

    def _encode(self, texts: list[str]) -> Float[np.ndarray, "N T"]:
        if not self.text_map.encoder:
            raise ConfigError(
                "words: need a sentence encoder, but this run's text map was fitted on vectors of a file "
                "(text.vectors); fit it on the encoder's: eimf map RUN text.vectors=''"
            )
        with self._lock:  # the first caller loads the encoder
            return self._encoder(texts)

    @cached_property
    def _encoder(self) -> Any:
        return open_encoder(self.text_map.encoder)


def check_words(words: Sequence[str]) -> None:
    """Refuse what is no list of phrases.

    Raises:
        DataError: see above.
    """
    phrases = isinstance(words, Sequence) and not isinstance(words, str | bytes)
    if not phrases or not all(isinstance(one, str) and one.strip() for one in words):
        raise DataError(
            f"words: must be a list of phrases, such as ['oil-free sunscreen'], is {str(words)[:80]!r}; give texts "
            "that are not empty."
        )
    for one in words:
        _check_whole([one], f"words: {one[:80]!r} is no text, it")


def _check_whole(values: Iterable[Any], subject: str) -> None:
    """Refuse texts with half of a surrogate pair, which JSON can name, but neither tables nor tokenisers can read."""
    for value in values:
        try:
            _ = value.encode() if isinstance(value, str) else value
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise DataError(f"{subject} has half a character ({half!a}); send the whole one.") from None


def read_new_items(
    items: Sequence[Mapping[str, Any]] | polars.DataFrame, catalogue: polars.DataFrame, own_vectors: bool
) -> tuple[polars.DataFrame, Float[np.ndarray, "N T"] | None]:
    """Rows of new items in the columns of the catalogue, numbered after its items, and their own vectors.

    Args:
        items: `item_id`, `title`, and optionally `categories` (a list, or a text with `|` between them), `brand`,
            `vector`, and other columns of the catalogue.
        own_vectors: whether each needs a `vector`; if false, each needs a title.

    Raises:
        DataError: a field is missing, unknown or of the wrong type, or an id is repeated or in the catalogue.
    """
    given = items.to_dicts() if isinstance(items, polars.DataFrame) else [*items]
    columns = [name for name in catalogue.columns if name not in ("item_idx", "count")]
    rows = [_read_new_item(row, columns, own_vectors) for row in given]
    seen = set(catalogue["item_id"].filter(catalogue["item_id"].is_in([row["item_id"] for row in rows])))
    for row in rows:
        if row["item_id"] in seen:
            raise DataError(
                f"items: {row['item_id']!r} is in the catalogue already, or twice in the call; leave it out."
            )
        seen.add(row["item_id"])
    try:
        table = polars.DataFrame(
            {name: [row.get(name) for row in rows] for name in columns},
            schema_overrides={name: catalogue.schema[name] for name in columns},
        )
        vectors = np.array([row[VECTOR] for row in rows], np.float32) if own_vectors else None
    except (TypeError, ValueError, OverflowError, polars.exceptions.PolarsError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"items: a value does not fit its column ({reason}); use the catalogue's types.") from None
    if vectors is not None and (vectors.ndim != 2 or not np.isfinite(vectors).all()):
        raise DataError(
            "items: a 'vector' must be a list of finite numbers, as long as those of text.vectors; mend it."
        )
    numbers = np.arange(len(catalogue) + 1, len(catalogue) + 1 + len(rows), dtype=np.int32)
    table = table.with_columns(polars.Series("item_idx", numbers))
    if "count" in catalogue.columns:
        table = table.with_columns(polars.lit(0, dtype=catalogue.schema["count"]).alias("count"))
    return table.select(catalogue.columns), vectors


def _read_new_item(row: Any, columns: Sequence[str], own_vectors: bool) -> dict[str, Any]:
    """The fields of a new item, checked: its id as a text, its categories as a list.

    Raises:
        DataError: see `read_new_items`.
    """
    if isinstance(row, Mapping):
        categories = row.get("categories")
        listed = categories if isinstance(categories, list | tuple) else ()
        _check_whole([*row, *row.values(), *listed], "items: a text")
    item_id = id_text(row.get("item_id"), "items: item_id") if isinstance(row, Mapping) else None
    if item_id is None:
        raise DataError(f"items: each must be a mapping with an 'item_id', one is {str(row)[:100]}; give its id.")
    name = f"items: {item_id!r}"
    if unknown := [key for key in row if key not in (*columns, VECTOR)]:
        raise DataError(f"{name}: has the field {unknown[0]!r}; it may have {', '.join([*columns, VECTOR])}.")
    if VECTOR in row and not own_vectors:
        raise DataError(f"{name}: has a vector, but this run's text map is of titles; leave it out.")
    for field in ("title", "brand"):
        if not isinstance(row.get(field), str | None):
            raise DataError(f"{name}: {field} must be a text, is {repr(row[field])[:80]}; give a text.")
    needed = VECTOR if own_vectors else "title"
    if row.get(needed) is None or (needed == "title" and not row["title"].strip()):
        raise DataError(f"{name}: needs a {needed}, from which its item vector is made; give it.")
    categories = row.get("categories")
    if isinstance(categories, str):  # as in the table of items of a data set
        categories = [part.strip() for part in categories.split("|") if part.strip()]
    categories = [] if categories is None else python_value(categories)
    if not isinstance(categories, list | tuple) or not all(isinstance(one, str) for one in categories):
        raise DataError(
            f"{name}: categories must be a list of texts, or a text with '|' between them, is "
            f"{repr(categories)[:80]}; give such ones."
        )
    return {**row, "item_id": item_id, "title": row.get("title") or "", "categories": list(categories)}
