"""The page about a run: whole, self-contained, escaped."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from eimf.cli import main
from eimf.report.figures import points
from eimf.report.page import Section, render
from tests.conftest import TINY


def test_a_run_gets_a_page_that_needs_no_network(data_root: Path, tmp_path: Path) -> None:
    settings = [*TINY, f"data.root={data_root}", f"logger.root={tmp_path}", "trainer.max_epochs=1"]
    assert main(["train", "--dataset", "demo", *settings]) == 0
    (run,) = tmp_path.glob("*/version_0")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    HTMLParser().feed(page)
    for title in ("Result", "Learning curves", "Groups of users", "Map of items", "Recovery", "Costs", "Repeat it"):
        assert f"<h2>{title}" in page
    assert 'src="http' not in page
    assert "@import" not in page
    assert "<link" not in page


def test_titles_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    chart = points({evil: ([0.0, 1.0], [0.0, 1.0])}, "none")
    assert "<script" not in render(evil, [Section(evil, (evil,), (evil,), ((evil,),), (chart,), evil)])


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "not finished" in capsys.readouterr().err
