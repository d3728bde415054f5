"""Names that a configuration can use for components: our own, those of installed packages, and import paths."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from eimf.core.errors import ConfigError


@cache
def _declared(group: str) -> dict[str, str]:
    """Names and import paths of the entry points in a group. (A look at all installed packages takes 10 ms.)"""
    return {point.name: point.value for point in entry_points(group=group)}


class Registry(Mapping[str, Any]):
    """Maps a name to a component, which is imported when it is asked for.

    A name is one of three:

    - a key of `known`;
    - the name of an entry point that an installed package declares in `group`;
    - an import path, `package.module:Class`.

    Args:
        key: the setting that holds the name, for messages, such as `backbone.name`.
        group: entry-point group, such as `eimf.backbones`.
        known: our own names, with the import path of each.
    """

    def __init__(self, key: str, group: str, known: Mapping[str, str]) -> None:
        self.key, self.group, self.known = key, group, dict(known)

    def paths(self) -> dict[str, str]:
        """Import path of every name: ours first, then the entry points. Nothing is imported."""
        return self.known | {name: path for name, path in _declared(self.group).items() if name not in self.known}

    def __getitem__(self, name: str) -> Any:
        """The component.

        Raises:
            ConfigError: the name is unknown, or the component cannot be imported.
        """
        path = self._path(name)
        if path is None:
            paths = self.paths()
            close = get_close_matches(str(name), list(paths), n=1, cutoff=0.5)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ConfigError(
                f"{self.key}: {name!r} is unknown{hint}; choose one of {', '.join(paths)}, or give "
                "package.module:Class."
            )
        module, _, attribute = path.partition(":")
        try:
            component: Any = import_module(module)
            for part in attribute.split("."):
                component = getattr(component, part)
        except (ImportError, AttributeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"{self.key}: {name!r} cannot be imported ({reason}); check the name and PYTHONPATH."
            ) from None
        return component

    def _path(self, name: str) -> str | None:
        return name if ":" in str(name) else self.known.get(name) or _declared(self.group).get(name)

    def module_of(self, name: str) -> str:
        """Name of the module that holds a component; empty if there is no such component."""
        return (self._path(name) or "").partition(":")[0]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (":" in name or name in self.paths())

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths())

    def __len__(self) -> int:
        return len(self.paths())
