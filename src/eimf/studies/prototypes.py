"""How many labels prototypes need: `python -m eimf.studies.prototypes DATASET LABELS HELD_OUT --to FILE`.

Nothing is trained. Items are grouped by the words of a seeded part of the labels, and by their titles. The measure is
the agreement of these groups with the LLM's groups of held-out users' items, which no label of LABELS has seen: it is
what a model could reach whose attention follows the prototypes exactly.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from eimf.config.load import load as load_config
from eimf.core.errors import LabelError, run_main
from eimf.core.files import write_json_atomic
from eimf.data.prepare import prepare
from eimf.data.splits import split_sequences
from eimf.data.text import encode_items
from eimf.evaluation.agreement import Groups, held_out_groups, measure_agreement
from eimf.explicit.load import load_supervision
from eimf.explicit.prototypes import Prototypes, find_prototypes, item_words, shuffled_prototypes
from eimf.labels.source import read_labels
from eimf.runs.provenance import machine

COUNTS = (40, 80, 160, 320, 640, 1280)
REPEATS = 3
"""Seeded parts of the labels, and seeds of the clustering."""


def agreement_of(prototypes: Prototypes, groups: Groups) -> float:
    """Mean adjusted mutual information between the prototypes of users' items and their known groups."""
    found = prototypes.of_item.numpy()[groups.history]
    return float(measure_agreement(found, groups.group).mutual_information.mean())


def measure(
    settings: Sequence[str], labels: Path, held_out: Path, count: int, counts: Sequence[int] = COUNTS
) -> dict[str, Any]:
    """Agreement by number of labels, and that of titles and of shuffled words.

    Args:
        settings: of the data set and its split.
        count: number of prototypes.

    Raises:
        LabelError: no label is of a training user, or none of a held-out one.
    """
    config = load_config(None, settings)
    prepared = prepare(config.dataset, config.data.root)
    split = split_sequences(prepared.sequences, config.split)
    named = read_labels(held_out)
    parts = [held_out_groups(named, prepared, held, config.data.max_len) for held in (split.validation, split.test)]
    groups = Groups(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    if len(groups.user_idx) == 0:
        raise LabelError(f"{held_out}: has no label of a held-out user of this split.")
    titles = encode_items(prepared.items, config.text.encoder, config.data.root).vectors
    training = {prepared.user_ids[int(user)] for user in split.train.user_idx}
    known = [label for label in read_labels(labels) if label.user_id in training]

    def evidence(size: int, seed: int) -> Float[np.ndarray, "I_plus_1 D"]:
        """What a seeded part of the labels says about each item."""
        chosen = np.random.default_rng(seed).permutation(len(known))[:size]
        part = [known[place] for place in sorted(chosen)]
        supervision = load_supervision(
            part, prepared, split.train, config.eimf, encoder=config.text.encoder, root=config.data.root
        )
        return item_words(supervision, titles)

    words = {
        size: [agreement_of(find_prototypes(evidence(size, seed), count, seed), groups) for seed in range(REPEATS)]
        for size in counts
        if size < len(known)
    }
    all_words = evidence(len(known), 0)
    whole = [find_prototypes(all_words, count, seed) for seed in range(REPEATS)]
    words[len(known)] = [agreement_of(prototypes, groups) for prototypes in whole]
    by_titles = [agreement_of(find_prototypes(titles, count, seed), groups) for seed in range(REPEATS)]
    shuffled = [agreement_of(shuffled_prototypes(one, seed), groups) for seed, one in enumerate(whole)]
    return {
        "dataset": config.dataset.name,
        "prototypes": count,
        "users": len(measure_agreement(groups.history, groups.group).row),
        "words": {str(size): values for size, values in words.items()},
        "titles": by_titles,
        "shuffled": shuffled,
        "machine": machine(),
    }


def main() -> None:
    """Measure, print a table, and write the values to a file."""
    parser = argparse.ArgumentParser(prog="python -m eimf.studies.prototypes", description=__doc__)
    parser.add_argument("dataset", metavar="DATASET", help="name of experiments/datasets/NAME.yaml")
    parser.add_argument("labels", metavar="LABELS", type=Path, help="explicit interests of training users")
    parser.add_argument("held_out", metavar="HELD_OUT", type=Path, help="those of held-out users, from their contexts")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--prototypes", type=int, default=4, help="number of prototypes (default 4)")
    parser.add_argument("--to", type=Path, help="JSON file to write")
    options = parser.parse_intermixed_args()
    settings = [f"dataset={options.dataset}", *options.settings]
    found = measure(settings, options.labels, options.held_out, options.prototypes)
    print(f"| agreement of {found['users']} held-out users | mean | deviation |\n| --- | ---: | ---: |")
    rows = {f"words of {size} labels": values for size, values in found["words"].items()}
    for name, values in (rows | {"titles": found["titles"], "shuffled words": found["shuffled"]}).items():
        print(f"| {name} | {np.mean(values):.3f} | {np.std(values, ddof=1):.3f} |")
    if options.to:
        write_json_atomic(options.to, found)


if __name__ == "__main__":
    run_main(main)
