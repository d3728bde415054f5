"""Writes the reference of all settings, from the schema.

`python -m eimf.config.reference > docs/reference/settings.md` renews the page.
"""

import ast
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from eimf.config.effect import needs_of
from eimf.config.load import CHOSEN
from eimf.config.schema import Config

HEAD = """# Settings

Every setting of an experiment file, and of `key=value` on the command line. `eimf config` prints the values of an
experiment, with the file or argument that set each. This page is made from the schema by
`python -m eimf.config.reference`.

Layers, later ones win: the data set's YAML, the backbone's YAML, the experiment's YAML, `key=value`. A layer may name
presets (`presets: [small_shop]`, files of `experiments/presets`); their values lie directly below its own. Values with
`${` are refused.

Some settings need another one to have an effect; the table says which. Without it they are refused, unless a later
layer turns them off: `eimf.enabled=false` on the command line turns off all that a file says about `eimf`. In a suite,
settings for all variants may have no effect in some of them.
"""


def reference() -> str:
    """The page, as Markdown."""
    parts = [HEAD]
    for section, kind in get_type_hints(Config).items():
        if not is_dataclass(kind):
            continue
        assert isinstance(kind, type)
        shared = "".join(f" Needs {text}." for text in _shared_needs(section, kind))
        parts.append(f"## {section}\n\n{inspect.getdoc(kind)}{shared}\n\n{_table(section, kind, ())}")
        if section not in CHOSEN:
            continue
        key, registry = CHOSEN[section]
        for name, path in registry.known.items():
            own = registry[path].Config
            if rows := _table(section, own, tuple(item.name for item in fields(kind))):
                parts.append(f"### {section} with `{section}.{key}={name}`\n\n{rows}")
    top = [item for item in fields(Config) if not is_dataclass(get_type_hints(Config)[item.name])]
    rows = "\n".join(_row(item, get_type_hints(Config)[item.name], item.name, meanings(Config)) for item in top)
    parts.append(f"## Top level\n\n{_HEADER}\n{rows}\n")
    return "\n".join(parts)


def _shared_needs(section: str, kind: type) -> list[str]:
    """What all settings of a section need, but for the one that turns it on."""
    keys = [f"{section}.{item.name}" for item in fields(kind) if item.name != "enabled"]  # pyright: ignore[reportArgumentType]
    return [text for text in needs_of(keys[0]) if all(text in needs_of(key) for key in keys)]


_HEADER = "| key | type | default | range | meaning |\n| --- | --- | --- | --- | --- |"


def _table(section: str, kind: type, known: tuple[str, ...]) -> str:
    """The table of the fields that are not in `known`; empty if there are none."""
    hints, texts = get_type_hints(kind), meanings(kind)
    base = get_type_hints(Config)[section]
    shared = _shared_needs(section, base)
    rows = [
        _row(item, hints[item.name], f"{section}.{item.name}", texts, shared)
        for item in fields(kind)  # pyright: ignore[reportArgumentType]
        if item.name not in known
    ]
    return "\n".join([_HEADER, *rows]) + "\n" if rows else ""


def _row(item: Field[Any], hint: Any, key: str, texts: dict[str, str], shared: Sequence[str] = ()) -> str:
    default = item.default if item.default is not MISSING else item.default_factory()  # pyright: ignore[reportCallIssue]
    low, high = item.metadata.get("low"), item.metadata.get("high")
    limits = " to ".join(f"{limit:g}" for limit in (low, high) if limit is not None)
    limits = f"from {limits}" if limits and high is None else limits
    shown = f"`{default}`" if default not in ("", [], {}) else "empty"
    needs = " ".join(f"Needs {text}." for text in needs_of(key) if text not in shared)
    cells = (f"`{key}`", _type(hint), shown, limits, f"{texts.get(item.name, '')} {needs}".strip())
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if get_origin(hint) is list:
        return f"list of {names[get_args(hint)[0]]}s"
    if get_origin(hint) is dict:
        key, value = get_args(hint)
        return f"{names[key]}: {names[value]}"
    return names[hint]


def meanings(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass, inherited ones included, on one line."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for node, below in zip(tree.body, tree.body[1:], strict=False):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(text, ast.Constant):
                texts[node.target.id] = " ".join(str(text.value).split())
    return texts


if __name__ == "__main__":
    print(reference(), end="")
