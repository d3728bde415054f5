"""The command `eimf`: parse, load, call. An error of the user's is one line and exit status 2."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eimf.cli.serve import _explore, _index, _recommend
from eimf.cli.tables import _say, print_results, print_statistics
from eimf.core.errors import ConfigError, EimfError

if TYPE_CHECKING:
    from eimf.config.schema import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:  # argparse takes no positional arguments after an option: `eimf sweep FILE --offline optim.lr=0.002`
        settings = getattr(options, "overrides", getattr(options, "experiment", None))
        if settings is None or any(text.startswith("-") or "=" not in text for text in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        settings += rest
    try:
        options.run(options)
    except EimfError as error:
        print(f"eimf: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "eimf: interrupted; a training run continues with eimf train --resume RUN, others by the same command",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # the reader of our output, for example `head`, has gone
        sys.stderr.close()
        return 141
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eimf", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--version", action="version", version=f"eimf {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    def experiment(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "experiment",
            nargs="*",
            metavar="EXPERIMENT.yaml | key=value",
            help="an experiment file and settings that win over it, for example optim.lr=0.002",
        )
        made.add_argument("--dataset", help="name of experiments/datasets/NAME.yaml")
        made.add_argument("--backbone", help="name of experiments/backbones/NAME.yaml")
        made.add_argument("--eimf", action="store_true", help="train with explicit interests (eimf.enabled=true)")

    preparation = command("prepare", _prepare, "download, filter and number a data set; print its statistics")
    experiment(preparation)
    preparation.add_argument(
        "--shards", type=int, metavar="N", help="deal the users of a large table to N parts, one in memory at a time"
    )
    preparation.add_argument(
        "--ray", metavar="ADDRESS", help="do the shards on a Ray cluster: its address, auto, or local to start one here"
    )
    simulate = command("simulate", _simulate, "write a simulated shop of any size as Parquet, to try what growth costs")
    simulate.add_argument("folder", metavar="FOLDER", type=Path, help="a new folder")
    simulate.add_argument("--users", type=int, default=100_000)
    simulate.add_argument("--items", type=int, default=100_000)
    simulate.add_argument("--mean-length", type=float, default=50.0, help="interactions of a user (default 50)")
    simulate.add_argument("--seed", type=int, default=0)
    train = command("train", _train, "train a model, evaluate it, and write its run folder")
    experiment(train)
    train.add_argument("--resume", metavar="RUN", type=Path, help="continue an interrupted run from its last epoch")
    evaluate = command("evaluate", _evaluate, "evaluate a run's best checkpoint again")
    evaluate.add_argument("run_folder", metavar="RUN", type=Path)
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="for example eval.index=hnsw")
    from eimf.cli.labels import add_label_commands

    label = commands.add_parser("label", help="explicit interests by an LLM: run, export, import, stats, show, check")
    add_label_commands(label, experiment, _load)
    from eimf.cli.compare import add_compare_command

    add_compare_command(
        commands.add_parser("compare", help="run a suite of variants and seeds, and test which one is better")
    )
    from eimf.cli.sweep import add_sweep_command

    add_sweep_command(
        commands.add_parser("sweep", help="search settings on validation users, at W&B or here"), load_train
    )
    index = command("index", _index, "keep a retrieval index in a run folder, for serving a large catalogue")
    index.add_argument("run_folder", metavar="RUN", type=Path)
    index.add_argument("overrides", nargs="*", metavar="key=value", help="eval.index=hnsw (default), ivf, ivfpq, ...")
    report = command("report", _report, "write one HTML page about a run or a suite")
    report.add_argument("folder", metavar="RUN|SUITE_FOLDER", type=Path)
    report.add_argument("--to", metavar="FILE", type=Path, help="the page (default: report.html in the folder)")
    explore = command("explore", _explore, "look into runs in a browser: interests, their items, diversity")
    explore.add_argument("run_folders", metavar="RUN", type=Path, nargs="+", help="two or more are shown side by side")
    explore.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    explore.add_argument("--port", type=int, default=8411, help="default 8411; 0 takes any free one")
    explore.add_argument("--open", action="store_true", help="open the page in the browser")
    recommend = command("recommend", _recommend, "recommend for a user or a history, interest by interest")
    recommend.add_argument("run_folder", metavar="RUN", type=Path)
    who = recommend.add_mutually_exclusive_group(required=True)
    who.add_argument("--history", metavar="ID,ID,...", help="item ids, oldest first")
    who.add_argument("--user", metavar="USER_ID", help="a user of the data set; his whole history is used")
    recommend.add_argument("-n", type=int, default=10, help="length of the lists (default 10)")
    recommend.add_argument("--diversity", type=float, default=0.0, help="weight of category diversity (default 0)")
    recommend.add_argument("--include-seen", action="store_true", help="items of the history may be recommended")
    return parser


def _version() -> str:
    from eimf import __version__

    return __version__


def _load(options: argparse.Namespace) -> "Config":
    from eimf.config.load import load, load_for

    files = [text for text in options.experiment if "=" not in text]
    settings = [text for text in options.experiment if "=" in text] + ["eimf.enabled=true"] * options.eimf
    if len(files) > 1:
        raise ConfigError(f"{files[1]!r}: one experiment file at a time; settings are key=value.")
    if files:
        if options.dataset or options.backbone:
            raise ConfigError("--dataset, --backbone: go without an experiment file; give dataset=NAME as a setting.")
        return load(files[0], settings)
    dataset, backbone = options.dataset or "demo", options.backbone or "comirec_sa"
    return load_for(dataset, backbone, settings)


def load_train(arguments: Sequence[str]) -> "Config":
    """The configuration that `eimf train` has with these arguments."""
    try:
        options = _parser().parse_args(["train", *arguments])
    except SystemExit:
        raise ConfigError(f"eimf train {' '.join(arguments)}: is not a command that it understands.") from None
    return _load(options)


def _prepare(options: argparse.Namespace) -> None:
    from eimf.data.prepare import prepare

    config = _load(options)
    if options.shards is None and options.ray is None:
        print_statistics(prepare(config.dataset, config.data.root, _say))
        return
    from eimf.data.shards import Here, RayCluster, prepare_in_shards

    if options.shards is None or options.shards < 1:
        raise ConfigError(f"--shards: must be 1 or more, is {options.shards}; some ten for each machine will do.")
    workers = RayCluster(options.ray) if options.ray else Here()
    print_statistics(prepare_in_shards(config.dataset, config.data.root, options.shards, workers, _say))


def _simulate(options: argparse.Namespace) -> None:
    from eimf.config.load import load
    from eimf.data.shop import write_shop

    wanted = {"n_users": options.users, "n_items": options.items}
    wanted |= {"mean_length": options.mean_length, "seed": options.seed}
    config = load(None, [f"dataset.demo.{name}={value}" for name, value in wanted.items()])
    write_shop(options.folder, config.dataset.demo, _say)
    large = options.items > config.optim.dense_limit
    _say(f"written: {options.folder}/interactions.parquet, items.parquet")
    _say(
        f"try:     eimf train dataset.source=table dataset.name={options.folder.name} "
        f"dataset.interactions={options.folder}/interactions.parquet dataset.items={options.folder}/items.parquet"
        + (" loss.name=sampled_softmax optim.name=rowwise" if large else "")
    )


def _train(options: argparse.Namespace) -> None:
    from eimf.data.prepare import prepare
    from eimf.runs.results import is_first_process
    from eimf.training.train import resume_config, train

    if options.resume is not None:
        if options.experiment or options.dataset or options.backbone:
            raise ConfigError("--resume: continues with the run's own configuration; give nothing else with it.")
        config = resume_config(options.resume)
    else:
        config = _load(options)
    say = _say if is_first_process() else lambda text: None
    prepared = prepare(config.dataset, config.data.root, say)
    if is_first_process():
        print_statistics(prepared)
    run = train(config, options.resume, say, prepared)
    if is_first_process():
        print_results(run.results, f"{config.run_name}, {config.split.kind} split, seed {config.seed}")
        _say(f"written: {run.folder}/ (config.yaml, metrics.csv, results.json, checkpoints/best.ckpt, ...)")
        _say(f'try:     eimf recommend {run.folder} --user "{prepared.user_ids[0]}"')


def _evaluate(options: argparse.Namespace) -> None:
    from eimf.training.evaluate import evaluate_run

    results, config = evaluate_run(options.run_folder, options.overrides, _say)
    print_results(results, f"{config.run_name}, {config.split.kind} split, index {config.eval.index}")


def _report(options: argparse.Namespace) -> None:
    from eimf.report import build_report

    _say(f"written: {build_report(options.folder, options.to)}")


if __name__ == "__main__":
    raise SystemExit(main())
