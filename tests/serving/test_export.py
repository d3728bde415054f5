"""Exports: the vectors and ids of a run, and every backbone as a program and as ONNX."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import jaxtyping
import numpy as np
import onnxruntime
import polars
import pytest
import torch
from safetensors.torch import load_file

from eimf.backbones import BACKBONES, Backbone
from eimf.cli.main import main
from eimf.core.errors import ConfigError, DataError
from eimf.core.files import sha256_file
from eimf.serving import export as module
from eimf.serving.export import TOLERANCE, InterestVectors, export, write_onnx, write_program
from eimf.serving.recommender import Recommender
from tests.conftest import ROOT

HISTORY = ["P00003", "P00005", "P00008"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def _symbolic_sizes() -> Iterator[None]:
    """The exporter traces with sizes that are symbols, which the run-time check of shapes cannot compare."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


NAMES = [name for name in BACKBONES.known if name not in ("item_knn", "ease")]


def make(name: str, max_len: int = 12) -> Backbone:
    """A backbone of 200 items, at random."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"embed_dim": 16} if BACKBONES[name].trainable else {}
    backbone = BACKBONES[name](200, max_len, **options).eval()
    backbone.observe(torch.arange(201))
    return backbone


def histories_of(length: int, count: int = 1_000) -> torch.Tensor:
    """Histories of these many places; some begin with padding."""
    histories = torch.randint(0, 201, (count, length)).sort(dim=1).values
    histories[:, -1].clamp_(min=1)
    return histories


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_computes_the_same_in_onnx(name: str, tmp_path: Path) -> None:
    backbone = make(name)
    write_onnx(backbone, tmp_path / "backbone.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "backbone.onnx", providers=["CPUExecutionProvider"])
    for length in (12, 5, 1):
        histories = histories_of(length)
        with torch.inference_mode():
            wanted = backbone(histories).vectors.numpy()
        (found,) = session.run(None, {"history": histories.numpy()})
        np.testing.assert_allclose(np.asarray(found), wanted, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_is_a_program_that_computes_the_same(name: str, tmp_path: Path) -> None:
    backbone = make(name)
    write_program(backbone, tmp_path / "backbone.pt2")
    program = torch.export.load(tmp_path / "backbone.pt2").module()
    for length, count in ((12, 1_000), (5, 1_000), (1, 1_000), (12, 1), (1, 1)):
        histories = histories_of(length, count)
        with torch.inference_mode():
            np.testing.assert_allclose(program(histories), backbone(histories).vectors, atol=TOLERANCE)


def test_histories_of_one_item_are_exported(tmp_path: Path) -> None:
    backbone, histories = make("youtube_dnn", max_len=1), histories_of(1)
    write_program(backbone, tmp_path / "backbone.pt2")
    found = torch.export.load(tmp_path / "backbone.pt2").module()(histories)
    torch.testing.assert_close(found, backbone(histories).vectors, atol=TOLERANCE, rtol=0)


def test_a_program_that_computes_something_else_is_refused(
    model: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = InterestVectors.forward
    monkeypatch.setattr(module.Padded, "forward", lambda self, history: right(self.vectors, history) + 2e-5)
    with pytest.raises(DataError, match=r"the program's vectors of ComiRecSA differ .* by 2e-05, .*use --no-program"):
        export(model, tmp_path / "new", onnx=False)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(module.Padded, "forward", lambda self, history: history[: int(history.sum())])
    with pytest.raises(DataError, match=r"ComiRecSA cannot be exported by torch .*use --no-program"):
        export(model, tmp_path / "new", onnx=False)


def test_the_database_of_the_page_gives_the_lists_of_the_run(
    model: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export(model, Path("export"), onnx=False)
    page = (ROOT / "docs" / "howto" / "export.md").read_text()
    (block,) = (one for one in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "qdrant" in one)
    category = model.items["categories"].list.first().mode()[0]
    for word, mine in {"B001MA0QY2": HISTORY[0], "B0009V1YR8": HISTORY[1], "Lipstick": category}.items():
        assert word in block
        block = block.replace(word, mine)
    names: dict[str, Any] = {}
    exec(compile(block, "docs/howto/export.md", "exec"), names)
    wanted = model.recommend(HISTORY[:2], 10, allow={"category": category, "count": {"min": 5}})
    assert len(wanted) > 3
    assert names["listed"] == [one.item_id for one in wanted]
    assert [names["best"][one.item_id] for one in wanted] == pytest.approx([one.score for one in wanted], abs=1e-5)


def test_a_program_needs_no_code_of_ours(model: Recommender, tmp_path: Path) -> None:
    export(model, tmp_path / "export", onnx=False)
    code = (
        "import sys, torch; run = torch.export.load('export/backbone.pt2').module(); "
        "print(tuple(run(torch.ones(2, 3, dtype=torch.long)).shape), 'eimf' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"(2, {model.n_interests}, 16) False"


@pytest.mark.slow
def test_the_shared_part_and_the_length_are_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES["comirec_sa"](50, 8, embed_dim=16, shared=1.0, normalize=True).eval()
    write_onnx(backbone, tmp_path / "backbone.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "backbone.onnx", providers=["CPUExecutionProvider"])
    histories = torch.randint(1, 51, (20, 8))
    (found,) = session.run(None, {"history": histories.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(np.asarray(found), backbone(histories).vectors.numpy(), atol=1e-5)


@pytest.mark.slow
def test_what_is_exported_gives_the_lists_of_the_run(
    run_folder: Path, model: Recommender, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run_folder), "--to", str(tmp_path / "export")]) == 0
    assert "written: " in capsys.readouterr().out
    folder = tmp_path / "export"
    vectors, items = np.load(folder / "item_vectors.npy"), polars.read_parquet(folder / "items.parquet")
    np.testing.assert_array_equal(vectors, model.item_vectors())
    np.testing.assert_array_equal(items["vector"].list.to_array(vectors.shape[1]).to_numpy(), vectors)
    assert items["item_id"].equals(model.items["item_id"])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"] == {
        name: sha256_file(folder / name)
        for name in ("backbone.onnx", "backbone.pt2", "item_vectors.npy", "items.parquet", "weights.safetensors")
    }
    for name in ("item_id", "title", "categories", "brand", "count"):
        assert items[name].equals(model.items[name]), name
    weights = load_file(folder / "weights.safetensors")
    assert set(weights) == set(model.backbone.state_dict())
    assert all(torch.equal(weights[name], value) for name, value in model.backbone.state_dict().items())
    assert manifest["inputs"]["checkpoint_sha256"] == model.about["checkpoint_sha256"]
    # The steps of docs/howto/export.md for ONNX: numbers, ONNX Runtime, FAISS, the best score of each item.
    number = {item: row + 1 for row, item in enumerate(items["item_id"])}
    session = onnxruntime.InferenceSession(folder / "backbone.onnx", providers=["CPUExecutionProvider"])
    (interests,) = session.run(None, {"history": np.array([[number[item] for item in HISTORY]])})
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)  # pyright: ignore[reportCallIssue]
    scores, rows = index.search(np.asarray(interests)[0], 20)  # pyright: ignore[reportCallIssue]
    best: dict[str, float] = {}
    for score, row in zip(scores.ravel().tolist(), rows.ravel().tolist(), strict=True):
        item = str(items["item_id"][row])
        if item not in HISTORY:
            best[item] = max(float(score), best.get(item, -np.inf))
    listed = sorted(best, key=lambda item: -best[item])[:10]
    assert listed == [one.item_id for one in model.recommend(HISTORY, 10)]


def test_models_without_item_vectors_say_so(model: Recommender, tmp_path: Path) -> None:
    other = copy.copy(model)
    other.backbone = BACKBONES["item_knn"](len(model.items), 12)
    with pytest.raises(ConfigError, match="has no item vectors"):
        export(other, tmp_path / "new")


def test_what_cannot_be_exported(model: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        export(model, tmp_path)
    find = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(
        ConfigError, match=r"onnxscript must be installed for ONNX; pip install 'eimf\[export\]', or use --no-onnx"
    ):
        export(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    folder = export(model, tmp_path / "new", onnx=False, program=False)
    names = ["item_vectors.npy", "items.parquet", "manifest.json", "weights.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert "stock" in polars.read_parquet(folder / "items.parquet").columns
