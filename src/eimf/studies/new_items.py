"""How well new items are recommended that a run was not trained on: `python -m eimf.studies.new_items DATASET FOLDER`.

A seeded share of the items is removed from the data before anything is trained. A run is trained on the rest, and the
removed items are added by their titles (`Recommender.add_items`). Held-out users are then asked about: their
interactions with the new items, after the context that the model sees, are the targets.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars

from eimf.config.load import load as load_config
from eimf.core.errors import run_main
from eimf.core.files import write_json_atomic
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.data.splits import Holdout, split_sequences
from eimf.data.text import encode_items
from eimf.runs.folder import ORIGIN, check_data, read_checkpoint
from eimf.runs.text_map import make_text_map, read_text_map
from eimf.serving.recommender import load
from eimf.studies.part import part_settings, prepare_whole, write_tables
from eimf.training.train import train

SHARE = 0.05


def remove_items(prepared: Prepared, folder: Path, share: float = SHARE, seed: int = 0) -> None:
    """Write `interactions.parquet` and `items.parquet` without a seeded share of the items, which are in
    `new_items.parquet` and `new_interactions.parquet`.

    Raises:
        ArtifactError: the disk refuses.
    """
    chosen = np.random.default_rng(seed).permutation(prepared.n_items) < round(share * prepared.n_items)
    rows, texts = prepared.interactions(), prepared.items.drop("item_idx")
    new = chosen[prepared.sequences.items - 1]
    tables = {"interactions": rows.filter(~new), "new_interactions": rows.filter(new)}
    write_tables(folder, tables | {"items": texts.filter(~chosen), "new_items": texts.filter(chosen)})


class Question(NamedTuple):
    """A held-out user with interactions with new items after the context."""

    context: list[str]
    targets: set[str]


def read_questions(prepared: Prepared, held: Holdout, later: polars.DataFrame) -> list[Question]:
    """The held-out users of the reduced data, and their interactions with new items from the end of the context on.

    Args:
        later: the interactions with new items: `user_id, item_id, timestamp`.
    """
    of_user = {user: group for (user,), group in later.group_by("user_id")}
    sequences, ids, questions = prepared.sequences, prepared.items["item_id"], []
    for user, start, cut in zip(held.user_idx, held.start, held.cut, strict=True):
        group = of_user.get(prepared.user_ids[int(user)])
        if group is None:
            continue
        targets = set(group.filter(polars.col("timestamp") >= int(sequences.timestamps[cut - 1]))["item_id"])
        if targets:
            questions.append(Question(ids.gather(sequences.items[start:cut] - 1).to_list(), targets))
    return questions


def measure(run: Path, folder: Path, n: int = 50, seed: int = 0) -> dict[str, Any]:
    """Recall of the new items in the top n of all items and of the new items alone, by method and part of the split.

    Args:
        run: trained on the reduced data, with a text map.
        folder: of `remove_items`.
        seed: of the random vectors.

    Raises:
        EimfError: the files are of different data, or the run keeps no text map.
    """
    model, checkpoint = load(run), read_checkpoint(run)
    config = model.config
    prepared = prepare(config.dataset, config.data.root, checkpoint[ORIGIN]["data_digest"])
    check_data(checkpoint, prepared, run)
    split = split_sequences(prepared.sequences, config.split)
    new = polars.read_parquet(folder / "new_items.parquet").filter(polars.col("title") != "")
    later = polars.read_parquet(folder / "new_interactions.parquet")
    later = later.filter(polars.col("item_id").is_in(new["item_id"].implode()))
    known, counts, leaf = len(model.items), model.items["count"].to_numpy(), model.items["categories"].list.last()
    model.add_items(new)
    table, ids = model.item_vectors(), model.items["item_id"].to_list()
    number = {item: place for place, item in enumerate(ids)}
    titles = encode_items(model.items, config.text.encoder, config.data.root).vectors[1:]

    vectors = {"text map": table}
    rng = np.random.default_rng(seed)
    vectors["random vectors"] = table.copy()
    vectors["random vectors"][known:] = table[rng.integers(0, known, size=len(new))]  # those of random known items
    nearest = (titles[known:] @ titles[:known].T).argmax(axis=1)
    vectors["vector of the nearest title"] = table.copy()
    vectors["vector of the nearest title"][known:] = table[nearest]
    means = polars.DataFrame({"leaf": leaf, "count": counts}).drop_nulls().group_by("leaf").agg(polars.mean("count"))
    mean_of = dict(means.iter_rows())
    popular = [mean_of.get(one, 0.0) for one in model.items["categories"].list.last()[known:]]
    popularity = np.concatenate([counts, np.array(popular)]).astype(np.float64)

    def scores(method: str, question: Question) -> np.ndarray:
        rows = [number[item] for item in question.context]
        if method == "popularity in the category":
            return popularity.copy()
        if method == "nearest titles":
            return (titles @ titles[rows].T).max(axis=1).astype(np.float64)
        return (vectors[method] @ model.encode([question.context])[0].T).max(axis=1).astype(np.float64)

    def recall(method: str, questions: Sequence[Question], first: int) -> float:
        shares = []
        for question in questions:
            found = scores(method, question)
            found[[number[item] for item in question.context]] = -np.inf
            found[:first] = -np.inf
            top = {ids[place] for place in np.argsort(-found, kind="stable")[:n]}
            shares.append(len(top & question.targets) / len(question.targets))
        return float(np.mean(shares)) if shares else float("nan")

    parts = {"val": split.validation, "test": split.test}
    questions = {part: read_questions(prepared, held, later) for part, held in parts.items()}
    methods = (*vectors, "popularity in the category", "nearest titles")
    return {
        "run": str(run),
        "n": n,
        "items": known,
        "new_items": len(new),
        "users": {part: len(found) for part, found in questions.items()},
        "recall": {
            name: {
                part: {"all items": recall(name, found, 0), "new items alone": recall(name, found, known)}
                for part, found in questions.items()
            }
            for name in methods
        },
    }


def main() -> None:
    """Remove items, train, fit the map, measure; what exists already is used."""
    parser = argparse.ArgumentParser(prog="python -m eimf.studies.new_items", description=__doc__)
    parser.add_argument("dataset", metavar="DATASET", help="name of experiments/datasets/NAME.yaml")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where data, run and result are kept")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="of the training, such as loss=sampled_softmax"
    )
    parser.add_argument("--run", metavar="RUN", type=Path, help="a run on FOLDER's data that exists already")
    parser.add_argument("-n", type=int, default=50, help="length of the lists (default 50)")
    options = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder, run = options.folder, options.run
    if not (folder / "new_items.parquet").is_file():
        remove_items(prepare_whole(options.dataset, options.settings), folder)
    if run is None:
        run = train(load_config(None, [*part_settings(folder, f"{options.dataset}-reduced"), *options.settings])).folder
    if read_text_map(run) is None:
        make_text_map(run)
    found = measure(run, folder, options.n)
    columns = [(part, where) for part in found["users"] for where in ("all items", "new items alone")]
    print(f"| recall@{options.n} of new items | {' | '.join(f'{part}, {where}' for part, where in columns)} |")
    print("| --- |" + " --- |" * len(columns))
    for name, values in found["recall"].items():
        print(f"| {name} | {' | '.join(f'{values[part][where]:.4f}' for part, where in columns)} |")
    print(f"users: {found['users']}, items: {found['items']:,}, new: {found['new_items']:,}")
    write_json_atomic(folder / "new_items.json", found)


if __name__ == "__main__":
    run_main(main)
