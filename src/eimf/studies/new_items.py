"""How well new items are recommended that a run was not trained on: `python -m eimf.studies.new_items DATASET FOLDER`.

A seeded share of the items is removed from the data before anything is trained. A run is trained on the rest, and the
removed items are added by their titles (`Recommender.add_items`). Held-out users are then asked about: their
interactions with the new items, after the context that the model sees, are the targets.
"""

import logging
from pathlib import Path

import numpy as np
import polars

from eimf.core.files import make_folder
from eimf.data.prepared import Prepared
from eimf.runs.results import write_frame

log = logging.getLogger(__name__)

SHARE = 0.05


def remove_items(prepared: Prepared, folder: Path, share: float = SHARE, seed: int = 0) -> None:
    """Write `interactions.parquet` and `items.parquet` without a seeded share of the items, which are in
    `new_items.parquet` and `new_interactions.parquet`.

    Raises:
        ArtifactError: the disk refuses.
    """
    make_folder(folder)
    sequences, items = prepared.sequences, prepared.items
    chosen = np.random.default_rng(seed).permutation(prepared.n_items) < round(share * prepared.n_items)
    owner = np.repeat(np.arange(sequences.n_users), sequences.lengths)
    rows = polars.DataFrame(
        {
            "user_id": prepared.user_ids.gather(owner),
            "item_id": items["item_id"].gather(sequences.items - 1),
            "timestamp": sequences.timestamps,
        }
    )
    new = chosen[sequences.items - 1]
    texts = items.drop("item_idx")
    for name, table in (
        ("interactions", rows.filter(~new)),
        ("new_interactions", rows.filter(new)),
        ("items", texts.filter(~chosen)),
        ("new_items", texts.filter(chosen)),
    ):
        write_frame(table, folder / f"{name}.parquet")
