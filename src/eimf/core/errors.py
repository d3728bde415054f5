"""Errors that a user can fix. The command line prints them as one line and exits with status 2."""

import sys
from collections.abc import Callable


class EimfError(Exception):
    """Base class: the message names the subject, the rule, the value received and the fix."""


class ConfigError(EimfError):
    """A configuration key, type or value is wrong."""


class DataError(EimfError):
    """Raw or prepared interactions cannot be used."""


class TrainingError(EimfError):
    """Training failed in a way that other settings may fix."""


class LabelError(EimfError):
    """A label cache or label file cannot be used."""


class ArtifactError(EimfError):
    """A file written by an earlier stage is missing, damaged or belongs to other inputs."""


def run_main(main: Callable[[], None]) -> None:
    """Run the main function of a module; an error of the user's is one line and exit status 2."""
    try:
        main()
    except EimfError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
