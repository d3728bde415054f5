"""The documentation is true: its Python runs, and its reference has every public class."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import eimf
from tests.conftest import ROOT

PACKAGE = Path(eimf.__file__).parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")
@pytest.mark.filterwarnings("ignore:.*has been removed as a dependency.*")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
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
