"""What one side of a comparison answers, a line at a time: used in three environments, so it needs only numpy."""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

THREADS, BATCH, DIM, LENGTH, INTERESTS, NEGATIVES, LR, DROPOUT = 2, 512, 64, 20, 4, 100, 0.001, 0.5


class Side:
    """Override what the comparison needs. Work that is not measured belongs in `__init__` and `reset`."""

    def __init__(self, data: Path, model: str) -> None:
        self.data, self.model = dict(np.load(data)), model

    def reset(self) -> None:
        """Start from fresh weights."""

    def train(self, steps: int) -> None:
        """Take training steps, by this library's own loader and loop; 0 means a whole epoch."""
        raise NotImplementedError

    def rank(self) -> None:
        """Rank the full catalogue for all held-out users and compute metrics, the library's own way."""
        raise NotImplementedError

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """User vectors [U, K, D] of the held-out users, and item vectors [I + 1, D], in our numbering."""
        raise NotImplementedError


class Head:
    """The first batches of a loader."""

    def __init__(self, loader: Iterable[Any], steps: int) -> None:
        self.loader, self.steps = loader, steps

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.loader), self.steps)

    def __len__(self) -> int:
        return self.steps


def answer(make: Callable[[Path, str], Side]) -> None:
    """Serve `DATA MODEL` from the command line: read commands from stdin, answer in JSON."""
    side = make(Path(sys.argv[1]), sys.argv[2])
    side.reset()
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries print; only answers go to the driver

    def tell(**values: Any) -> None:
        print(json.dumps(values), file=out, flush=True)

    tell(ready=True)
    for line in sys.stdin:
        name, *rest = line.split()
        start = time.perf_counter()
        if name == "train":
            side.train(int(rest[0]))
        elif name == "rank":
            side.rank()
        elif name == "reset":
            side.reset()
        elif name == "vectors":
            users, items = side.vectors()
            np.savez(rest[0], users=users, items=items)
        tell(seconds=time.perf_counter() - start)
