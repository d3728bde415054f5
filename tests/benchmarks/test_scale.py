"""A training step and retrieval at a million items, beside what they are measured against; run with `make bench`."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from eimf.backbones.comirec_sa import ComiRecSA
from eimf.evaluation.retrieval import ItemIndex, retrieve
from eimf.losses import FullSoftmax, SampledSoftmax
from eimf.training.optimizers import build_optimizer
from tests.benchmarks.test_spine import REPEATS, clock, report

DIM, BATCH, LENGTH, NEGATIVES = 64, 512, 20, 1280


class Trained:
    """A model, its optimiser and some batches over a catalogue with a long tail."""

    def __init__(self, n_items: int, steps: int, dense: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        counts = (1e6 / torch.arange(1, n_items + 2)).long() + 5
        self.model = ComiRecSA(n_items, LENGTH, embed_dim=DIM)
        self.model.item_embedding.sparse = not dense
        self.loss = FullSoftmax() if dense else SampledSoftmax(n_negatives=NEGATIVES)
        self.loss.observe(counts)
        kind = "adam" if dense else "rowwise"
        self.optimizer = build_optimizer(self.model, kind, lr=0.001, item_lr=0.05, weight_decay=0, fused=True)
        draw = torch.rand(steps, BATCH, LENGTH + 1, generator=generator)
        self.batches = (n_items**draw).long().clamp(1, n_items)  # popularity as 1 / rank

    def steps(self) -> None:
        for rows in self.batches:
            self.optimizer.zero_grad()
            terms = self.loss(self.model, self.model(rows[:, :-1]), rows[:, :-1], rows[:, -1])
            sum(terms.values(), start=torch.zeros(())).backward()
            self.optimizer.step()


def test_a_step_at_a_million_items() -> None:
    small, large = Trained(10_000, 20), Trained(1_000_000, 20)
    small.steps()
    large.steps()
    pairs = [(clock(large.steps) / 20, clock(small.steps) / 20) for _ in range(REPEATS)]
    report("a step at 1,000,000 items / at 10,000", [a for a, _ in pairs], [b for _, b in pairs])


def simulate_catalogue(n: int) -> tuple[np.ndarray, torch.Tensor]:
    """Vectors in clusters with lengths that vary, as trained ones have; queries near clusters."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2_000, DIM)).astype(np.float32)
    items = centres[rng.integers(0, 2_000, n + 1)] + 0.6 * rng.normal(size=(n + 1, DIM)).astype(np.float32)
    items *= rng.lognormal(0, 0.1, (n + 1, 1)).astype(np.float32)
    users = centres[rng.integers(0, 2_000, 4_000)] + 0.6 * rng.normal(size=(4_000, DIM)).astype(np.float32)
    return items, torch.from_numpy(users).view(1_000, 4, DIM)


@pytest.mark.parametrize(
    ("kind", "search"),
    [("IVF2000,Flat", 16), ("IVF2000,PQ32", 16), ("HNSW32", 128)],
    ids=["ivf", "ivfpq", "hnsw"],
)
def test_retrieval_at_a_million_items(kind: str, search: int, tmp_path: Path) -> None:
    items, users = simulate_catalogue(1_000_000)
    flat = ItemIndex(items)
    start = time.perf_counter()
    index = ItemIndex(items, kind, search=search)
    built = time.perf_counter() - start
    index.save(tmp_path / "index.faiss")
    index = ItemIndex.load(tmp_path / "index.faiss", items)
    exact, found = retrieve(flat, users, 50).items, retrieve(index, users, 50).items
    overlap = (found[:, :, None] == exact[:, None]).any(dim=2).double().mean()
    size = (tmp_path / "index.faiss").stat().st_size / 2**20
    print(
        f"\n{kind}: built in {built:.0f} s, {size:.0f} MiB (flat {items.nbytes / 2**20:.0f}), overlap@50 {overlap:.4f}"
    )
    pairs = [(clock(lambda: retrieve(flat, users, 50)), clock(lambda: retrieve(index, users, 50))) for _ in range(3)]
    report(f"1,000 users x 4 interests, 1,000,000 items: flat / {kind}", [a for a, _ in pairs], [b for _, b in pairs])
