"""Fixtures, and run-time checks of the tensor shapes in all signatures."""

import hashlib
import json
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import install_import_hook

# Before anything imports these modules: every call in the tests checks shapes and types.
install_import_hook(
    [
        "eimf.backbones",
        "eimf.losses",
        "eimf.evaluation.metrics",
        "eimf.evaluation.retrieval",
        "eimf.evaluation.evaluator",
        "eimf.data.batch",
        "eimf.explicit.tasks",
        "eimf.explicit.matching",
        "eimf.studies.significance",
    ],
    "beartype.beartype",
)

import numpy as np
import polars
import pytest
from hypothesis import settings

from eimf.config.load import load
from eimf.config.schema import Config
from eimf.core.files import sha256_file
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared

settings.register_profile("suite", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("suite")

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would the processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "dataset.n_users=300",
    "dataset.n_items=120",
    "data.batch_size=256",
    "backbone.embed_dim=16",
    "trainer.max_epochs=3",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.progress=false",
    "logger.wandb=disabled",
]
"""Settings of a run that takes a second."""
UNTRAINED = [text for text in TINY if not text.startswith(("backbone.", "data.batch_size", "trainer.max_epochs"))]
"""Those of them that concern backbones without training."""


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture(autouse=True)
def _own_log() -> None:
    """The command line shows log lines in its own way; each test starts with the logger of a library."""
    logger = logging.getLogger("eimf")
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that all tests of a session share."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def tiny(data_root: Path) -> Prepared:
    """A small simulated data set."""
    return prepare(load(None, TINY).dataset, data_root)


def tiny_config(data_root: Path, logs: Path, *overrides: str) -> Config:
    """A configuration that trains in a second."""
    trained = not any(f"backbone={name}" in overrides for name in ("popularity", "item_knn", "ease"))
    return load(None, [*(TINY if trained else UNTRAINED), f"data.root={data_root}", f"logger.root={logs}", *overrides])


def replace_items(folder: Path, items: polars.DataFrame) -> None:
    """Put another table of items into a run folder, as if the run had written it."""
    items.write_parquet(folder / "items.parquet")
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(about | {"items_sha256": sha256_file(folder / "items.parquet")}))


def real_data() -> Path:
    """The folder of real data, or a skip that says why."""
    folder = Path(os.environ.get("EIMF_DATA_MIRROR") or ROOT.parent / "shared" / "data")
    if not (folder / "beauty" / "interactions.csv.gz").is_file():
        pytest.skip(f"no real data: {folder}/beauty is missing (set EIMF_DATA_MIRROR)")
    return folder.resolve()


def hash_words(texts: Sequence[str]) -> np.ndarray:
    """A stand-in for the sentence encoder, by hashing words: no model to load, and common words make texts similar."""
    vectors = np.zeros((len(texts), 32), np.float32)
    for row, one in enumerate(texts):
        for word in one.split():
            vectors[row, int(hashlib.md5(word.encode()).hexdigest(), 16) % 32] += 1
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
