"""The command `eimf compare`: make the missing runs of a suite, and compare all of them."""

import argparse
import json
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from eimf.cli.arguments import Commands, add_command
from eimf.cli.tables import print_table
from eimf.core.errors import ArtifactError, ConfigError

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from eimf.studies.comparison import Comparison
    from eimf.studies.suite import Planned, Suite

PLACES = ("data.root=", "logger.")
"""Settings that say where things are kept, on this machine only."""


def add_commands(commands: Commands) -> None:
    """Add the command `eimf compare`."""
    parser = add_command(
        commands,
        "compare",
        _compare,
        "run a suite of variants and seeds, and test which one is better",
        examples=("eimf compare backbones dataset=demo seeds=[0,1,2]", "eimf compare backbones dataset=demo --dry-run"),
        page="howto/compare.md",
    )
    parser.add_argument("suite", metavar="SUITE", help="a YAML file, or a name in experiments/suites")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings of all variants, and seeds=[0,1,2], only=[VARIANT,...], resplit=true (other users for each "
        "seed), suite=NAME, baseline=VARIANT",
    )
    parser.add_argument("--dry-run", action="store_true", help="show which runs exist and which would be made")
    parser.add_argument("--no-run", action="store_true", help="compare the finished runs; make none")
    parser.add_argument(
        "--any-code", action="store_true", help="use finished runs of other versions of the code too (they are named)"
    )
    parser.add_argument(
        "--groups", action="store_true", help="also lifts by history length, popularity, nearness to labelled users"
    )
    parser.add_argument("--shard", default="1/1", metavar="i/n", help="make every n-th run only, from the i-th")


def _compare(options: argparse.Namespace) -> None:
    from eimf.runs.folder import read_results, read_run
    from eimf.studies.comparison import compare
    from eimf.studies.suite import FINISHED, finished_runs, plan, read_suite, run_suite
    from eimf.studies.tables import sentences, to_rich, write_comparison

    index, shards = _shard(options.shard)
    suite = read_suite(options.suite, options.overrides)
    if suite.first.dataset.source == "demo" and not any(text.startswith("dataset") for text in options.overrides):
        log.info("data set: demo, the simulated shop; choose another with dataset=NAME")
    planned = plan(suite, options.any_code)
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160  # a file has room
    _show_plan(console, planned)
    if options.dry_run:
        return
    failed: list[str] = []
    if not options.no_run:
        failed = run_suite(planned[index - 1 :: shards], suite.folder)
        planned = plan(suite, options.any_code)
    runs = finished_runs(suite, planned)
    comparison = compare(
        f"{suite.folder.name}", runs, suite.baseline, suite.metrics, suite.question, labels=suite.labels
    )
    console.print(to_rich(comparison))
    for sentence in sentences(comparison):
        console.print(sentence, highlight=False, soft_wrap=True)
    if options.groups:
        _show_groups(console, suite, runs, comparison)
    _show_means(console, "interests and lists (means)", comparison.lists)
    names = ("epochs", "seconds_per_epoch", "training_minutes", "peak_memory_gib")
    _show_means(console, "costs of a run (means)", comparison.costs, names)
    unfinished = sum(run.state != FINISHED for run in planned)
    if unfinished:
        log.info(f"{unfinished} of {len(planned)} runs are not finished; the same command continues.")
    kept = [text for text in options.overrides if not text.startswith(PLACES)]
    command = shlex.join(["eimf", "compare", options.suite, *map(_without_folder, kept)])
    first = next(iter(runs[suite.baseline].values()))
    record = read_run(first)
    about = {name: record.get(name) for name in ("data_digest", "package_version", "code", "commit", "machine")}
    about |= {"command": command, "dataset": suite.first.dataset.name, "split": suite.first.split.kind}
    about["resplit"] = suite.resplit
    about["users"] = read_results(first)["users"]
    _say_replaced(suite.folder / "comparison" / "comparison.json", runs)
    paths = write_comparison(comparison, suite.folder / "comparison", about)
    log.info(f"written: {paths[0].parent}/ ({', '.join(path.name for path in paths)})")
    if failed:
        raise ArtifactError(f"{suite.name}: {len(failed)} runs failed: {'; '.join(failed)}. See {suite.folder}/logs.")


def _say_replaced(before: Path, runs: "dict[str, dict[int, Path]]") -> None:
    """Log that a comparison of seeds which this one has not is replaced."""
    try:
        earlier = {int(seed) for seeds in json.loads(before.read_text())["runs"].values() for seed in seeds}
    except (OSError, ValueError, KeyError, AttributeError):
        return
    if earlier - {seed for seeds in runs.values() for seed in seeds}:
        shown = ",".join(map(str, sorted(earlier)))
        log.info(
            f"{before.parent}: a comparison with other seeds is replaced; its runs are kept: "
            f"'seeds=[{shown}]' compares them again"
        )


def _without_folder(setting: str) -> str:
    """A setting whose value, if it is a file, has the file's name alone: folders are of this machine only."""
    key, _, value = setting.partition("=")
    return f"{key}={Path(value).name}" if value and Path(value).is_file() else setting


def _shard(text: str) -> tuple[int, int]:
    index, slash, shards = text.partition("/")
    if not (slash and index.isdigit() and shards.isdigit() and 1 <= int(index) <= int(shards)):
        raise ConfigError(f"--shard: must be i/n with i from 1 to n, for example 1/4, is {text!r}.")
    return int(index), int(shards)


def _show_plan(console: Console, planned: "list[Planned]") -> None:
    from eimf.studies.suite import FINISHED

    table = Table(title=f"{len(planned)} runs", title_justify="left")
    for column in ("variant", "seed", "state", "folder"):
        table.add_column(column, overflow="fold")
    for run in planned:
        state = run.state + (", other code" if run.found and run.state == FINISHED and not run.found.this_code else "")
        table.add_row(run.variant, str(run.config.seed), state, str(run.found.folder if run.found else ""))
    console.print(table)


def _show_groups(console: Console, suite: "Suite", runs: dict[str, dict[int, Path]], comparison: "Comparison") -> None:
    """Print lifts by groups of users in the table's first metric, and write them to `groups.csv`."""
    import polars

    from eimf.core.files import make_folder, write_text_atomic
    from eimf.data.prepare import prepare
    from eimf.data.splits import split_sequences
    from eimf.evaluation.groups import group_users, join_held_out
    from eimf.studies.comparison import compare_groups
    from eimf.training.build import build_data
    from eimf.training.evaluate import group_held_out

    prepared = prepare(suite.first.dataset, suite.first.data.root)
    variants = list(suite.variants.values())
    configs = next((each for each in variants if each[0].eimf.enabled), variants[0])  # with labels, if any variant has
    data = build_data(configs[0], prepared, labelled=False)
    if suite.resplit:  # without nearness to labelled users, who are others in each split
        splits = [split_sequences(prepared.sequences, config.split) for config in configs]
        held = join_held_out([split.test if comparison.part == "test" else split.validation for split in splits])
        groups = group_users(prepared.sequences, held, data.item_counts.numpy(), categories=prepared.categories)
    else:
        groups = group_held_out(configs[0], data, comparison.part)
    lifts = compare_groups(runs, suite.baseline, comparison.metrics[0], groups, comparison.part)
    columns = ("group", "level", "variant", "users", "baseline", "lift", "95% interval")
    rows = [
        (
            lift.group,
            lift.level,
            lift.variant,
            f"{lift.users:,}",
            f"{lift.baseline:.4f}",
            f"{lift.lift:+.1%}",
            f"{lift.low:+.1%} to {lift.high:+.1%}",
        )
        for lift in lifts
    ]
    title = f"lift in {comparison.metrics[0]} over {comparison.baseline} by groups of users"
    print_table(console, title, columns, rows, left=3)
    folder = suite.folder / "comparison"
    make_folder(folder)
    write_text_atomic(folder / "groups.csv", polars.DataFrame([vars(lift) for lift in lifts]).write_csv())


def _show_means(
    console: Console, title: str, values_of: dict[str, dict[str, float]], names: Sequence[str] = ()
) -> None:
    """Print values that have no test of significance; without names, all that any variant has."""
    names = names or list(dict.fromkeys(name for values in values_of.values() for name in values))
    columns = ("variant", *(name.replace("_", " ") for name in names))
    rows = [
        (variant, *(f"{values[name]:.2f}" if name in values else "" for name in names))
        for variant, values in values_of.items()
    ]
    print_table(console, title, columns, rows)
