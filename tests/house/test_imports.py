"""The packages in their order: imports point down, and none goes in a circle."""

import ast
import subprocess
import sys
from pathlib import Path

import eimf

PACKAGE = Path(eimf.__file__).parent
# From the bottom up: a package may import itself and those before it.
ORDER = [
    *("core", "config", "backbones", "losses", "data", "labels", "explicit", "evaluation"),
    *("runs", "training", "serving", "studies", "report", "explorer", "testing", "cli"),
]


def imports_of(path: Path) -> set[str]:
    """Names of our modules that a file imports, wherever in the file; names of things in them too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("eimf"):
            found |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
        elif isinstance(node, ast.Import):
            found |= {one.name for one in node.names if one.name.startswith("eimf")}
    return found


def test_every_package_has_its_place() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").is_file()}
    assert folders == set(ORDER)
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_imports_point_down() -> None:
    for path in sorted(PACKAGE.glob("*/**/*.py")):
        own = path.relative_to(PACKAGE).parts[0]
        for name in imports_of(path):
            parts = name.split(".")
            if len(parts) > 1 and parts[1] in ORDER:
                assert ORDER.index(parts[1]) <= ORDER.index(own), f"{path}: {own} imports {name}"


def test_no_module_imports_itself_in_a_circle() -> None:
    modules = {}
    for path in PACKAGE.glob("*/**/*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {
        name: {one for one in imports_of(path) if one in modules and one != name} for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"circle: {' -> '.join([*above[above.index(name) :], name])}"
        if name not in done:
            for one in graph[name]:
                # A package's own __init__ gathers its modules; they import each other, not the package.
                visit(one, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_settings_and_the_package_load_no_torch() -> None:
    code = "import eimf, eimf.config, eimf.cli.main, sys; dir(eimf); print({'torch', 'sqlite3'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_the_package_lists_what_it_has() -> None:
    assert dir(eimf) == sorted(eimf.__all__)
    for name in eimf.__all__:
        assert getattr(eimf, name) is not None
    declared = {one for names in eimf._PLACES.values() for one in names} | {"load_config", "__version__"}
    assert declared == set(eimf.__all__)
