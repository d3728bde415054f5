"""Exports a run for other systems: item vectors for a vector database, and the backbone as a program.

The folder has `item_vectors.npy` [I, D] and `items.parquet` (the columns of the catalogue and `vector`) in the same
order, `weights.safetensors`, `backbone.pt2` (`torch.export`), `backbone.onnx` (needs the extra `export`), and
`manifest.json` with the digests of all files.
"""

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from eimf.backbones import Backbone
from eimf.core.artifacts import Manifest, new_artifact, write_manifest
from eimf.core.errors import ConfigError, DataError
from eimf.core.files import disk_error, sha256_file
from eimf.serving.recommender import Recommender

KIND = "export"
TOLERANCE = 1e-5
"""Largest difference between the vectors of an exported program and of the backbone."""


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


class Padded(nn.Module):
    """The same for histories of any length up to `max_len`: they are padded on the left to `max_len`.

    So the backbone computes with one fixed length. Tracing binds some operations, such as a GRU, to the length of the
    example; padding changes no interest (`eimf.testing.BackboneContract`).
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.vectors, self.max_len = InterestVectors(backbone), backbone.max_len

    def forward(self, history: Int[Tensor, "B L"]) -> Float[Tensor, "B K D"]:
        return self.vectors(nn.functional.pad(history, (self.max_len - history.shape[1], 0)))


def export(model: Recommender, to: Path, onnx: bool = True, program: bool = True) -> Path:
    """Write a run's vectors and backbone to a new folder, completely or not at all.

    Args:
        onnx: write the backbone as ONNX too.
        program: write the backbone as a program of `torch.export` too. Both are compared with the backbone before the
            folder appears.

    Raises:
        ConfigError: the folder exists, the extra `export` is not installed, or the model has no item vectors.
        DataError: an exported program does not compute the same.
        ArtifactError: the folder cannot be written.
    """
    if to.exists():
        raise ConfigError(f"{to}: exists; name a new folder.")
    if onnx and (missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]):
        raise ConfigError(
            f"export: {', '.join(missing)} must be installed for ONNX; pip install 'eimf[export]', or use --no-onnx."
        )
    vectors = model.item_vectors()
    if vectors.shape[1] == 0:
        raise ConfigError(f"export: {model.config.backbone.name} has no item vectors; export another model's run.")
    with new_artifact(to) as folder:
        np.save(folder / "item_vectors.npy", vectors)
        table = model.items.drop("item_idx").with_columns(polars.Series("vector", vectors, polars.List(polars.Float32)))
        table.write_parquet(folder / "items.parquet")
        weights = {name: value.detach().clone().contiguous() for name, value in model.backbone.state_dict().items()}
        save_file(weights, folder / "weights.safetensors")
        if program:
            write_program(model.backbone, folder / "backbone.pt2")
        if onnx:
            write_onnx(model.backbone, folder / "backbone.onnx")
        counts = {"items": len(vectors), "dimensions": vectors.shape[1], "interests": model.n_interests}
        options = {"max_len": model.backbone.max_len, "metric": "inner product", "filter_seen": model.filters_seen}
        inputs = {name: model.about.get(name, "") for name in ("checkpoint_sha256", "data_digest")}
        digest = sha256_file(folder / "items.parquet")
        write_manifest(folder, Manifest(KIND, digest, options, inputs, counts))
    return to


def write_program(backbone: Backbone, path: Path) -> None:
    """Write a backbone as a program that torch runs without our code: `history` [batch, length] (int64) in, interest
    vectors [batch, K, D] out.

    Raises:
        DataError: torch cannot export it, or the vectors of the program differ by more than `TOLERANCE`.
    """
    histories = _examples(backbone)
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")  # it names attributes of torch's own GRU
        try:
            made = torch.export.export(Padded(backbone).eval(), (histories[0],), dynamic_shapes=_sizes(backbone))
            torch.export.save(made, path)
            run = torch.export.load(path).module()
        except Exception as error:  # torch has many kinds
            if disk_error(error) is not None:
                raise
            raise _unexportable(backbone, "be exported by torch", error, "--no-program") from None
    _compare(backbone, histories, run, "the program's", "--no-program")


def write_onnx(backbone: Backbone, path: Path) -> None:
    """Write a backbone as one ONNX file: input `history` [batch, length] (int64), output `interests`.

    Raises:
        DataError: ONNX Runtime cannot run it, or its vectors differ from torch's by more than `TOLERANCE`.
    """
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which is not needed
    histories = _examples(backbone)
    program = torch.onnx.export(
        InterestVectors(backbone).eval(),
        (histories[0],),
        dynamo=True,
        input_names=["history"],
        output_names=["interests"],
        dynamic_shapes=_sizes(backbone),
        verbose=False,
    )
    assert program is not None
    program.save(path, include_initializers=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(history: Tensor) -> Tensor:
        try:
            return torch.from_numpy(np.asarray(session.run(None, {"history": history.numpy()})[0]))
        except Exception as error:  # ONNX Runtime has many kinds
            raise _unexportable(backbone, "run in ONNX", error, "--no-onnx") from None

    _compare(backbone, histories, run, "ONNX Runtime's", "--no-onnx")


def _examples(backbone: Backbone) -> list[Int[Tensor, "B L"]]:
    """Histories of several numbers of users and of positions: a file must not be bound to those of the first one, with
    which it is made."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((3, backbone.max_len), (7, max(1, backbone.max_len // 2)), (1, 1))
    histories = [torch.randint(1, backbone.n_items + 1, size, generator=generator) for size in sizes]
    histories[0][:, : backbone.max_len // 3] = 0
    return histories


def _sizes(backbone: Backbone) -> dict[str, dict[int, torch.export.Dim]]:
    """Which sizes of the input may vary."""
    sizes = {0: torch.export.Dim("batch", min=1)}
    if backbone.max_len > 1:
        sizes[1] = torch.export.Dim("length", min=1, max=backbone.max_len)
    return {"history": sizes}


def _compare(
    backbone: Backbone, histories: list[Tensor], run: Callable[[Tensor], Tensor], whose: str, option: str
) -> None:
    """Refuse a program whose vectors differ from the backbone's.

    Args:
        whose: name of the vectors, for the message.
        option: leaves this program out.

    Raises:
        DataError: they differ by more than `TOLERANCE`.
    """
    wrapped = InterestVectors(backbone).eval()
    for history in histories:
        with torch.inference_mode():
            difference = float((run(history) - wrapped(history)).abs().max())
        if not difference <= TOLERANCE:
            raise DataError(
                f"export: {whose} vectors of {type(backbone).__name__} differ from torch's by {difference:.2g}, more "
                f"than {TOLERANCE:g}; use {option}."
            )


def _unexportable(backbone: Backbone, verb: str, error: Exception, option: str) -> DataError:
    reason = " ".join(str(error).split())[:200]
    return DataError(f"export: {type(backbone).__name__} cannot {verb} ({reason}); use {option}.")
