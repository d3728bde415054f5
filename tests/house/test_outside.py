"""Components of somebody else's package: found by entry point and by import path, in all commands."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY

MODULE = '''
from dataclasses import dataclass

import torch
from torch import nn

from eimf.backbones import Backbone, BackboneConfig, Interests
from eimf.core.options import option
from eimf.explicit.tasks import Task
from eimf.losses import FullSoftmax


@dataclass(frozen=True)
class HalvesConfig(BackboneConfig):
    name: str = "halves"
    parts: int = option(2, low=1, high=4)
    """Number of parts of the history, each an interest."""


class Halves(Backbone):
    """The mean of each part of the history is an interest."""

    Config = HalvesConfig

    def __init__(self, n_items, max_len=20, config=None, **options):
        super().__init__(n_items, max_len, config, **options)
        self.scale = nn.Parameter(torch.ones(self.config.parts, 1))

    def extract(self, history):
        # Counted from the most recent item, so that padding changes nothing.
        items = self.item_embedding(history).flip(1)
        width = -(-self.max_len // self.config.parts)
        chunks = [items[:, k * width : (k + 1) * width].sum(1) for k in range(self.config.parts)]
        return Interests(torch.stack(chunks, dim=1) * self.scale)


class Wrong(Backbone):
    def extract(self, history):
        return Interests(self.item_embedding(history).sum(1))


class Double(FullSoftmax):
    def predict(self, backbone, vectors, target):
        return 2 * super().predict(backbone, vectors, target)


class Shrink(Task):
    name = "shrink"

    def forward(self, step):
        return step.labelled.vectors.square().mean()
'''


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with a package of somebody else's beside ours."""
    home = tmp_path_factory.mktemp("outside")
    wheel = home / "halves-1.0-py3-none-any.whl"
    points = {
        "backbones": "halves = halves:Halves",
        "losses": "double = halves:Double",
        "tasks": "shrink = halves:Shrink",
    }
    files = {
        "halves.py": MODULE,
        "halves-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: halves\nVersion: 1.0\n",
        "halves-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "halves-1.0.dist-info/entry_points.txt": "".join(f"[eimf.{k}]\n{v}\n" for k, v in points.items()),
        "halves-1.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "env"], check=True)
    python = home / "env" / "bin" / "python"
    (site,) = (home / "env" / "lib").glob("python*/site-packages")
    # What is installed for the tests, ours included, is seen from there too.
    (site / "tests.pth").write_text(
        "\n".join(path for path in sys.path if "site-packages" in path) + f"\n{ROOT / 'src'}\n"
    )
    installer = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), "install"]
    options = ["--quiet", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run([*installer, *options], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return python


def run(python: Path, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [str(python), "-m", "eimf", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout + done.stderr


def test_a_backbone_from_outside_works_in_every_command(environment: Path, data_root: Path, tmp_path: Path) -> None:
    common = [*TINY, f"data.root={data_root}", f"logger.root={tmp_path}"]
    chosen = ["backbone=halves", "backbone.parts=3", "loss=double"]
    run(environment, "train", *common, *chosen)
    folder = tmp_path / "demo-halves" / "version_0"
    assert json.loads((folder / "results.json").read_text())["test"]["recall@50"] > 0
    assert "train/double" in (folder / "metrics.csv").read_text().splitlines()[0]
    assert "interest 2" in run(environment, "recommend", str(folder), "--history", "P00001,P00002", "-n", "3")
    run(environment, "evaluate", str(folder))
    (folder / "results.json").unlink()
    run(environment, "train", "--resume", str(folder))
    assert "report.html" in run(environment, "report", str(folder))
    code = (
        "from eimf.explorer import open_runs; from pathlib import Path; "
        f"print(open_runs([Path({str(folder)!r})]).look(['P00001']))"
    )
    assert subprocess.run([str(environment), "-c", code], cwd=ROOT, check=True, timeout=60).returncode == 0
    code = (
        "import eimf, pytorch_lightning as pl, halves\n"
        "model = eimf.MultiInterestModel(halves.Halves(9, parts=2, embed_dim=4), halves.Double())\n"
        "pl.Trainer(logger=False, enable_progress_bar=False).strategy.connect(model)\n"
        "trainer = pl.Trainer(logger=False, enable_progress_bar=False); trainer.strategy.connect(model)\n"
        f"trainer.save_checkpoint({str(tmp_path / 'outside.ckpt')!r})\n"
        f"again = eimf.MultiInterestModel.load_from_checkpoint({str(tmp_path / 'outside.ckpt')!r}, weights_only=True)\n"
        "assert type(again.backbone) is halves.Halves and again.backbone.config.parts == 2\n"
    )
    subprocess.run([str(environment), "-c", code], cwd=ROOT, check=True, timeout=60, capture_output=True)


def test_a_component_is_named_by_its_import_path(environment: Path, data_root: Path, tmp_path: Path) -> None:
    common = [*TINY, f"data.root={data_root}", f"logger.root={tmp_path}"]
    suite = tmp_path / "two.yaml"
    suite.write_text("baseline: plain\nseeds: [0]\nvariants:\n  plain: {}\n  halves: {backbone: 'halves:Halves'}\n")
    assert "halves" in run(environment, "compare", str(suite), *common)
    sweep = tmp_path / "search.yaml"
    sweep.write_text(
        "method: grid\nmetric: {name: val/recall@50, goal: maximize}\n"
        "parameters: {backbone.parts: {values: [1, 2]}}\n"
        "command: ['${env}', '${interpreter}', -m, eimf, train, 'backbone=halves:Halves', eval.test=false, "
        + ", ".join(f"'{text}'" for text in common)
        + ", '${args_no_hyphens}']\n"
    )
    assert "2 trials" in run(environment, "sweep", str(sweep), "--offline")
    said = run(environment, "train", *common, "backbone=halves:Wrong", status=2)
    assert "eimf: Wrong.extract: interest vectors must have the shape [B, K, D]" in said
    assert "eimf: backbone.name: 'halves:None' cannot be imported" in run(
        environment, "train", *common, "backbone=halves:None", status=2
    )


def test_an_outside_backbone_keeps_the_contract(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "test_halves.py").write_text(
        "from eimf.testing import BackboneContract\nfrom halves import Halves\n\n\n"
        "class TestHalves(BackboneContract):\n    backbone = Halves\n"
    )
    done = subprocess.run(
        [str(environment), "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
