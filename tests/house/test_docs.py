"""The documentation is true: its Python runs, its links lead somewhere, and its reference has every public class."""

import ast
import json
import re
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml

import eimf
from eimf.testing import BackboneContract
from tests.conftest import ROOT

PACKAGE = Path(eimf.__file__).parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]

PLAIN_TRAINER = pytest.mark.filterwarnings(
    "ignore:.*smaller than the logging interval.*",
    "ignore:.*has been removed as a dependency.*",
    "ignore:.*does not have many workers.*",
)
"""Lightning's advice to users of an ordinary Trainer."""


@PLAIN_TRAINER
def test_every_block_of_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"u{user},i{(user * 7 + place) % 12},{place}" for user in range(30) for place in range(8)]
    Path("orders.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows))
    Path("products.csv").write_text("item_id,title\n" + "\n".join(f"i{item},Thing {item}" for item in range(12)))
    names: dict[str, Any] = {"__name__": "page"}
    blocks = BLOCK.findall((ROOT / "docs" / "howto" / "python.md").read_text())
    assert len(blocks) > 8
    for block in blocks:
        exec(compile(block, "docs/howto/python.md", "exec"), names)
    contract = names["TestRecent"]()
    contract.test_shapes()
    contract.test_padding_changes_nothing()


@PLAIN_TRAINER
def test_every_block_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    training, backbone = BLOCK.findall((ROOT / "README.md").read_text())
    assert training.count("\n") <= 10
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(training.replace("max_epochs=3", "max_epochs=1"), "README.md", "exec"), names)
    assert names["model"].evaluations["test"].summary["recall@20"] > 0
    assert names["vectors"][0].shape[1:] == (4, 64)
    exec(compile(backbone, "README.md", "exec"), names)
    contract = type("Contract", (BackboneContract,), {"backbone": names["LastItem"]})()
    contract.test_shapes()
    contract.test_padding_changes_nothing()


@PLAIN_TRAINER
def test_every_cell_of_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(cells):
        quick = cell.replace("EPOCHS = 5", "EPOCHS = 1")
        exec(compile(quick, f"examples/quickstart.ipynb, code cell {number}", "exec"), names)


def test_every_link_leads_somewhere() -> None:
    broken = []
    for page in PAGES:
        for found in LINK.finditer(CODE.sub("", page.read_text())):
            link = found[1] or found[2]
            if re.match(r"[a-z]+:", link):
                continue  # of other sites
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists() or (anchor and anchor not in _anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(pages) == sorted(str(page.relative_to(ROOT / "docs")) for page in PAGES if "docs" in page.parts)


def test_the_pages_of_the_command_line_exist() -> None:
    named = [found for path in PACKAGE.glob("cli/*.py") for found in re.findall(r'page="([^"]+)"', path.read_text())]
    assert named
    assert not [page for page in named if not (ROOT / "docs" / page).exists()]


def test_sweep_files_of_the_docs_are_valid(tmp_path: Path) -> None:
    from eimf.cli.train import load_train
    from eimf.studies.sweep import read_sweep

    text = (ROOT / "docs" / "howto" / "sweep.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "shop.yaml").write_text(block.replace("- shop", "- demo"))
    assert read_sweep(tmp_path / "shop.yaml", [], load_train).size == yaml.safe_load(block)["run_cap"]


def test_the_readme_is_short_and_its_badges_are_true() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 170
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    low, high = re.findall(r"3\.(\d+)", project["requires-python"])
    versions = "%20%7C%20".join(f"3.{minor}" for minor in range(int(low), int(high)))
    assert f"badge/python-{versions}-" in readme
    assert f"badge/licence-{project['license'].replace('-', '--')}-" in readme


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    plain = (unicodedata.normalize("NFKD", heading).lower() for heading in HEADING.findall(text))
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading).strip()) for heading in plain}


def test_the_reference_has_every_public_class() -> None:
    page = set(re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference" / "python.md").read_text(), re.MULTILINE))
    for path in PACKAGE.glob("*/**/*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        public = [
            node.name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        ]
        assert not public or name in page, f"{name} ({', '.join(public)}) is missing in docs/reference/python.md"


def test_every_public_name_has_a_docstring() -> None:
    missing = []
    for path in PACKAGE.glob("**/*.py"):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None:
                missing.append(f"{path.name}: {node.name}")
    assert not missing


def test_tables_of_results_are_those_of_the_files() -> None:
    done = subprocess.run(
        [sys.executable, "docs/make_tables.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
