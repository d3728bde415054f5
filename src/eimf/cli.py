"""The command `eimf`: parse, load, call. An error of the user's is one line and exit status 2."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from eimf.errors import ConfigError, DataError, EimfError

if TYPE_CHECKING:  # torch takes seconds to import, and `eimf --help` needs none of it
    from eimf.callbacks import Evaluation
    from eimf.config import Config
    from eimf.data.sequences import Prepared

SHOWN = ("recall", "hr", "ndcg", "ndcg_comirec", "mrr", "coverage")


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
    from eimf.label_cli import add_label_commands

    label = commands.add_parser("label", help="explicit interests by an LLM: run, export, import, stats, show, check")
    add_label_commands(label, experiment, _load)
    from eimf.suite_cli import add_compare_command

    add_compare_command(
        commands.add_parser("compare", help="run a suite of variants and seeds, and test which one is better")
    )
    from eimf.sweep_cli import add_sweep_command

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
    from eimf.config import load, load_for

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
    from eimf.data.sequences import prepare

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
    from eimf.config import load
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
    from eimf.data.sequences import prepare
    from eimf.training import is_first_process, resume_config, train

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
    from eimf.training import evaluate_run

    results, config = evaluate_run(options.run_folder, options.overrides, _say)
    print_results(results, f"{config.run_name}, {config.split.kind} split, index {config.eval.index}")


def _report(options: argparse.Namespace) -> None:
    from eimf.report import build_report

    _say(f"written: {build_report(options.folder, options.to)}")


def _index(options: argparse.Namespace) -> None:
    from eimf.config import load
    from eimf.run_folder import INDEX, read_checkpoint, restore_backbone
    from eimf.training import keep_index

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
    from eimf.recommender import load

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


def _plain(text: str) -> Any:
    """A title as text: markup in it is shown, not obeyed."""
    from rich.text import Text

    return Text(text or "(no title)")


def _history_of(user_id: str, run: Path, config: "Config") -> list[str]:
    from eimf.data.sequences import prepare
    from eimf.run_folder import CHECKPOINT_KEY, check_data, read_checkpoint

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


def print_statistics(prepared: "Prepared") -> None:
    """Print the usual statistics table of a data set, and what was repaired."""
    from eimf.data.sequences import statistics

    found = statistics(prepared)
    table = Table(title=f"{prepared.folder.name}", title_justify="left")
    for column in ("users", "items", "interactions", "mean length", "median", "density", "last two tied"):
        table.add_column(column, justify="right")
    table.add_row(
        f"{found.users:,}",
        f"{found.items:,}",
        f"{found.interactions:,}",
        f"{found.mean_length:.2f}",
        f"{found.median_length:.0f}",
        f"{100 * found.density:.3f}%",
        f"{100 * found.tied_users:.1f}%",
    )
    Console().print(table)
    for what, count in prepared.manifest.repairs.items():
        _say(f"  {count:,} {what}")


def print_results(results: "dict[str, Evaluation]", title: str) -> None:
    """Print metrics of validation and test users, and what more is known of the test lists."""
    console = Console()
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    columns = list(results)
    shown = columns[-1]  # test, or validation where the test users are left alone
    for part in columns:
        table.add_column(part, justify="right")
    untied = any(key.startswith("untied/") for one in results.values() for key in one.summary)
    if untied:
        table.add_column(f"{shown}, untied", justify="right")
    keys = [key for key in results[shown].summary if key.split("@")[0] in SHOWN]
    for key in keys:
        row = [f"{results[part].summary[key]:.4f}" for part in columns]
        if untied:
            value = results[shown].summary.get(f"untied/{key}")
            row.append("" if value is None else f"{value:.4f}")
        table.add_row(key, *row)
    console.print(table)
    rest = {key: value for key, value in results[shown].summary.items() if key not in keys and "untied/" not in key}
    if rest:
        console.print(
            f"{shown} lists: " + ", ".join(f"{key} {value:.3f}" for key, value in rest.items()), highlight=False
        )
    trade_off = results[shown].trade_off
    if len(trade_off) > 1:
        table = Table(
            title=f"accuracy against diversity (ComiRec's controllable aggregation), {shown}",
            title_justify="left",
        )
        for column in trade_off[0]:
            table.add_column(column, justify="right")
        for one in trade_off:
            table.add_row(*(f"{value:.4g}" if name == "lambda" else f"{value:.4f}" for name, value in one.items()))
        console.print(table)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
