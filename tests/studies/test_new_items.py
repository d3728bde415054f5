"""The study of items that a run was not trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import polars

from eimf.config.schema import SplitConfig
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.data.sources.table import TableConfig
from eimf.data.splits import split_sequences
from eimf.studies.new_items import read_questions, remove_items


def test_removed_items_reach_no_training_and_are_asked_about_after_the_context(tiny: Prepared, tmp_path: Path) -> None:
    remove_items(tiny, tmp_path, share=0.2)
    parts = ("interactions", "new_interactions", "items", "new_items")
    rows, later, items, new = (polars.read_parquet(tmp_path / f"{name}.parquet") for name in parts)
    removed = set(new["item_id"])
    assert len(removed) == round(0.2 * tiny.n_items)
    assert not removed & set(rows["item_id"])
    assert not removed & set(items["item_id"])
    assert set(later["item_id"]) <= removed
    assert len(rows) + len(later) == len(tiny.sequences.items)

    files: dict[str, Any] = {kind: str(tmp_path / f"{kind}.parquet") for kind in ("interactions", "items")}
    data = prepare(TableConfig(name="reduced", source="table", user_min=1, item_min=1, **files), tmp_path / "data")
    held = split_sequences(data.sequences, SplitConfig(kind="user")).test
    questions = read_questions(data, held, later)
    assert questions
    times = dict(later.select(polars.col("user_id") + "/" + polars.col("item_id"), "timestamp").iter_rows())
    ids = data.items["item_id"]
    contexts = {
        tuple(ids.gather(data.sequences.items[start:cut] - 1)): (
            data.user_ids[int(user)],
            int(data.sequences.timestamps[cut - 1]),
        )
        for user, start, cut in zip(held.user_idx, held.start, held.cut, strict=True)
    }
    for question in questions:
        user, last = contexts[tuple(question.context)]
        assert question.targets <= removed
        assert all(times[f"{user}/{item}"] >= last for item in question.targets)


def test_the_choice_of_items_depends_on_the_seed_alone(tiny: Prepared, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        remove_items(tiny, tmp_path / name, seed=seed)
    chosen = [np.sort(polars.read_parquet(tmp_path / name / "new_items.parquet")["item_id"]) for name in "abc"]
    assert list(chosen[0]) == list(chosen[1]) != list(chosen[2])
