"""Commands of data and training: `prepare`, `simulate`, `train`, `evaluate`, `config`."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eimf.cli.arguments import Commands, add_command, add_experiment, experiment_layers, load_experiment, run_folder
from eimf.core.errors import ConfigError

if TYPE_CHECKING:
    from eimf.config import Config
    from eimf.data.prepared import Prepared

log = logging.getLogger(__name__)


def add_commands(commands: Commands) -> None:
    """Add the commands of this file."""
    preparation = add_command(
        commands,
        "prepare",
        _prepare,
        "download, filter and number a data set; print its statistics",
        examples=(
            "eimf prepare --dataset demo",
            "eimf prepare --dataset mine dataset.source=table dataset.interactions=orders.csv",
        ),
        page="howto/own-data.md",
    )
    add_experiment(preparation, trains=False)
    preparation.add_argument(
        "--shards",
        type=int,
        metavar="N",
        help="divide the users of a large table into N parts, one in memory at a time",
    )
    preparation.add_argument(
        "--ray", metavar="ADDRESS", help="do the shards on a Ray cluster: its address, auto, or local to start one here"
    )
    simulate = add_command(
        commands,
        "simulate",
        _simulate,
        "write a simulated shop of any size as Parquet, to test scaling",
        examples=("eimf simulate shop --users 1000000", "eimf simulate small --users 500 --items 200 --mean-length 20"),
        page="howto/scale.md",
    )
    simulate.add_argument("folder", metavar="FOLDER", type=Path, help="a new folder")
    simulate.add_argument("--users", type=int, default=100_000)
    simulate.add_argument("--items", type=int, default=100_000)
    simulate.add_argument("--mean-length", type=float, default=50.0, help="interactions of a user (default 50)")
    simulate.add_argument("--seed", type=int, default=0)
    train = add_command(
        commands,
        "train",
        _train,
        "train a model, evaluate it, and write its run folder",
        examples=(
            "eimf train --dataset demo --backbone comirec_sa",
            "eimf train --resume lightning_logs/demo-comirec_sa",
        ),
        page="tutorial.md",
    )
    add_experiment(train)
    train.add_argument("--resume", metavar="RUN", type=run_folder, help="continue a run from its last epoch")
    train.add_argument(
        "--from",
        dest="start",
        metavar="RUN",
        type=run_folder,
        help="start from the weights of an earlier run of the same shop, and by default from its settings",
    )
    evaluate = add_command(
        commands,
        "evaluate",
        _evaluate,
        "evaluate a run's best checkpoint again",
        examples=(
            "eimf evaluate lightning_logs/demo-comirec_sa",
            "eimf evaluate lightning_logs/demo-comirec_sa eval.index=hnsw",
        ),
        page="explanation/protocols.md",
    )
    evaluate.add_argument("run_folder", metavar="RUN", type=run_folder)
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="for example eval.index=hnsw")
    config = add_command(
        commands,
        "config",
        _config,
        "print every setting of an experiment, with the file or argument that set it",
        examples=("eimf config --dataset demo --backbone mind", "eimf config --changed optim.lr=0.002 --eimf"),
        page="reference/settings.md",
    )
    add_experiment(config)
    config.add_argument("--changed", action="store_true", help="only settings that are not at their default")


def load_train(arguments: Sequence[str]) -> "Config":
    """The configuration that `eimf train` has with these arguments in a sweep.

    Raises:
        ConfigError: `eimf train` does not understand them.
    """
    parser = argparse.ArgumentParser(prog="eimf")
    add_commands(parser.add_subparsers())
    try:
        options = parser.parse_args(["train", *arguments])
    except SystemExit:
        raise ConfigError(f"eimf train {' '.join(arguments)}: is not a command that it understands.") from None
    options.strict = False
    return load_experiment(options)


def _prepare(options: argparse.Namespace) -> None:
    from eimf.cli.tables import print_statistics
    from eimf.data.prepare import prepare

    config = load_experiment(options)
    if options.shards is None and options.ray is None:
        prepared = prepare(config.dataset, config.data.root)
        print_statistics(prepared)
        _say_repeats(config, prepared)
        return
    from eimf.data.shards import Here, RayCluster, prepare_in_shards

    if options.shards is None or options.shards < 1:
        raise ConfigError(f"--shards: must be 1 or more, is {options.shards}; some ten for each machine will do.")
    workers = RayCluster(options.ray) if options.ray else Here()
    print_statistics(prepare_in_shards(config.dataset, config.data.root, options.shards, workers))


def _say_repeats(config: "Config", prepared: "Prepared") -> None:
    """Log the share of held-out targets that repeat an item; `eval.filter_seen=auto` depends on it."""
    from eimf.core.errors import DataError
    from eimf.data.splits import share_of_repeats, split_sequences

    try:
        parts = split_sequences(prepared.sequences, config.split)
    except DataError:  # too few users for this split; only training needs one
        return
    share = share_of_repeats(prepared.sequences, parts.validation, parts.test)
    filters = {"auto": share == 0, "true": True, "false": False}[config.eval.filter_seen]
    how = "leave out the items that a user has" if filters else "may hold items that a user has (unfiltered)"
    log.info(
        f"  {share:.1%} of the held-out targets ({config.split.kind} split) repeat an item of the user's context: "
        f"lists {how}"
    )


def _simulate(options: argparse.Namespace) -> None:
    from eimf.config.load import load
    from eimf.data.shop import write_shop
    from eimf.data.sources.demo import DemoConfig

    settings = {"n_users": options.users, "n_items": options.items}
    settings |= {"mean_length": options.mean_length, "seed": options.seed}
    config = load(None, [f"dataset.{name}={value}" for name, value in settings.items()])
    assert isinstance(config.dataset, DemoConfig)
    write_shop(options.folder, config.dataset)
    large = options.items > config.optim.dense_limit
    log.info(f"written: {options.folder}/interactions.parquet, items.parquet")
    log.info(
        f"try:     eimf train dataset.source=table dataset.name={options.folder.name} "
        f"dataset.interactions={options.folder}/interactions.parquet dataset.items={options.folder}/items.parquet"
        + (" loss.name=sampled_softmax optim.name=rowwise" if large else "")
    )


def _train(options: argparse.Namespace) -> None:
    if options.resume is None:
        load_experiment(options)  # errors show before Lightning is imported, which takes seconds
    elif options.dataset or options.backbone or options.eimf or options.start:
        raise ConfigError("--resume: continues with the run's own configuration; give nothing else with it.")
    from eimf.cli.tables import print_results, print_statistics, print_training
    from eimf.data.prepare import prepare
    from eimf.evaluation.remarks import describe_interests
    from eimf.runs.provenance import label_digest
    from eimf.training.processes import is_first_process
    from eimf.training.train import resume_config, train

    config = load_experiment(options) if options.resume is None else resume_config(options.resume, options.experiment)
    label_digest(config)  # missing labels are said before anything is prepared
    prepared = prepare(config.dataset, config.data.root)
    first = is_first_process()
    if first:
        print_statistics(prepared)
    run = train(config, options.resume, prepared)
    if first:
        print_results(run.results, f"{config.run_name}, {config.split.kind} split, seed {config.seed}")
        summary = run.results["test" if "test" in run.results else "val"].summary
        for sentence in describe_interests(summary):
            log.info(sentence)
        print_training(run.folder, config.monitor, prepared.user_ids[0])


def _evaluate(options: argparse.Namespace) -> None:
    from eimf.cli.tables import print_results
    from eimf.training.evaluate import evaluate_run

    results, config = evaluate_run(options.run_folder, options.overrides)
    print_results(results, f"{config.run_name}, {config.split.kind} split, index {config.eval.index}")


def _config(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from eimf.config.load import origins, resolve

    layers = experiment_layers(options)
    config = resolve(layers)
    table = Table(box=None, pad_edge=False)
    for column in ("setting", "value", "set by"):
        table.add_column(column, overflow="fold")
    for path, value, origin in origins(layers, config):
        if origin != "default" or not options.changed:
            table.add_row(path, Text("" if value == "" else str(value)), Text(origin))
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160  # a file has room
    console.print(table)
