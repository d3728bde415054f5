"""Starts a training from the weights of an earlier run of the same shop (`eimf train --from RUN`)."""

import logging
from pathlib import Path

import numpy as np
import polars
import torch
from torch import Tensor, nn

from eimf.backbones import BACKBONES, Backbone
from eimf.config.schema import Config
from eimf.core.errors import ArtifactError, ConfigError
from eimf.data.prepared import Prepared
from eimf.data.splits import Split
from eimf.data.text import encode_items, read_vectors
from eimf.runs.folder import ORIGIN, read_checkpoint, read_frame, read_run, restore_backbone
from eimf.runs.text_map import TextMap, read_text_map
from eimf.runs.trained_on import TrainedOn, check_held_out, read_trained_on, trained_on

log = logging.getLogger(__name__)

ITEM_TABLE = "item_embedding.weight"


def warm_start(backbone: Backbone, tasks: nn.Module | None, config: Config, prepared: Prepared) -> None:
    """Copy the weights of the run `config.start`: rows of the item table by raw item id, everything else as it is.

    Items that the run does not have start from its text map, if it keeps one (`eimf map`); else they stay as they are:
    at random. Items that are gone are left out. States of the optimiser are not copied.

    Args:
        tasks: EIMF's auxiliary tasks. Their parameters are copied where the run has them in the same shape.

    Raises:
        ConfigError: the text map needs vectors of the new items that are not given.
        ArtifactError: the run's files are missing or damaged.
    """
    folder = Path(config.start)
    checkpoint = read_checkpoint(folder)
    before, _ = restore_backbone(checkpoint, folder)
    known = read_frame(folder / "items.parquet", read_run(folder).get("items_sha256", ""))
    # Row of each item of today in the earlier table; 0 (padding) where it has none.
    rows = prepared.items.select("item_id").join(
        known.select("item_id", polars.col("item_idx").alias("row")), on="item_id", how="left", maintain_order="left"
    )["row"]
    earlier = torch.from_numpy(np.concatenate([[0], rows.fill_null(0).to_numpy()]).astype(np.int64))
    new = torch.from_numpy(np.concatenate([[False], rows.is_null().to_numpy()]))
    state = before.state_dict()
    with torch.no_grad():
        for name, value in backbone.state_dict().items():
            if name == ITEM_TABLE or _by_item(value, state[name], backbone, before):
                value.copy_(torch.where(new.view(-1, *[1] * (value.ndim - 1)), value, state[name][earlier]))
            else:
                value.copy_(state[name])
        start = "at random"
        if bool(new.any()) and (text_map := read_text_map(folder)) is not None:
            backbone.item_embedding.weight[new] = _mapped(text_map, config, prepared, new)
            start = "from the text map"
        for name, value in tasks.named_parameters() if tasks is not None else ():
            saved = checkpoint["state_dict"].get(f"tasks.{name}")
            if saved is not None and saved.shape == value.shape:
                value.copy_(saved)
    count = int(new.sum())
    log.info(
        f"start: {folder}, {prepared.n_items - count:,} of {prepared.n_items:,} items known"
        + (f"; {count:,} new ones start {start}" if count else "")
    )


def check_start(config: Config, prepared: Prepared, split: Split) -> None:
    """Refuse a run to start from that does not fit.

    Raises:
        ConfigError: its model has other shapes, or what it was trained on may be held out here.
        ArtifactError: its files are missing, damaged or changed.
    """
    folder = Path(config.start)
    checkpoint = read_checkpoint(folder)
    before, trained = restore_backbone(checkpoint, folder)
    backbone: Backbone = BACKBONES[config.backbone.name](prepared.n_items, config.data.max_len, config.backbone)
    _check_model(config, trained, backbone, before)
    _check_split(config, trained, checkpoint[ORIGIN]["data_digest"] == prepared.digest)
    if config.split.kind != "user":
        if (earlier := read_trained_on(folder)) is not None:
            check_held_out(config.start, earlier, prepared, split, config.split.kind)
        else:
            log.warning(
                f"start: {folder} does not say what it was trained on (an earlier version wrote it); make sure that "
                "nothing of it is held out here: the data must be newer than those of then"
            )
    known = read_frame(folder / "items.parquet", read_run(folder).get("items_sha256", ""))
    if len(known) != before.n_items:
        raise ArtifactError(f"start: {folder}/items.parquet is of another run than its checkpoint; restore it.")


def trained_on_with_start(config: Config, prepared: Prepared, split: Split) -> TrainedOn | None:
    """What a run is trained on, with what the run was trained on that it starts from; see `eimf.runs.trained_on`."""
    record = trained_on(prepared, split, config.split.kind)
    earlier = read_trained_on(Path(config.start)) if config.start else None
    return record.and_those_of(earlier) if record is not None and earlier is not None else record


def _by_item(value: Tensor, saved: Tensor, backbone: Backbone, before: Backbone) -> bool:
    """Whether a tensor has a row for each item, so that only its number of rows may differ."""
    sizes = (backbone.n_items + 1, before.n_items + 1)
    return value.shape != saved.shape and (len(value), len(saved)) == sizes and value.shape[1:] == saved.shape[1:]


def _check_model(config: Config, trained: Config, backbone: Backbone, before: Backbone) -> None:
    """Refuse a run whose weights have other names or shapes."""
    if not backbone.trainable:
        raise ConfigError(f"start: backbone {config.backbone.name!r} is not trained; leave start empty.")
    if config.backbone.name != trained.backbone.name:
        raise ConfigError(
            f"start: {config.start} has backbone {trained.backbone.name!r}, this run {config.backbone.name!r}; start "
            "from a run of the same backbone."
        )
    now, then = backbone.state_dict(), before.state_dict()
    for name, value in now.items():
        saved = then.get(name)
        fits = saved is not None and (value.shape[1:] == saved.shape[1:] if name == ITEM_TABLE else True)
        if (
            saved is None
            or not fits
            or not (value.shape == saved.shape or name == ITEM_TABLE or _by_item(value, saved, backbone, before))
        ):
            shapes = f"has the shape {list(saved.shape) if saved is not None else None} there, {list(value.shape)} here"
            raise ConfigError(
                f"start: {config.start} does not fit: {name} {shapes}; use its backbone settings and data.max_len "
                f"(backbone.embed_dim is {trained.backbone.embed_dim} there, {config.backbone.embed_dim} here)."
            )


def _check_split(config: Config, trained: Config, same_data: bool) -> None:
    """Refuse a run that was trained on interactions that are held out here."""
    if config.split != trained.split:
        raise ConfigError(
            f"start: {config.start} was trained on another split (split.kind={trained.split.kind}), so it has seen "
            "interactions that are held out here; use the same split settings."
        )
    if config.split.kind == "user" and not same_data:
        raise ConfigError(
            f"start: {config.start} was trained on other data, whose training users are partly held out here by "
            "split.kind=user; use split.kind=time or loo for both runs."
        )


def _mapped(text_map: TextMap, config: Config, prepared: Prepared, new: Tensor) -> Tensor:
    """Item vectors of the new items by the text map."""
    items = prepared.items.filter(new[1:].numpy())
    if text_map.encoder:
        texts = encode_items(items, text_map.encoder, config.data.root).vectors
    elif config.text.vectors:
        texts = read_vectors(Path(config.text.vectors), items["item_id"]).vectors
    else:
        raise ConfigError(
            f"text.vectors: is empty, but the text map of {config.start} was fitted on vectors of a file, which new "
            "items need too; give the file."
        )
    return torch.from_numpy(text_map(texts[1:]))
