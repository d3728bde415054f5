"""The page about a run: whole, self-contained, escaped."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars
import pytest

from eimf.cli.main import main
from eimf.config.load import load
from eimf.report.figures import points
from eimf.report.page import Section, number, render
from eimf.report.run import _curves, _remarks, best_epoch
from eimf.report.sweep import importance
from eimf.studies.comparison import compare, compare_groups
from eimf.studies.tables import write_comparison
from tests.conftest import TINY, UNTRAINED
from tests.e2e.test_compare import make_run


@pytest.mark.slow
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
        "Agreement with the true interests",
        "Costs",
        "Repeat it",
    ):
        assert f"<h2>{title}" in page
    assert "Without training, on the same users: popularity 0." in page
    assert "<th>item_knn, test</th>" in " ".join(page.split())
    assert 'src="http' not in page
    assert "@import" not in page
    assert "<link" not in page


@pytest.mark.slow
def test_a_run_of_one_dimension_gets_a_page_without_a_map(data_root: Path, tmp_path: Path) -> None:
    settings = [*UNTRAINED, f"data.root={data_root}", f"logger.root={tmp_path}"]
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
    for text in (
        "Is new better?",
        "is better than base in recall@20",
        "by groups of users",
        "<svg",
        "new&lt;b&gt;",
        "interest cosine",
    ):
        assert text in page
    assert "new<b>" not in page
    (folder / "comparison" / "comparison.json").write_text("{half")
    assert main(["report", str(folder)]) == 2


def test_a_suite_with_a_model_that_has_no_agreement_gets_a_page(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    runs = {name: {0: make_run(tmp_path / name, random.random(60))} for name in ("base", "words", "knn")}
    for name, values in (("base", np.zeros(60)), ("words", np.full(60, 0.25))):
        path = runs[name][0] / "metrics.parquet"
        frame = polars.read_parquet(path)
        rows = frame.filter(metric="recall").with_columns(
            polars.lit("agreement").alias("metric"), polars.lit(0, polars.Int32).alias("k")
        )
        rows = rows.sort("part", "user_idx").with_columns(
            polars.Series("value", np.tile(values, len(rows) // 60) + random.normal(0, 0.01, len(rows)))
        )
        polars.concat([frame, rows]).write_parquet(path)
    found = compare("suite", runs, "base", ("recall@20", "agreement"), "", 200, {"words": "the LLM's words"})
    write_comparison(found, tmp_path / "suite" / "comparison")
    assert main(["report", str(tmp_path / "suite"), "--to", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "+0.25" in page  # a difference: nothing can be relative to an agreement of 0
    assert "agreement (difference)" in page
    assert "the LLM&#39;s words" in page


def test_titles_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    chart = points({evil: ([0.0, 1.0], [0.0, 1.0])}, "none")
    assert "<script" not in render(evil, [Section(evil, (evil,), (evil,), ((evil,),), (chart,), evil)])


def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "not finished" in capsys.readouterr().err


def sweep_folder(home: Path) -> Path:
    folder = home / "sweep-small"
    folder.mkdir()
    rows = [
        {"trial": n, "optim.lr": 0.001 * (n + 1), "backbone": "ab"[n % 2], "val/recall@20": 0.1 * n} for n in range(6)
    ]
    rest = {"epochs": 3, "minutes": 0.5, "state": "finished", "folder": str(folder), "reason": ""}
    polars.DataFrame([row | rest for row in rows]).write_csv(folder / "trials.csv")
    return folder


def test_a_sweep_gets_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep_folder(tmp_path)
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    for text in ("The best, trial 5, has val/recall@20 0.5000", "Importance of parameters", "eimf train", "seed=2"):
        assert text in page
    table = polars.read_csv(folder / "trials.csv")
    weights = importance(table, ["optim.lr", "backbone"], "val/recall@20")
    assert list(weights) == ["optim.lr", "backbone"]
    assert weights["optim.lr"] == pytest.approx(1)
    assert weights["backbone"] == pytest.approx(3 / 35)  # variance of the means (2, 3) of the ranks over theirs
    table.with_columns(polars.lit(None).alias("val/recall@20")).write_csv(folder / "trials.csv")
    assert main(["report", str(folder)]) == 2
    assert "no trial has a result yet" in capsys.readouterr().err


def test_remarkable_results_are_said(tmp_path: Path) -> None:
    rows = [{"epoch": n, "val/recall@50": 0.1 * n, "train/loss": 1.0} for n in range(3)]
    config = load(None, ["trainer.max_epochs=3"])
    assert best_epoch(rows, "val/recall@50") == 3
    said = " ".join(
        _remarks(
            {"interest_cosine": 0.97, "hit_share_interest_0@50": 0.9, "hit_share_interest_1@50": 0.1}, config, rows, 3
        )
    )
    for text in (
        "nearly one: mean cosine 0.97. The model works like one",
        "One interest finds 90% of all hits",
        "The last epoch was the best one",
    ):
        assert text in said
    assert _remarks({"interest_cosine": 0.3}, config, rows, 2) == ()


def test_each_loss_term_has_a_panel_and_epochs_count_from_one() -> None:
    rows = [{"epoch": n, "train/loss": 2.0, "train/alignment": 0.1, "val/recall@50": 0.2} for n in range(3)]
    metrics, terms = _curves(rows, 2)
    assert "best epoch" in metrics
    assert terms.count('id="axes_') == 2
    assert "train/alignment" in terms
    assert number(17_000) == "17,000"
    assert number(1.0) == "1.0000"
