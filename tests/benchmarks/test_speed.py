"""Against the usual way and against the machine's limit, on `beauty`; run with `make bench`."""

import os
import random

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from eimf.config.load import load
from eimf.config.schema import Config
from eimf.data.prepare import prepare
from eimf.training.build import build_data, build_model
from eimf.training.datamodule import InteractionData
from tests.benchmarks.test_spine import REPEATS, clock, report
from tests.conftest import ROOT, real_data


@pytest.fixture(scope="module")
def config() -> Config:
    os.environ["EIMF_DATA_MIRROR"] = str(real_data())
    return load(ROOT / "experiments/beauty/comirec_sa.yaml", ["loss.name=full_softmax", "logger.wandb=disabled"])


@pytest.fixture(scope="module")
def data(config: Config) -> InteractionData:
    return build_data(config, prepare(config.dataset, ROOT / "data"))


class PerSample(Dataset):
    """The usual way: a Python list for each user, one sample at a time, padded in Python."""

    def __init__(self, data: InteractionData, max_len: int) -> None:
        items, spans, self.max_len = data.prepared.sequences.items.tolist(), data.split.train, max_len
        self.sequences = [items[a:b] for a, b in zip(spans.start, spans.end, strict=True)]
        self.samples = [(user, at) for user, one in enumerate(self.sequences) for at in range(1, len(one))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        user, at = self.samples[index]
        history = self.sequences[user][max(0, at - self.max_len) : at]
        return torch.tensor([0] * (self.max_len - len(history)) + history), self.sequences[user][at]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_against_a_dataset_of_samples(config: Config, data: InteractionData, workers: int) -> None:
    random.seed(0)
    usual = PerSample(data, config.data.max_len)
    loader = DataLoader(usual, config.data.batch_size, shuffle=True, num_workers=workers)
    ours, theirs = [], []
    for _ in range(REPEATS):
        theirs.append(clock(lambda: sum(len(target) for _, target in loader)))
        ours.append(clock(lambda: sum(len(batch.target) for batch in data.train_dataloader())))
    report(f"an epoch of batches: DataLoader of samples ({workers} workers) / ours", theirs, ours)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_step_against_its_matrix_products(config: Config, data: InteractionData, precision: str) -> None:
    """The float32 products of scores, and of both gradients, that a full softmax cannot do without."""
    model = build_model(config, data).train()
    model.log_dict = lambda *args, **options: None  # pyright: ignore[reportAttributeAccessIssue]
    optimizer = model.configure_optimizers()
    stream = iter(data.train_dataloader())
    batches = [next(stream) for _ in range(20)]
    user, items = torch.randn(config.data.batch_size, 64), torch.randn(data.prepared.n_items + 1, 64)
    scores = torch.randn(len(user), len(items))

    def step() -> None:
        for batch in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = model.training_step(batch, 0)
            loss.backward()
            optimizer.step()

    def bare() -> None:
        for _ in batches:
            torch.mm(user, items.T, out=scores)
            torch.mm(scores, items)
            torch.mm(scores.T, user)

    step()
    bare()
    pairs = [(clock(step) / len(batches), clock(bare) / len(batches)) for _ in range(REPEATS)]
    report(f"ComiRec-SA step, {precision} / its float32 matrix products", [a for a, _ in pairs], [b for _, b in pairs])
