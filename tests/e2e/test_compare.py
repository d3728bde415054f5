"""Suites: planned, run once, continued, compared; with runs made by hand where training would only take time."""

import csv
import io
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars
import pytest
from rich.console import Console

from eimf.cli.main import main
from eimf.core.errors import ArtifactError, ConfigError
from eimf.core.files import lock
from eimf.studies.comparison import compare, compare_groups
from eimf.studies.suite import plan, read_suite
from eimf.studies.tables import sentences, to_latex, to_markdown, to_rich, write_comparison
from tests.conftest import TINY

SUITE = """
suite: pair
question: Does K matter?
baseline: one
seeds: [0, 1]
metrics: [recall@20, ndcg@20]
variants:
  one: {backbone: {n_interests: 1}}
  two: {backbone: {n_interests: 2}}
"""


def make_run(folder: Path, values: np.ndarray, part: str = "test", first_user: int = 0) -> Path:
    """A finished run with given per-user recall."""
    folder.mkdir(parents=True)
    users = np.arange(first_user, first_user + len(values), dtype=np.int32)
    frames = [
        polars.DataFrame({"user_idx": users, "metric": name, "k": 20, "value": scale * values, "part": one})
        for name, scale in (("recall", 1.0), ("ndcg", 0.5))
        for one in {"val", part}
    ]
    polars.concat(frames).with_columns(polars.col("k").cast(polars.Int32)).write_parquet(folder / "metrics.parquet")
    summary = {"recall@20": float(values.mean()), "interest_cosine": 0.5, "diversity@20": 0.8, "diversity@50": 0.9}
    results = {part: summary, "costs": {"epochs": 3.0, "seconds_per_epoch": 2.0}}
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, dict[int, Path]]:
    random = np.random.default_rng(0)
    base = {seed: random.random(300) for seed in (0, 1, 2)}
    noise = {seed: random.normal(0, 0.01, 300) for seed in base}
    return {
        "base": {seed: make_run(tmp_path / f"base{seed}", value) for seed, value in base.items()},
        "good_&_new": {
            seed: make_run(tmp_path / f"good{seed}", value + 0.05 + noise[seed]) for seed, value in base.items()
        },
        "same": {seed: make_run(tmp_path / f"same{seed}", base[seed] + noise[seed]) for seed in (0, 1)},
    }


def test_tables_and_sentences(runs: dict[str, dict[int, Path]], tmp_path: Path) -> None:
    found = compare("demo", runs, "base", ("recall@20", "ndcg@20"), resamples=2000)
    good, same = found.cells["good_&_new"]["recall@20"], found.cells["same"]["recall@20"]
    assert good.lift == pytest.approx(0.1, rel=0.1)
    assert good.significant
    assert good.low < good.lift < good.high
    assert not same.significant
    assert (same.seeds, good.seeds) == (2, 3)
    assert found.cells["base"]["recall@20"].lift != found.cells["base"]["recall@20"].lift  # NaN
    said = sentences(found)
    assert said[0].startswith("good_&_new is better than base in recall@20 by")
    assert said[1].startswith("No significant difference in recall@20 between same and base")
    assert "**" in to_markdown(found).splitlines()[3]
    latex = to_latex(found)
    assert r"good\_\&\_new" in latex
    assert r"\toprule" in latex
    names = {path.name for path in write_comparison(found, tmp_path / "out")}
    assert names == {"table.csv", "table.md", "table.tex", "table_with_lifts.tex", "comparison.json"}
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert rows[0]["lift"] == ""  # no NaN for readers of other languages
    kept = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert kept["costs"]["base"]["epochs"] == 3.0
    assert kept["lists"]["same"] == {"interest_cosine": 0.5, "diversity@50": 0.9}  # at the longest cut-off


def test_labels_name_the_variants(runs: dict[str, dict[int, Path]]) -> None:
    labels = {"base": "ComiRec-SA & Söhne", "same": "50% | $x_1$"}
    found = compare("demo", runs, "base", ("recall@20",), resamples=200, labels=labels)
    assert "ComiRec-SA & Söhne" in to_markdown(found)
    assert "| 50% \\| $x_1$ |" in to_markdown(found)
    assert r"50\% | \$x\_1\$ &" in to_latex(found)


ENGINES = {"pdflatex": ["-interaction=nonstopmode", "-halt-on-error"], "tectonic": []}


def test_the_latex_table_compiles(runs: dict[str, dict[int, Path]], tmp_path: Path) -> None:
    engine = next((name for name in ENGINES if shutil.which(name)), None)
    if engine is None:
        pytest.skip(f"no TeX engine here ({' or '.join(ENGINES)})")
    signs = "".join(chr(code) for code in range(33, 127)) + " é"
    found = compare("demo", runs, "base", ("recall@20", "ndcg@20"), resamples=200, labels={"same": signs})
    for lifts in (False, True):
        document = (
            r"\documentclass{article}\usepackage{booktabs}\begin{document}"
            + "\n"
            + to_latex(found, lifts)
            + r"\end{document}"
        )
        (tmp_path / "table.tex").write_text(document, encoding="utf-8")
        done = subprocess.run([engine, *ENGINES[engine], "table.tex"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]
        assert "Missing character" not in done.stdout
        assert (tmp_path / "table.pdf").stat().st_size > 1000


def test_a_narrow_terminal_cuts_nothing_off(runs: dict[str, dict[int, Path]]) -> None:
    names = ("recall@20", "ndcg@20", "hr@20", "recall@50", "ndcg@50", "hr@50")
    cell = compare("demo", runs, "base", ("recall@20",), resamples=200).cells["good_&_new"]["recall@20"]
    long = {f"a_long_name_of_a_variant_{n}": dict.fromkeys(names, replace(cell, lift=0.123, p=0.0)) for n in range(2)}
    found = replace(compare("demo", runs, "base", ("recall@20",), resamples=200), metrics=names, cells=long)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(to_rich(found))
    text = console.export_text()
    assert "…" not in text
    assert text.count("+12.3%") == 12


def test_lifts_by_groups_of_users(runs: dict[str, dict[int, Path]]) -> None:
    levels = ["a" if user < 100 else "b" for user in range(300)]
    users = polars.Series("user_idx", range(300), dtype=polars.Int32)
    groups = polars.DataFrame({"user_idx": users, "group": "half", "level": levels})
    found = compare_groups(runs, "base", "recall@20", groups, resamples=500)
    assert [(one.variant, one.level, one.users) for one in found] == [
        ("good_&_new", "a", 100),
        ("same", "a", 100),
        ("good_&_new", "b", 200),
        ("same", "b", 200),
    ]
    assert all(one.low < one.lift < one.high for one in found)
    assert found[0].low > 0.05


def test_validation_is_compared_where_a_run_left_the_test_users_alone(
    runs: dict[str, dict[int, Path]], tmp_path: Path
) -> None:
    runs["careful"] = {0: make_run(tmp_path / "careful", np.ones(300), part="val")}
    assert compare("demo", runs, "base", ("recall@20",), resamples=200).part == "val"


def test_runs_on_other_users_are_refused(runs: dict[str, dict[int, Path]], tmp_path: Path) -> None:
    runs["other"] = {0: make_run(tmp_path / "other", np.ones(299))}
    with pytest.raises(ArtifactError, match="other users"):
        compare("demo", runs, "base", ("recall@20",), resamples=200)


def test_values_that_are_no_numbers_are_refused(runs: dict[str, dict[int, Path]], tmp_path: Path) -> None:
    runs["broken"] = {0: make_run(tmp_path / "broken", np.array([np.nan, *np.ones(299)]))}
    with pytest.raises(ArtifactError, match=r"broken: metrics.parquet has values that are no finite numbers"):
        compare("demo", runs, "base", ("recall@20",), resamples=200)


def test_seeds_with_users_of_their_own(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = {seed: random.random(200) for seed in (0, 1, 2)}
    runs = {
        name: {
            seed: make_run(tmp_path / f"{name}{seed}", values + lift, first_user=100 * seed)
            for seed, values in base.items()
        }
        for name, lift in (("base", 0.0), ("better", 0.1))
    }
    cell = compare("demo", runs, "base", ("recall@20",), resamples=500).cells["better"]["recall@20"]
    mean = float(np.mean([values.mean() for values in base.values()]))
    assert cell.lift == pytest.approx(0.1 / mean)
    assert cell.significant
    # A group has its users of all seeds; in seed 2 nobody is in level a.
    users = polars.Series("user_idx", range(400), dtype=polars.Int32)
    levels = ["a" if user < 200 else "b" for user in range(400)]
    groups = polars.DataFrame({"user_idx": users, "group": "half", "level": levels})
    found = compare_groups(runs, "base", "recall@20", groups, resamples=500)
    assert [(one.level, one.users) for one in found] == [("a", 200), ("b", 200)]
    assert found[0].baseline == pytest.approx((base[0].mean() + base[1][:100].mean()) / 2)
    runs["better"][0] = make_run(tmp_path / "moved", base[0], first_user=1)
    with pytest.raises(ArtifactError, match="other users"):
        compare("demo", runs, "base", ("recall@20",), resamples=200)


@pytest.mark.slow
def test_each_seed_of_a_suite_can_split_the_users_anew(data_root: Path, tmp_path: Path) -> None:
    file = tmp_path / "pair.yaml"
    file.write_text(SUITE)
    places = [f"data.root={data_root}", f"logger.root={tmp_path / 'logs'}"]
    settings = [*TINY, "trainer.max_epochs=0", "resplit=true", *places]
    suite = read_suite(file, settings)
    assert [config.split.seed for config in suite.variants["one"]] == [0, 1]
    assert main(["compare", str(file), *settings, "--groups"]) == 0
    folder = tmp_path / "logs" / "demo-pair"
    users = [
        set(polars.read_parquet(folder / f"one-seed{seed}/version_0/metrics.parquet").filter(part="test")["user_idx"])
        for seed in (0, 1)
    ]
    assert users[0] != users[1]
    assert json.loads((folder / "comparison" / "comparison.json").read_text())["about"]["resplit"] is True
    lifts = polars.read_csv(folder / "comparison" / "groups.csv")
    counts = lifts.filter(variant="two").group_by("group").agg(polars.col("users").sum())
    assert min(counts["users"].to_list()) > len(users[0])  # those of both seeds


def test_a_suite_runs_once_and_grows(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pair.yaml"
    file.write_text(SUITE)
    settings = [text for text in TINY if "max_epochs" not in text]
    settings += ["trainer.max_epochs=1", f"data.root={data_root}", f"logger.root={tmp_path / 'logs'}"]
    command = ["compare", str(file), *settings]
    assert main([*command, "seeds=[0]"]) == 0
    out = capsys.readouterr().out
    assert "[2/2] two, seed 0" in out
    assert "1 seed: chance of training is not covered" in " ".join(out.split())
    folder = tmp_path / "logs" / "demo-pair"
    made = sorted(path.parent.name for path in folder.glob("*/version_0/results.json") for path in [path.parent])
    assert made == ["one-seed0", "two-seed0"]
    assert (folder / "comparison" / "table.tex").is_file()
    suite = read_suite(file, settings)
    states = {one.title: one.state for one in plan(suite)}
    assert states == {
        "one, seed 0": "finished",
        "two, seed 0": "finished",
        "one, seed 1": "missing",
        "two, seed 1": "missing",
    }
    # A run whose last step was cut off is continued, not started again.
    (folder / "two-seed0" / "version_0" / "results.json").unlink()
    assert main([*command, "seeds=[0]"]) == 0
    assert "[1/1] two, seed 0" in capsys.readouterr().out
    assert not (folder / "two-seed0" / "version_1").exists()
    # A run that another process trains is left to it.
    found = folder / "two-seed0" / "version_0"
    (found / "results.json").rename(tmp_path / "results.json")
    with lock(found / ".lock", "taken"):
        assert {one.state for one in plan(suite) if one.title == "two, seed 0"} == {"running"}
        assert main([*command, "seeds=[0]"]) == 0
        assert "1 of 2 runs are not finished" in capsys.readouterr().out
    (tmp_path / "results.json").rename(found / "results.json")
    # Other code: not used unless asked for.
    run = folder / "one-seed0" / "version_0" / "run.json"
    # Its key was made of fewer settings than there are today, and so was its file of settings.
    run.write_text(json.dumps(json.loads(run.read_text()) | {"code": "older", "key": "older"}))
    settings_file = run.with_name("config.yaml")
    settings_file.write_text(settings_file.read_text().replace("  frozen_items: false\n", ""))
    assert {one.state for one in plan(suite) if one.title == "one, seed 0"} == {"missing"}
    assert {one.state for one in plan(suite, True) if one.title == "one, seed 0"} == {"finished"}
    run.with_name("results.json").rename(tmp_path / "results.json")  # it is never continued, or it were of two codes
    assert {one.state for one in plan(suite, True) if one.title == "one, seed 0"} == {"missing"}
    (tmp_path / "results.json").rename(run.with_name("results.json"))
    other = folder / "comparison" / "comparison.json"
    other.write_text(json.dumps({"runs": {"one": {"0": "x", "7": "y"}}}))
    assert main([*command, "seeds=[0]", "--no-run", "--any-code", "--groups"]) == 0
    out = capsys.readouterr().out
    assert "'seeds=[0,7]' compares them again" in out
    assert "other code" in out
    assert set(polars.read_csv(folder / "comparison" / "groups.csv")["group"]) == {
        "history length",
        "popularity of targets",
        "categories in the history",
        "categories of targets",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("baseline: three", "'three' is not a variant here; choose one of one, two"),
        ("seeds: [0, 0]", "list of different whole numbers"),
        ("seeds: 3", "list of different whole numbers"),
        ("resplit: twice", "resplit: must be true or false, is 'twice'"),
        ("{resplit: true, settings: {split: {kind: loo}}, metrics: []}", "is 'loo', and resplit=true shuffles users"),
        ("{resplit: true, settings: {split: {seed: 3}}}", "split.seed: is 3, and resplit=true sets it"),
        ("metrics: [recall@21]", "'recall@21' is not computed"),
        ("colour: red", "colour: no such key; a suite has"),
        ("settings: {backbone: {n_interest: 3}}", "did you mean 'n_interests'"),
        ("variants: [one]", "must map names to settings"),
        ("variants: {one: {label: 3}, two: {}}", "variants.one.label: must be a text of one line, is 3"),
        ("variants: {one: {}, two: {split: {kind: loo}}}", "differs from the baseline's"),
    ],
)
def test_bad_suites(tmp_path: Path, change: str, message: str) -> None:
    import yaml

    file = tmp_path / "suite.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(SUITE) | yaml.safe_load(change)))
    with pytest.raises(ConfigError, match=message):
        read_suite(file)


def test_a_suite_with_other_settings_gets_its_own_folder() -> None:
    suite = read_suite("eimf_ablation", ["suite=on_remi", "backbone=remi", "seeds=[3]"])
    assert suite.folder.name == "demo-on_remi"
    assert {config.backbone.name for (config,) in suite.variants.values()} == {"remi"}
    assert suite.first.loss.name == "ihn"  # remi's own file lies below
    assert suite.first.seed == 3


def test_some_variants_of_a_suite() -> None:
    suite = read_suite("several_interests", ["only=[four_shared, one]", "dataset=demo"])
    assert (list(suite.variants), suite.baseline) == (["one", "four_shared"], "one")
    with pytest.raises(ConfigError, match="only: 'fuor' is not a variant .did you mean 'four'"):
        read_suite("several_interests", ["only=one,fuor"])
    with pytest.raises(ConfigError, match="baseline: 'one' is not a variant here; choose one of four"):
        read_suite("several_interests", ["only=[four]"])
    assert read_suite("several_interests", ["only=[four]", "baseline=four"]).baseline == "four"
    # What the file sets for all variants needs an effect in one of all, not of these.
    assert list(read_suite("explicit_interests", ["only=[ease]", "baseline=ease"]).variants) == ["ease"]


def test_the_ready_suites_load() -> None:
    for path in sorted(Path("experiments/suites").glob("*.yaml")):
        for dataset in ("demo", "beauty"):
            suite = read_suite(path, [f"dataset={dataset}"])
            assert len(suite.seeds) >= 3
            assert suite.question


def test_shards_never_meet(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is finished when a machine begins, each run is of one shard."""
    (tmp_path / "pair.yaml").write_text(SUITE)
    asked: list[list[str]] = []
    monkeypatch.setattr(
        "eimf.studies.suite.run_suite",
        lambda planned, *_: asked.append([one.title for one in planned]) or ["none made"],
    )
    settings = [*TINY, f"data.root={data_root}", f"logger.root={tmp_path / 'logs'}"]
    for shard in ("1/2", "2/2"):
        # Nothing is there to compare yet.
        assert main(["compare", str(tmp_path / "pair.yaml"), *settings, "--shard", shard]) == 2
    assert asked == [["one, seed 0", "one, seed 1"], ["two, seed 0", "two, seed 1"]]


def test_a_wrong_shard_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "interests", "--shard", "3/2"]) == 2
    assert "must be i/n" in capsys.readouterr().err
