"""Measured ratios of the base of the suite on `beauty`; run with `make bench` on an otherwise idle machine.

Nothing is asserted: timings are for people to read. Both sides of a ratio alternate in one process.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from eimf.config.load import load
from eimf.config.schema import Config
from eimf.data.prepare import prepare
from eimf.evaluation.retrieval import ItemIndex, retrieve
from eimf.training.build import build_data, build_model, build_trainer
from eimf.training.datamodule import InteractionData
from eimf.training.module import MultiInterestModel
from tests.conftest import ROOT, real_data

REPEATS = 5
QUIET = ["trainer.progress=false", "logger.wandb=disabled", "trainer.accelerator=cpu", "trainer.devices=1"]


@pytest.fixture(scope="module")
def config() -> Config:
    os.environ["EIMF_DATA_MIRROR"] = str(real_data())
    return load(ROOT / "experiments/beauty/comirec_sa.yaml", QUIET)


@pytest.fixture(scope="module")
def data(config: Config) -> InteractionData:
    return build_data(config, prepare(config.dataset, ROOT / "data"))


def clock(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(name: str, ours: list[float], theirs: list[float], unit: str = "s") -> None:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(
        f"\n{name}: ratio {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f}), "
        f"medians {statistics.median(ours):.4f} and {statistics.median(theirs):.4f} {unit}, {len(ours)} repeats, "
        f"{torch.get_num_threads()} threads"
    )


def test_batch_making_against_the_step(config: Config, data: InteractionData) -> None:
    model = build_model(config, data)
    model.log_dict = lambda *args, **options: None  # pyright: ignore[reportAttributeAccessIssue]
    optimizer = model.configure_optimizers()
    making, stepping = [], []
    for _ in range(REPEATS):
        batches = iter(data.train_dataloader())
        kept = [next(batches)]
        making.append(clock(lambda: kept.extend(next(batches) for _ in range(40))) / 40)  # noqa: B023

        def step() -> None:
            for batch in kept[:20]:  # noqa: B023
                optimizer.zero_grad()
                model.training_step(batch, 0).backward()
                optimizer.step()

        stepping.append(clock(step) / 20)
    report("batch making / training step", making, stepping)


class _Twin(pl.Callback):
    """Takes the same step in a bare loop before each of Lightning's, and measures both.

    The two alternate step by step, so that a machine which slows down for a while slows both sides.
    """

    def __init__(self, model: MultiInterestModel, batches: Iterator[Any], precision: torch.dtype | None) -> None:
        self.model, self.batches, self.precision = model.train(), batches, precision
        self.optimizer = model.configure_optimizers()
        self.model.log_dict = lambda *args, **options: None  # pyright: ignore[reportAttributeAccessIssue]
        self.lightning: list[float] = []
        self.bare: list[float] = []
        self._left = 0.0

    def step(self) -> None:
        batch = next(self.batches)
        self.optimizer.zero_grad()
        with torch.autocast("cpu", self.precision, enabled=self.precision is not None):
            loss = self.model.training_step(batch, 0)
        loss.backward()
        self.optimizer.step()

    def on_train_batch_start(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._left:
            self.lightning.append(time.perf_counter() - self._left)  # all of Lightning's step, next batch included
        self.bare.append(clock(self.step))
        self._left = time.perf_counter()


@pytest.mark.parametrize(
    ("backbone", "precision"), [("comirec_sa", "32-true"), ("comirec_sa", "bf16-mixed"), ("remi", "bf16-mixed")]
)
def test_lightning_against_a_bare_loop(backbone: str, precision: str) -> None:
    steps, skip = 60, 5
    options = [*QUIET, f"trainer.precision={precision}", "trainer.max_epochs=1"]
    config = load(ROOT / f"experiments/beauty/{backbone}.yaml", options)
    data = build_data(config, prepare(config.dataset, ROOT / "data"))
    ours, theirs = [], []
    for _ in range(REPEATS):
        number = None if precision == "32-true" else torch.bfloat16
        twin = _Twin(build_model(config, data), iter(data.train_dataloader()), number)
        trainer = build_trainer(config, [twin])
        trainer.limit_val_batches, trainer.limit_train_batches = 0, skip + steps + 1
        trainer.fit(build_model(config, data), datamodule=data)
        ours.append(sum(twin.lightning[skip:]) / steps)
        theirs.append(sum(twin.bare[skip:-1]) / steps)
    report(f"{backbone}, {precision}: a step with Lightning / in a bare loop", ours, theirs)


def test_exact_retrieval_against_bare_matrix_products(data: InteractionData) -> None:
    torch.manual_seed(0)
    users, items = torch.randn(2236, 4, 64), torch.randn(data.prepared.n_items + 1, 64)
    index = ItemIndex(items.numpy())

    def ours() -> None:
        for part in users.split(1024):
            retrieve(index, part, 50)

    def bare() -> None:
        for part in users.split(1024):
            scores = part.flatten(0, 1) @ items.T
            scores[:, 0] = -torch.inf
            best, found = scores.topk(50, dim=1)
            best, order = best.view(len(part), -1).sort(dim=1, descending=True)
            found = found.view(len(part), -1).gather(1, order)
            for row in found.tolist():  # first occurrence of each item, the usual way
                list(dict.fromkeys(row))[:50]

    ours()
    bare()
    pairs = [(clock(ours), clock(bare)) for _ in range(REPEATS)]
    report("FAISS search + merge / matmul + topk + merge", [a for a, _ in pairs], [b for _, b in pairs])


def test_peak_memory_of_a_run(tmp_path: Path) -> None:
    real_data()
    code = (
        "import resource, sys; from eimf.cli.main import main; main(sys.argv[1:]);"
        "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)"
    )
    arguments = ["train", "experiments/beauty/comirec_sa.yaml", "trainer.max_epochs=1", "trainer.progress=false"]
    out = subprocess.run(
        [sys.executable, "-c", code, *arguments, f"logger.root={tmp_path}", "logger.wandb=disabled"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    print(f"\npeak memory of a beauty run: {float(out.split('PEAK')[1]):.2f} GiB")
    results = json.loads(next(tmp_path.glob("*/version_0/results.json")).read_text())
    assert results["test"]["recall@50"] > 0
