"""Exports: the vectors and ids of a run, and every backbone as ONNX."""

import copy
import json
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

from eimf.backbones import BACKBONES
from eimf.cli.main import main
from eimf.core.errors import ConfigError
from eimf.core.files import sha256_file
from eimf.serving import export as module
from eimf.serving.export import export, write_onnx
from eimf.serving.recommender import Recommender

HISTORY = ["P00003", "P00005", "P00008"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def _symbolic_sizes() -> Iterator[None]:
    """The exporter traces with sizes that are symbols, which the run-time check of shapes cannot compare."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BACKBONES.known if name not in ("item_knn", "ease")])
def test_every_backbone_computes_the_same_in_onnx(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"embed_dim": 16} if BACKBONES[name].trainable else {}
    backbone = BACKBONES[name](200, 12, **options).eval()
    backbone.observe(torch.arange(201))
    write_onnx(backbone, tmp_path / "backbone.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "backbone.onnx", providers=["CPUExecutionProvider"])
    for length in (12, 5, 1):
        histories = torch.randint(0, 201, (1_000, length)).sort(dim=1).values  # some begin with padding
        histories[:, -1].clamp_(min=1)
        with torch.inference_mode():
            wanted = backbone(histories).vectors.numpy()
        (found,) = session.run(None, {"history": histories.numpy()})
        np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5)


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
        name: sha256_file(folder / name) for name in ("backbone.onnx", "item_vectors.npy", "items.parquet")
    }
    assert manifest["inputs"]["checkpoint_sha256"] == model.about["checkpoint_sha256"]
    # The steps of docs/howto/export.md: numbers, ONNX Runtime, FAISS, the best score of each item.
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
        ConfigError, match=r"onnxscript is not installed; pip install 'eimf\[export\]', or use --no-onnx"
    ):
        export(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    folder = export(model, tmp_path / "new", onnx=False)
    assert sorted(path.name for path in folder.iterdir()) == ["item_vectors.npy", "items.parquet", "manifest.json"]
