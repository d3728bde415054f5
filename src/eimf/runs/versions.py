"""The numbered run folders of an experiment: `version_0`, `version_1`, ..."""

from pathlib import Path


def versions(parent: Path) -> list[tuple[int, Path]]:
    """Number and folder of the runs of an experiment, in the order of their numbers."""
    return sorted((int(path.name[8:]), path) for path in parent.glob("version_*") if path.name[8:].isdigit())


def newest_version(folder: Path) -> Path:
    """The newest run in the folder of an experiment; any other folder stays as it is."""
    try:
        found = versions(folder) if not (folder / "config.yaml").is_file() else []
    except OSError:  # such as a name that is too long: who uses the folder says so
        return folder
    return found[-1][1] if found else folder


def current_run(folder: Path) -> Path:
    """The run that a folder stands for now, without links: the newest version, or the run that a link is set to.

    Files that are read from it are of one run, even if the link is set to another run meanwhile.
    """
    try:
        return newest_version(folder.resolve()).resolve()
    except (OSError, RuntimeError):  # a loop of links: who uses the folder says so
        return folder
