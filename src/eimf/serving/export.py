"""Exports a run for other systems: item vectors with their ids for a vector database, and the backbone as ONNX.

The folder has `item_vectors.npy` [I, D] and `items.parquet` (`item_id`, `title`, `vector`) in the same order,
`backbone.onnx` where the extra `export` is installed, and `manifest.json` with the digests of all files.
"""

import logging
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from eimf.backbones import Backbone
from eimf.core.artifacts import Manifest, new_artifact, write_manifest
from eimf.core.errors import ConfigError, DataError
from eimf.core.files import sha256_file
from eimf.serving.recommender import Recommender

KIND = "export"
TOLERANCE = 1e-5
"""Largest difference between the vectors of ONNX Runtime and of torch that an export may have."""


class InterestVectors(nn.Module):
    """The part of a backbone that is exported: item numbers [B, L] in, interest vectors [B, K, D] out.

    Item numbers are rows of `items.parquet`, counted from 1; histories are padded on the left with 0, and the most
    recent item is last.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, history: Int[Tensor, "B L"]) -> Float[Tensor, "B K D"]:
        return self.backbone.finish(self.backbone.extract(history).vectors.float())


def export(model: Recommender, to: Path, onnx: bool = True) -> Path:
    """Write a run's vectors and backbone to a new folder, completely or not at all.

    Args:
        onnx: export the backbone too. It is compared with ONNX Runtime before the folder appears.

    Raises:
        ConfigError: the folder exists, the extra `export` is not installed, or the model has no item vectors.
        DataError: the exported backbone does not compute the same.
        ArtifactError: the folder cannot be written.
    """
    if to.exists():
        raise ConfigError(f"{to}: exists; name a new folder.")
    if onnx and (missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]):
        raise ConfigError(
            f"export: {', '.join(missing)} is not installed; pip install 'eimf[export]', or use --no-onnx."
        )
    vectors = model.item_vectors()
    if vectors.shape[1] == 0:
        raise ConfigError(f"export: {model.config.backbone.name} has no item vectors; export another model's run.")
    with new_artifact(to) as folder:
        np.save(folder / "item_vectors.npy", vectors)
        table = model.items.select("item_id", "title").with_columns(
            polars.Series("vector", vectors, polars.List(polars.Float32))
        )
        table.write_parquet(folder / "items.parquet")
        if onnx:
            write_onnx(model.backbone, folder / "backbone.onnx")
        counts = {"items": len(vectors), "dimensions": vectors.shape[1], "interests": model.n_interests}
        options = {"max_len": model.backbone.max_len, "metric": "inner product", "filter_seen": model.filters_seen}
        inputs = {name: model.about.get(name, "") for name in ("checkpoint_sha256", "data_digest")}
        digest = sha256_file(folder / "items.parquet")
        write_manifest(folder, Manifest(KIND, digest, options, inputs, counts))
    return to


def write_onnx(backbone: Backbone, path: Path) -> None:
    """Write a backbone as one ONNX file: input `history` [batch, length] (int64), output `interests`.

    Raises:
        DataError: ONNX Runtime cannot run it, or its vectors differ from torch's by more than `TOLERANCE`.
    """
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which is not needed
    generator = torch.Generator().manual_seed(0)
    # Other numbers of users and positions than those of the example: the file must not be bound to its shape.
    sizes = ((3, backbone.max_len), (7, max(1, backbone.max_len // 2)), (2, 1))
    histories = [torch.randint(1, backbone.n_items + 1, size, generator=generator) for size in sizes]
    histories[0][:, : backbone.max_len // 3] = 0
    wrapped = InterestVectors(backbone).eval()
    batch = torch.export.Dim("batch")
    length = torch.export.Dim("length", min=1, max=backbone.max_len)
    program = torch.onnx.export(
        wrapped,
        (histories[0],),
        dynamo=True,
        input_names=["history"],
        output_names=["interests"],
        dynamic_shapes={"history": {0: batch, 1: length}},
        verbose=False,
    )
    assert program is not None
    program.save(path, include_initializers=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for history in histories:
        with torch.inference_mode():
            wanted = wrapped(history).numpy()
        try:
            (found,) = session.run(None, {"history": history.numpy()})
        except Exception as error:  # ONNX Runtime has many kinds
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"export: {type(backbone).__name__} does not run in ONNX ({reason}); use --no-onnx."
            ) from None
        difference = float(np.abs(np.asarray(found) - wanted).max())
        if not difference <= TOLERANCE:
            raise DataError(
                f"export: ONNX Runtime's vectors of {type(backbone).__name__} differ from torch's by {difference:.2g}, "
                f"more than {TOLERANCE:g}; use --no-onnx."
            )
