"""A run to serve, and a table with further columns of its items."""

from pathlib import Path

import polars
import pytest

from eimf.data.prepared import Prepared
from eimf.serving.recommender import Recommender, load
from eimf.training.train import train
from tests.conftest import tiny_config


@pytest.fixture(scope="package")
def run_folder(data_root: Path, tiny: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the small simulated data."""
    return train(tiny_config(data_root, tmp_path_factory.mktemp("logs"), "trainer.max_epochs=1")).folder


@pytest.fixture(scope="package")
def stock(tiny: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with a stock for every item: 0 to 4."""
    path = tmp_path_factory.mktemp("shop") / "stock.csv"
    tiny.items.select("item_id", (polars.col("item_idx") % 5).alias("stock")).write_csv(path)
    return path


@pytest.fixture(scope="package")
def model(run_folder: Path, stock: Path) -> Recommender:
    """The run, with the stock."""
    return load(run_folder, stock)
