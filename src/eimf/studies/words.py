"""What interests in words are worth: `python -m eimf.studies.words RUN LABELS --to FILE`.

LABELS has explicit interests of held-out users, made from the context alone. Their names are the words. The measure is
the mean share of a user's targets in the top n. Settings may be chosen by the validation users; the test users say what
they are worth. Items of the context are left out of all lists, also of those that do not use it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from eimf.core.errors import DataError, run_main
from eimf.core.files import write_json_atomic
from eimf.data.prepare import prepare
from eimf.data.splits import split_sequences
from eimf.data.text import encode_items, encode_texts
from eimf.explicit.tasks import make_adapter
from eimf.labels.source import read_labels
from eimf.runs.folder import ORIGIN, check_data, read_checkpoint
from eimf.serving.recommender import Recommender, load


class Asked(NamedTuple):
    """A held-out user with explicit interests."""

    context: list[int]
    """Numbers of the items that the model may see, oldest first."""
    targets: set[int]
    words: list[str]


def read_users(model: Recommender, run: Path, labels: Path) -> dict[str, list[Asked]]:
    """The labelled users by part of the split: `val` and `test`.

    Raises:
        ArtifactError: the run's data cannot be prepared now.
        DataError: no label is of a held-out user, or one saw a target.
    """
    config, checkpoint = model.config, read_checkpoint(run)
    prepared = prepare(config.dataset, config.data.root, checkpoint[ORIGIN]["data_digest"])
    check_data(checkpoint, prepared, run)
    split, items = split_sequences(prepared.sequences, config.split), prepared.sequences.items
    number = dict(zip(prepared.items["item_id"], prepared.items["item_idx"], strict=True))
    named = {label.user_id: label for label in read_labels(labels)}
    users: dict[str, list[Asked]] = {"val": [], "test": []}
    for part, held in (("val", split.validation), ("test", split.test)):
        for user, start, cut, end in zip(held.user_idx, held.start, held.cut, held.end, strict=True):
            label = named.get(prepared.user_ids[int(user)])
            if label is None or not label.interests:
                continue
            asked = Asked(
                items[start:cut].tolist(), set(items[cut:end].tolist()), [one.name for one in label.interests]
            )
            if not {number[item] for item in label.history if item in number} <= set(asked.context):
                raise DataError(
                    f"{labels}: the label of user {label.user_id!r} saw more than the context; leave it out."
                )
            users[part].append(asked)
    if not users["val"] and not users["test"]:
        raise DataError(f"{labels}: has no label of a held-out user of {run}; give labels of its data and split.")
    return users


def alignment_head(checkpoint: dict[str, Any]) -> nn.Sequential | None:
    """EIMF's adapter of words, as a run was trained with it; None without."""
    prefix, state = "tasks.adapter.", checkpoint["state_dict"]
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not weights:
        return None
    head = make_adapter(weights["0.weight"].shape[1], weights["2.weight"].shape[0])
    head.load_state_dict(weights)
    return head


def measure(run: Path, labels: Path, n: int = 50) -> dict[str, Any]:
    """Share of the targets in the top n, by method and part.

    Raises:
        EimfError: see `read_users`; or the run keeps no text map.
    """
    model = load(run)
    users, ids = read_users(model, run, labels), model.items["item_id"].to_list()
    encoder, root = model.config.text.encoder, model.config.data.root
    titles = encode_items(model.items, encoder, root).vectors[1:]
    phrases = sorted({one for group in users.values() for user in group for one in user.words})
    vector_of = dict(zip(phrases, encode_texts(phrases, encoder, root).vectors, strict=True))
    counts = model.items["count"].to_numpy()

    def by_score(user: Asked, scores: np.ndarray) -> list[int]:
        scores = scores.astype(np.float64)
        scores[np.array(user.context) - 1] = -np.inf
        return (np.argsort(-scores, kind="stable")[:n] + 1).tolist()

    def by_model(user: Asked, history: bool, words: bool) -> list[int]:
        context = [ids[item - 1] for item in user.context]
        found = model.recommend(
            context if history else [],
            n,
            filter_seen=True,
            words=user.words if words else (),
            deny=None if history else context,
        )
        return model.numbers([one.item_id for one in found])[0]

    methods: dict[str, Callable[[Asked], list[int]]] = {
        "popularity": lambda user: by_score(user, counts),
        "nearest titles": lambda user: by_score(
            user, (titles @ np.stack([vector_of[one] for one in user.words]).T).max(1)
        ),
        "words": lambda user: by_model(user, False, True),
        "behaviour": lambda user: by_model(user, True, False),
        "words and behaviour": lambda user: by_model(user, True, True),
    }
    if (head := alignment_head(read_checkpoint(run))) is not None:
        with torch.no_grad():
            mapped = head(torch.from_numpy(np.stack([vector_of[one] for one in phrases]))).numpy()
        of_phrase, table = dict(zip(phrases, mapped, strict=True)), model.item_vectors()
        methods["words, by the alignment head"] = lambda user: by_score(
            user, (table @ np.stack([of_phrase[one] for one in user.words]).T).max(1)
        )
    shares = {
        name: {
            part: float(np.mean([len(set(method(user)) & user.targets) / len(user.targets) for user in group]))
            for part, group in users.items()
            if group
        }
        for name, method in methods.items()
    }
    return {"run": str(run), "n": n, "users": {part: len(group) for part, group in users.items()}, "recall": shares}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(prog="python -m eimf.studies.words", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run with a text map (eimf map)")
    parser.add_argument("labels", metavar="LABELS", type=Path, help="JSONL of held-out users, see eimf label import")
    parser.add_argument("-n", type=int, default=50, help="length of the lists (default 50)")
    parser.add_argument("--to", metavar="FILE", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    found = measure(options.run, options.labels, options.n)
    heads = [f"{part} ({count} users)" for part, count in found["users"].items()]
    print(f"| share of targets in the top {options.n} | {' | '.join(heads)} |")
    print("| --- |" + " --- |" * len(heads))
    for name, values in found["recall"].items():
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in values.values())} |")
    if options.to is not None:
        write_json_atomic(options.to, found)


if __name__ == "__main__":
    run_main(main)
