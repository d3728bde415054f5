"""Predicts for many users into one file: in parts of bounded memory, and resumable after a kill."""

import json
import logging
import shutil
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars
import torch
from tqdm import tqdm

from eimf.core.errors import ConfigError, DataError
from eimf.core.files import lock, make_folder, replacing, sha256_json, write_json_atomic
from eimf.core.version import VERSION
from eimf.evaluation.retrieval import Retrieved
from eimf.serving.filters import filter_key
from eimf.serving.histories import Chunk, FileHistories, PreparedHistories
from eimf.serving.recommender import POPULAR, ListOptions, Recommender

log = logging.getLogger(__name__)

ENDINGS = (".parquet", ".csv", ".jsonl")
USERS, ROWS = 2**14, 2**20
"""Most users, and rows of their lists, that are in memory at a time, and in a part."""
BATCH, NUMBERS = 2**10, 2**24
"""Most histories, and numbers of their interest vectors, that are searched at once."""


class Prediction(NamedTuple):
    """What `predict` has written."""

    path: Path
    users: int
    rows: int
    skipped: int
    """Items of the histories that are not in the catalogue."""
    fallbacks: int
    """Users without a known item, who got the most popular items."""


def predict(
    model: Recommender, histories: PreparedHistories | FileHistories, to: Path, options: ListOptions | None = None
) -> Prediction:
    """Write the lists of many users to a file with the columns `user_id, rank, item_id, score, interest`.

    `rank` counts from 1; with `options.by_interest`, within each interest. `interest` is null in lists of popular
    items. The file appears when it is complete. Parts are kept beside it, in `.<name>.parts`: the same call continues
    after the last whole part, and writes the same file as without the interruption.

    Args:
        to: a file that ends in .parquet, .csv or .jsonl.
        options: of all lists.

    Raises:
        ConfigError: the file has another ending, is a folder, or is that of the histories.
        DataError: the histories cannot be read, or have unknown items and `options.unknown` is `error`.
        ArtifactError: the file cannot be written, or another process is writing it.
    """
    options = options or ListOptions()
    if to.suffix not in ENDINGS:
        raise ConfigError(f"{to}: must end in {', '.join(ENDINGS)}.")
    if to.exists() and not to.is_file():
        raise ConfigError(f"{to}: is no regular file, so it is not replaced; choose another path.")
    if isinstance(histories, FileHistories) and to.resolve() == histories.path.resolve():
        raise ConfigError(f"{to}: is the file of the histories; write the lists to another one.")
    parts = to.with_name(f".{to.name}.parts")
    make_folder(parts)
    with lock(parts / ".lock", f"another process writes {to}; wait for it or end it."):
        size = _users_of_a_part(model, options)
        _start(parts, _plan(model, histories, options, size), size)
        users = skipped = fallbacks = 0
        with tqdm(total=histories.n_users, unit=" users", desc=to.name, disable=None) as progress:
            for number, chunk in enumerate(histories.chunks(size)):
                if chunk.skipped and options.unknown == "error":
                    raise DataError(f"histories: {chunk.skipped:,} items are not in the catalogue; leave them out.")
                part = parts / f"{number:06}.parquet"
                if not part.is_file():
                    table = _lists(model, chunk, options)
                    with replacing(part) as work:
                        table.write_parquet(work)
                users += len(chunk.user_ids)
                skipped += chunk.skipped
                fallbacks += int((chunk.histories.lengths == 0).sum())
                progress.update(len(chunk.user_ids))
        whole = polars.scan_parquet(sorted(parts.glob("*.parquet"))) if users else _lists(model, None, options).lazy()
        with replacing(to) as work:
            if to.suffix == ".parquet":
                whole.sink_parquet(work)
            elif to.suffix == ".csv":
                whole.sink_csv(work)
            else:
                whole.sink_ndjson(work)
        rows = whole.select(polars.len()).collect(engine="streaming").item()
    shutil.rmtree(parts, ignore_errors=True)
    return Prediction(to, users, rows, skipped, fallbacks)


def _users_of_a_part(model: Recommender, options: ListOptions) -> int:
    lists = model.n_interests if options.by_interest else 1
    return max(1, min(USERS, ROWS // (lists * min(options.n, len(model.items)))))


def _plan(
    model: Recommender, histories: PreparedHistories | FileHistories, options: ListOptions, size: int
) -> dict[str, str]:
    """What shapes the parts: parts of another plan are not continued."""
    items = str(model.items.hash_rows().sum())
    conditions = repr(filter_key(options.allow, options.deny))  # whole and in one order, unlike the text of a set
    values = {one.name: getattr(options, one.name) for one in fields(options) if one.name not in ("allow", "deny")}
    values |= {"words": list(options.words), "conditions": conditions}
    whole = {"run": model.about, "items": items, "options": values, "histories": histories.about}
    return {"plan": sha256_json(whole | {"users": size, "version": VERSION})}


def _start(parts: Path, plan: dict[str, str], size: int) -> None:
    """Keep the parts of an interrupted call with the same plan; remove others."""
    about = parts / "plan.json"
    try:
        same = json.loads(about.read_text()) == plan
    except (OSError, ValueError):
        same = False
    kept = sorted(parts.glob("*.parquet"))
    if same and kept:
        log.info(f"continues after {len(kept)} parts of {size:,} users in {parts}")
    elif not same:
        if kept:
            log.info(f"{parts} has parts of other predictions; they are removed")
        for path in kept:
            path.unlink()
        write_json_atomic(about, plan)


def _lists(model: Recommender, chunk: Chunk | None, options: ListOptions) -> polars.DataFrame:
    """The rows of some users."""
    found: list[Retrieved] = []
    users = 0 if chunk is None else len(chunk.user_ids)
    if chunk is not None:
        batch = max(1, min(BATCH, NUMBERS // (model.n_interests * max(1, model.backbone.embed_dim))))
        for rows in torch.arange(users).split(batch):
            found.append(model.rank(chunk.histories.select(rows), options))
    items, scores, interest = (
        np.concatenate([getattr(one, name).numpy() for one in found]) if found else np.zeros((0, 1))
        for name in Retrieved._fields
    )
    width = items.shape[1]
    listed = items.ravel() > 0
    lists_of_user = len(items) // max(1, users)
    place = np.repeat(np.arange(users, dtype=np.uint32), lists_of_user * width)[listed]
    ids = chunk.user_ids if chunk is not None else polars.Series("user_id", [], polars.String)
    table = polars.DataFrame(
        {
            "user_id": ids.gather(place),
            "rank": np.tile(np.arange(1, width + 1, dtype=np.int32), len(items))[listed],
            "item_id": model.items["item_id"].gather(items.ravel()[listed].astype(np.uint32) - 1),
            "score": scores.ravel()[listed].astype(np.float32),
            "interest": interest.ravel()[listed].astype(np.int16),
        }
    )
    return table.with_columns(
        polars.when(polars.col("interest") != POPULAR).then(polars.col("interest")).alias("interest")
    )
