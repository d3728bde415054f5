"""The command `eimf`: parse, load, call. An error of the user's is one line and exit status 2."""

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn

from eimf.cli import compare, labels, serve, sweep, train
from eimf.cli.arguments import epilog
from eimf.core.errors import EimfError
from eimf.core.options import OTHER_NAMES, nearest
from eimf.core.version import VERSION

DEBUG = "EIMF_DEBUG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for an error of the user's, 1 for a fault of the program."""
    parser, given = build_parser(), sys.argv[1:] if arguments is None else list(arguments)
    options, rest = parser.parse_known_args(given)
    if rest:  # argparse takes no positional arguments after an option: `eimf sweep FILE --offline optim.lr=0.002`
        settings = getattr(options, "overrides", getattr(options, "experiment", None))
        if settings is None or any(text.startswith("-") or "=" not in text for text in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}{_as_setting(rest[0], given)}")
        settings += rest
    show_log_lines()
    try:
        options.run(options)
    except EimfError as error:
        print(f"eimf: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:  # a training run says how to continue
        print(f"eimf: interrupted; {error or 'the same command continues'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, for example `head`, has gone
        sys.stderr.close()
        return 141
    except Exception as error:
        return _unexpected(error, options.debug)
    return 0


def _as_setting(option: str, given: Sequence[str]) -> str:
    """A hint at the setting that an unknown option may mean: `seed=4` for `--seed 4`."""
    name, equals, value = option.partition("=")
    if not name.startswith("--"):
        return ""
    after = [text for before, text in pairwise(given) if before == option][:1]
    shown = value if equals else after[0] if after and not after[0].startswith("-") else "VALUE"
    setting = name[2:].replace("-", "_")
    from eimf.config.load import load, to_dict

    sections = to_dict(load(None))
    known = {*sections, *OTHER_NAMES, *(key for part in sections.values() if isinstance(part, dict) for key in part)}
    if setting not in known:
        return ""
    return f" (settings have no dashes: did you mean {OTHER_NAMES.get(setting, setting)}={shown}?)"


def _unexpected(error: Exception, debug: bool) -> int:
    """Print one line about an unexpected error, and how to see more of it."""
    if debug or os.environ.get(DEBUG):
        traceback.print_exc()
    reason = " ".join(str(error).split())[:200]
    if isinstance(error, OSError):  # of the file system: a full disk, a missing permission, a name that is too long
        path = f"{error.filename}: " if error.filename else ""
        print(f"eimf: {path}{error.strerror or reason}; choose another path, or free some space.", file=sys.stderr)
        return 2
    print(
        f"eimf: unexpected {type(error).__name__}: {reason} (a fault of eimf; --debug or {DEBUG}=1 shows where)",
        file=sys.stderr,
    )
    return 1


class _Lines(logging.Handler):
    """Prints what the package logs, as plain lines on standard output."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def show_log_lines() -> None:
    """Show what the package logs, in the first of several processes only."""
    logger = logging.getLogger("eimf")
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())
        logger.propagate = False
    later = any(os.environ.get(name, "0") not in ("", "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    logger.setLevel(logging.ERROR if later else logging.INFO)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with a hint at the command or value that may be meant."""

    def error(self, message: str) -> NoReturn:
        if choice := re.fullmatch(r"argument (.+): invalid choice: '(.*)' \(choose from (.*)\)", message):
            name, value, choices = choice[1], choice[2], [text.strip("' ") for text in choice[3].split(",")]
            message = f"{name}: {value!r}: no such choice{nearest(value, choices)}; choose one of {', '.join(choices)}"
        self.exit(2, f"{self.prog}: {message} (help: {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="eimf",
        description="Multi-interest sequential recommendation: trains, compares and serves models.",
        epilog=epilog(("eimf train --dataset demo", "eimf train --help"), "index.md"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"eimf {VERSION}")
    parser.add_argument("--debug", action="store_true", help=f"show tracebacks of unexpected errors (or {DEBUG}=1)")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for group in (train, labels, compare, sweep, serve):
        group.add_commands(commands)
    return parser
