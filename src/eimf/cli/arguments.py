"""Arguments that several commands share: an experiment file, a data set, a backbone, and settings."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from eimf.core.errors import ConfigError

if TYPE_CHECKING:
    from eimf.config import Config
    from eimf.config.load import Layer

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


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name an experiment."""
    parser.add_argument(
        "experiment",
        nargs="*",
        metavar="EXPERIMENT.yaml | key=value",
        help="an experiment file and settings that win over it, for example optim.lr=0.002",
    )
    parser.add_argument("--dataset", help="name of experiments/datasets/NAME.yaml")
    parser.add_argument("--backbone", help="name of a backbone, or package.module:Class")
    parser.add_argument("--eimf", action="store_true", help="train with explicit interests (eimf.enabled=true)")


def load_experiment(options: argparse.Namespace) -> "Config":
    """The configuration that the arguments name.

    Raises:
        ConfigError: see `eimf.config.load`.
    """
    from eimf.config.load import from_dict, merge_layers

    return from_dict(merge_layers(experiment_layers(options)))


def experiment_layers(options: argparse.Namespace) -> "list[Layer]":
    """The layers of the configuration that the arguments name."""
    from eimf.config.checks import check_no_interpolation
    from eimf.config.load import files_for, read_layers

    check_no_interpolation(options.experiment, "an argument")
    files = [text for text in options.experiment if is_file_argument(text)]
    settings = [text for text in options.experiment if not is_file_argument(text)]
    settings += ["eimf.enabled=true"] * options.eimf
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
