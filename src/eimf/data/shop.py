"""Writes a simulated shop of any size as Parquet, one part at a time, to test scaling."""

import logging
from pathlib import Path

import numpy as np

from eimf.core.artifacts import new_artifact
from eimf.core.errors import DataError
from eimf.core.files import write_parquet
from eimf.data.prepare import join_parts
from eimf.data.sources import demo
from eimf.data.sources.demo import DemoConfig

log = logging.getLogger(__name__)

USERS_AT_A_TIME = 100_000


def write_shop(folder: Path, config: DemoConfig, users_at_a_time: int = USERS_AT_A_TIME) -> None:
    """Write `interactions.parquet` (user_id, item_id, timestamp) and `items.parquet` of a simulated shop.

    It needs memory for `users_at_a_time` users and the catalogue. The same configuration gives the same files.

    Raises:
        DataError: the folder exists.
    """
    if folder.exists():
        raise DataError(f"{folder}: exists already; name a new folder.")
    rng = np.random.default_rng(config.seed)
    shop = demo.furnish(rng, config.n_items)
    with new_artifact(folder) as work:
        total = 0
        parts = work / "parts"
        parts.mkdir()
        for first in range(0, config.n_users, users_at_a_time):
            count = min(users_at_a_time, config.n_users - first)
            rows = demo.browse(np.random.default_rng([config.seed, first]), shop, count, config.mean_length, first)
            write_parquet(rows.drop("interest"), parts / f"{first:012d}.parquet")
            total += len(rows)
            log.info(f"  {first + count:,} of {config.n_users:,} users, {total:,} interactions")
        join_parts(parts, work / "interactions.parquet")
        write_parquet(demo.describe(rng, shop), work / "items.parquet")
