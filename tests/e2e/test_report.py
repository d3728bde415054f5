"""The page about a run: whole, self-contained, escaped."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars
import pytest

from eimf.cli.main import main
from eimf.report.figures import points
from eimf.report.page import Section, render
from eimf.studies.comparison import compare, compare_groups
from eimf.studies.tables import write_comparison
from tests.conftest import TINY
from tests.e2e.test_compare import make_run


def test_a_run_gets_a_page_that_needs_no_network(data_root: Path, tmp_path: Path) -> None:
    settings = [*TINY, f"data.root={data_root}", f"logger.root={tmp_path}", "trainer.max_epochs=1"]
    assert main(["train", "--dataset", "demo", *settings]) == 0
    (run,) = tmp_path.glob("*/version_0")
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    HTMLParser().feed(page)
    for title in (
        "Result",
        "Learning curves",
        "Groups of users",
        "How interests are used",
        "Map of items",
        "Recovery",
        "Costs",
        "Repeat it",
    ):
        assert f"<h2>{title}" in page
    assert 'src="http' not in page
    assert "@import" not in page
    assert "<link" not in page


def test_a_run_of_one_dimension_gets_a_page_without_a_map(data_root: Path, tmp_path: Path) -> None:
    settings = [*TINY, "backbone.embed_dim=1", f"data.root={data_root}", f"logger.root={tmp_path}"]
    assert main(["train", "--dataset", "demo", "--backbone", "popularity", *settings]) == 0
    (run,) = tmp_path.glob("*/version_0")
    assert main(["report", str(run)]) == 0
    assert "Map of items" not in (run / "report.html").read_text()


def test_a_suite_gets_a_page(tmp_path: Path) -> None:
    runs = {
        name: {
            seed: make_run(tmp_path / f"{name}{seed}", np.random.default_rng(seed).random(60) + lift) for seed in (0, 1)
        }
        for name, lift in (("base", 0.0), ("new<b>", 0.1))
    }
    folder = tmp_path / "suite"
    found = compare("suite", runs, "base", ("recall@20", "ndcg@20"), "Is new better?", 200)
    write_comparison(found, folder / "comparison")
    users = polars.DataFrame(
        {"user_idx": polars.Series(range(60), dtype=polars.Int32), "group": "half", "level": ["a", "b"] * 30}
    )
    lifts = compare_groups(runs, "base", "recall@20", users, resamples=100)
    polars.DataFrame([vars(one) for one in lifts]).write_csv(folder / "comparison" / "groups.csv")
    assert main(["report", str(folder), "--to", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    for text in ("Is new better?", "is better than base in recall@20", "by groups of users", "<svg", "new&lt;b&gt;"):
        assert text in page
    assert "new<b>" not in page
    (folder / "comparison" / "comparison.json").write_text("{half")
    assert main(["report", str(folder)]) == 2


def test_titles_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    chart = points({evil: ([0.0, 1.0], [0.0, 1.0])}, "none")
    assert "<script" not in render(evil, [Section(evil, (evil,), (evil,), ((evil,),), (chart,), evil)])


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "not finished" in capsys.readouterr().err
