"""Arguments that several commands share: an experiment file, a data set, a backbone, and settings."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from eimf.core.errors import ConfigError

if TYPE_CHECKING:
    from eimf.config import Config
    from eimf.config.load import Layer
    from eimf.serving.recommender import ListOptions, Recommender

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


PAGES = "docs/"


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], None],
    text: str,
    *,
    examples: Sequence[str] = (),
    page: str = "",
    **options: Any,
) -> argparse.ArgumentParser:
    """Add a command that calls `run` with its arguments.

    Args:
        text: what it is for, in a line.
        examples: whole command lines.
        page: the page of the documentation about it, below `docs/`.
    """
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog(examples, page),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )
    parser.set_defaults(run=run)
    return parser


def epilog(examples: Sequence[str], page: str) -> str:
    """The end of a help text: examples, and where to read more."""
    shown = "".join(f"  {example}\n" for example in examples)
    return (f"examples:\n{shown}" if examples else "") + (f"\nread more: {PAGES}{page}" if page else "")


def run_folder(text: str) -> Path:
    """A run folder as an argument; the folder of several versions stands for the newest one."""
    from eimf.runs.versions import newest_version

    return newest_version(Path(text))


def add_experiment(parser: argparse.ArgumentParser, trains: bool = True) -> None:
    """Add the arguments that name an experiment.

    Args:
        trains: whether the command is about a model; others need the data set alone.
    """
    parser.add_argument(
        "experiment",
        nargs="*",
        metavar="EXPERIMENT.yaml | key=value",
        help="an experiment file and settings that win over it, for example optim.lr=0.002",
    )
    parser.add_argument("--dataset", help="name of experiments/datasets/NAME.yaml")
    parser.set_defaults(strict=True, trains=trains)
    if not trains:
        parser.set_defaults(backbone=None, eimf=False)
        return
    parser.add_argument("--backbone", help="name of a backbone, or package.module:Class")
    parser.add_argument("--eimf", action="store_true", help="train with explicit interests (eimf.enabled=true)")


def load_experiment(options: argparse.Namespace) -> "Config":
    """The configuration that the arguments name.

    Raises:
        ConfigError: see `eimf.config.load`.
    """
    from eimf.config.effect import TRIAL
    from eimf.config.load import resolve

    # Where settings are combined freely, as in a sweep, some may have no effect in some runs.
    strict = options.strict and not any(name in os.environ for name in ("WANDB_SWEEP_ID", TRIAL))
    return resolve([layer._replace(strict=strict) for layer in experiment_layers(options)], options.trains)


def experiment_layers(options: argparse.Namespace) -> "list[Layer]":
    """The layers of the configuration that the arguments name."""
    from eimf.config.checks import check_no_interpolation
    from eimf.config.load import files_for, read_layers

    files = [text for text in options.experiment if is_file_argument(text)]
    check_no_interpolation(files, "a file name")
    settings = [text for text in options.experiment if not is_file_argument(text)]
    settings += ["eimf.enabled=true"] * options.eimf
    if start := getattr(options, "start", None):  # only `eimf train` has it
        settings += [f"start={start}"]
        if not (files or options.dataset or options.backbone):
            files = [f"{start}/config.yaml"]
    if len(files) > 1:
        raise ConfigError(f"{files[1]!r}: one experiment file at a time; settings are key=value.")
    if files:
        if options.dataset or options.backbone:
            raise ConfigError("--dataset, --backbone: go without an experiment file; give dataset=NAME as a setting.")
        return read_layers(files[0], settings)
    return read_layers(*files_for(options.dataset or "demo", options.backbone or "comirec_sa", settings))


def is_file_argument(text: str) -> bool:
    """Whether an argument is a file, not a setting. A path may contain `=`."""
    return "=" not in text or Path(text).is_file()


def add_list_options(parser: argparse.ArgumentParser, n: int, of_histories: bool = True) -> None:
    """Add the arguments of `eimf.serving.recommender.ListOptions`.

    Args:
        of_histories: also those that matter to lists for histories only.
    """
    parser.add_argument("-n", "--n", type=int, default=n, help=f"length of the lists (default {n})")
    for name, text in (("allow", "an item must meet all of these"), ("deny", "an item must meet none of these")):
        parser.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="CONDITION",
            help=f"{text}: category=A,B, item_id=@FILE, 'stock>=1', 'price<=9'; may be repeated",
        )
    add_tables(parser)
    if not of_histories:
        parser.set_defaults(filter_seen=None, merge="best", diversity=0.0, unknown="error")
        return
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--filter-seen", action="store_true", default=None, help="leave out the items of the history")
    seen.add_argument(
        "--include-seen",
        dest="filter_seen",
        action="store_false",
        help="items of the history may be recommended (default of both: as in the run's evaluation)",
    )
    parser.add_argument(
        "--merge",
        choices=("best", "proportional"),
        default="best",
        help="one list of the interests' lists: by best score (default), or by their shares",
    )
    parser.add_argument("--diversity", type=float, default=0.0, help="weight of category diversity (default 0)")
    parser.add_argument(
        "--unknown",
        choices=("skip", "error"),
        default="skip",
        help="items of a history that are not in the catalogue: leave out and count (default), or refuse",
    )


def add_tables(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name tables of items."""
    kinds = "CSV, Parquet, JSON lines"
    parser.add_argument(
        "--columns", metavar="FILE", type=Path, help=f"table with further columns of items, by item_id: {kinds}"
    )
    parser.add_argument(
        "--items", metavar="FILE", type=Path, help=f"table of new items, item_id and title (needs eimf map): {kinds}"
    )


def list_options(options: argparse.Namespace, model: "Recommender", by_interest: bool = False) -> "ListOptions":
    """The options of lists that the arguments name.

    Raises:
        ConfigError: an argument is not well-formed, or out of range.
    """
    from eimf.serving.filters import parse_conditions, typed
    from eimf.serving.recommender import ListOptions

    return ListOptions(
        options.n,
        options.filter_seen,
        typed(parse_conditions(options.allow, "allow"), model.items),
        typed(parse_conditions(options.deny, "deny"), model.items),
        options.merge,
        options.diversity,
        by_interest,
        options.unknown,
    )
