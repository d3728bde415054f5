"""What explicit interests cost on `beauty`: time of a training step, and latency when served (none)."""

import os
from pathlib import Path

import pytest
import torch

from eimf.config.load import load
from eimf.data.prepare import prepare
from eimf.training.build import build_data, build_model
from tests.benchmarks.test_spine import REPEATS, clock, report
from tests.conftest import ROOT, real_data

STEPS = 40


@pytest.mark.parametrize("backbone", ["comirec_sa", "mind", "remi"])
def test_step_and_latency_with_and_without_explicit_interests(backbone: str) -> None:
    os.environ["EIMF_DATA_MIRROR"] = str(real_data())
    labels = Path(real_data()).parent / "labels" / "beauty.jsonl"
    if not labels.is_file():
        pytest.skip(f"no labels at {labels}")
    models, batches = [], []
    for on in (True, False):
        options = [f"eimf.enabled={on}".lower(), f"eimf.labels={labels}", "logger.wandb=disabled"]
        config = load(ROOT / f"experiments/beauty/{backbone}.yaml", options)
        data = build_data(config, prepare(config.dataset, ROOT / "data"))
        assert (data.supervision is not None) == on
        model = build_model(config, data, train=True).train()
        model.log_dict = lambda *args, **options: None  # pyright: ignore[reportAttributeAccessIssue]
        models.append((model, model.configure_optimizers()))
        stream = iter(data.train_dataloader())
        batches.append([next(stream) for _ in range(STEPS)])

    def steps(which: int) -> None:
        model, optimizer = models[which]
        for index, batch in enumerate(batches[which]):
            optimizer.zero_grad()
            model.training_step(batch, index).backward()
            optimizer.step()

    def serve(which: int) -> None:
        backbone = models[which][0].backbone
        with torch.inference_mode():
            for row in batches[0][0].history[:256]:
                backbone(row[None])

    for work in (steps, serve):
        for which in (0, 1):
            work(which)
    pairs = [(clock(lambda: steps(0)) / STEPS, clock(lambda: steps(1)) / STEPS) for _ in range(REPEATS)]
    report(f"{backbone}: step with EIMF / without", [a for a, _ in pairs], [b for _, b in pairs])
    for model, _ in models:
        model.eval()
    pairs = [(clock(lambda: serve(0)) / 256, clock(lambda: serve(1)) / 256) for _ in range(REPEATS)]
    report(f"{backbone}: latency of one user with EIMF / without", [a for a, _ in pairs], [b for _, b in pairs])
