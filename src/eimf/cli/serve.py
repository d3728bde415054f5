"""TODO"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from eimf.cli.tables import _plain, _say
from eimf.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from eimf.config.schema import Config


def _index(options: argparse.Namespace) -> None:
    from eimf.config.load import load
    from eimf.runs.folder import INDEX, read_checkpoint, restore_backbone
    from eimf.runs.results import keep_index

    backbone, _ = restore_backbone(read_checkpoint(options.run_folder), options.run_folder)
    if wrong := [text for text in options.overrides if not text.startswith("eval.")]:
        raise ConfigError(f"{wrong[0]!r}: only eval.* settings matter to an index.")
    config = load(options.run_folder / "config.yaml", ["eval.index=hnsw", *options.overrides])
    keep_index(options.run_folder, backbone, config)
    path = options.run_folder / INDEX
    _say(f"written: {path} ({config.eval.index}, {path.stat().st_size / 2**20:.1f} MiB); eimf recommend uses it now")


def _explore(options: argparse.Namespace) -> None:
    from eimf.explorer import open_runs, serve

    serve(open_runs(options.run_folders), options.host, options.port, _say, options.open)


def _recommend(options: argparse.Namespace) -> None:
    from eimf.serving.recommender import load

    if options.n < 1:
        raise ConfigError(f"-n: must be at least 1, is {options.n}.")
    model = load(options.run_folder)
    if options.user is not None:
        history = _history_of(options.user, options.run_folder, model.config)
    else:
        history = [part.strip() for part in options.history.split(",") if part.strip()]
    keep = {"filter_seen": not options.include_seen}
    table = Table(title=f"history ({len(history)} items, oldest first)", title_justify="left")
    table.add_column("item")
    table.add_column("title")
    for item in history[-model.config.data.max_len :]:
        table.add_row(item, _plain(model.title(item)))
    console = Console()
    console.print(table)
    lists = model.recommend_by_interest(history, options.n, **keep) if model.n_interests > 1 else []
    merged = model.recommend(history, options.n, diversity=options.diversity, **keep)
    for name, found in [(f"interest {k}", one) for k, one in enumerate(lists)] + [("merged", merged)]:
        table = Table(title=name, title_justify="left")
        for column in ("item", "title", "score", "interest"):
            table.add_column(column, justify="right" if column in ("score", "interest") else "left")
        for one in found:
            table.add_row(one.item_id, _plain(one.title), f"{one.score:.3f}", str(one.interest))
        console.print(table)


def _history_of(user_id: str, run: Path, config: "Config") -> list[str]:
    from eimf.data.prepare import prepare
    from eimf.runs.folder import CHECKPOINT_KEY, check_data, read_checkpoint

    checkpoint = read_checkpoint(run)
    prepared = prepare(config.dataset, config.data.root, digest=checkpoint[CHECKPOINT_KEY]["data_digest"])
    check_data(checkpoint, prepared, run)
    found = (prepared.user_ids == user_id).arg_max()
    if found is None or prepared.user_ids[found] != user_id:
        raise DataError(
            f"--user: {user_id!r} is not among the {len(prepared.user_ids)} users of {config.dataset.name} "
            f"(ids look like {', '.join(map(repr, prepared.user_ids.head(3)))}); use --history for a new user."
        )
    sequences = prepared.sequences
    numbers = sequences.items[sequences.offsets[found] : sequences.offsets[found + 1]]
    return prepared.items["item_id"][numbers - 1].to_list()
