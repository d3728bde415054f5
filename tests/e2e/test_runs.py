"""Whole runs on a small simulated shop: the numbers repeat, resume, load and serve."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars
import pytest
import pytorch_lightning as pl
import torch
import yaml

import eimf
from eimf.cli.main import main
from eimf.cli.tables import print_results
from eimf.config.load import load
from eimf.core.errors import ArtifactError, ConfigError, DataError
from eimf.data.prepare import prepare
from eimf.runs.folder import BEST, LAST, read_checkpoint
from eimf.runs.results import Run
from eimf.training.build import build_data, build_model, build_trainer
from eimf.training.datamodule import InteractionData
from eimf.training.evaluate import evaluate_run
from eimf.training.train import train
from tests.conftest import ROOT, TINY, UNTRAINED, replace_items, tiny_config


@pytest.fixture(scope="module")
def run(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(tiny_config(data_root, tmp_path_factory.mktemp("logs")))


def scores(made: Run) -> dict[str, dict[str, float]]:
    return {part: one.summary for part, one in made.results.items()}


def test_a_run_leaves_what_it_promises(run: Run) -> None:
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        "config.yaml",
        "items.parquet",
        "metrics.csv",
        "metrics.parquet",
        "rankings.parquet",
        "results.json",
        "run.json",
        ".lock",
        "checkpoints",
    }
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    results = json.loads((run.folder / "results.json").read_text())
    assert results["test"] == scores(run)["test"]
    with (run.folder / "metrics.csv").open() as file:
        curves = list(csv.DictReader(file))
    assert [row["epoch"] for row in curves] == ["0", "1", "2"]
    assert float(curves[2]["train/loss"]) < float(curves[0]["train/loss"])


def test_cosine_schedule_lowers_the_rate(data_root: Path, tmp_path: Path) -> None:
    class Rates(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    config = tiny_config(data_root, tmp_path, "optim.schedule=cosine", "optim.lr=0.01", "trainer.max_epochs=4")
    data, rates = build_data(config, prepare(config.dataset, data_root)), Rates()
    build_trainer(config, [rates]).fit(build_model(config, data, train=True), datamodule=data)
    assert rates.seen == pytest.approx([0.01 * 0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)])


def test_test_users_can_be_left_alone(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = train(tiny_config(data_root, tmp_path, "eval.test=false"))
    assert set(made.results) == {"val"}
    assert "test" not in json.loads((made.folder / "results.json").read_text())
    assert set(polars.read_parquet(made.folder / "metrics.parquet")["part"]) == {"val"}
    assert not (made.folder / "rankings.parquet").exists()
    capsys.readouterr()
    print_results(made.results, "validation only")
    assert "test" not in capsys.readouterr().out


def test_per_user_values_average_to_the_summary(run: Run) -> None:
    frame = polars.read_parquet(run.folder / "metrics.parquet")
    for part, one in run.results.items():
        for (metric, k), rows in frame.filter(polars.col("part") == part).group_by("metric", "k"):
            assert rows["value"].mean() == pytest.approx(one.summary[f"{metric}@{k}"], abs=1e-12)


def test_rankings_are_full_lists_without_repeats(run: Run) -> None:
    frame = polars.read_parquet(run.folder / "rankings.parquet")
    lists = frame.group_by("user_idx").agg(polars.col("item_idx").n_unique(), polars.col("rank").max(), polars.len())
    assert (lists["item_idx"] == 50).all()
    assert (lists["rank"] == 50).all()
    assert frame["item_idx"].min() == 1


def test_the_best_epoch_by_validation_was_kept(run: Run) -> None:
    with (run.folder / "metrics.csv").open() as file:
        best = max(float(row["val/recall@50"]) for row in csv.DictReader(file))
    assert run.results["val"].summary["recall@50"] == pytest.approx(best, abs=1e-6)


def test_same_config_and_seed_give_the_same_digits(run: Run, data_root: Path, tmp_path: Path) -> None:
    again = train(tiny_config(data_root, tmp_path))
    assert scores(again) == scores(run)
    other = train(tiny_config(data_root, tmp_path, "seed=1"))
    assert scores(other) != scores(run)
    assert other.folder.name == "version_1"


def test_the_saved_config_repeats_the_run(run: Run, tmp_path: Path) -> None:
    again = train(load(run.folder / "config.yaml", [f"logger.root={tmp_path}"]))
    assert scores(again) == scores(run)


def test_evaluate_gives_the_same_digits(run: Run) -> None:
    results, _ = evaluate_run(run.folder)
    assert {part: one.summary for part, one in results.items()} == scores(run)
    smaller, _ = evaluate_run(run.folder, ["data.eval_batch_size=7"])
    assert smaller["test"].summary["recall@50"] == pytest.approx(scores(run)["test"]["recall@50"], abs=1e-9)


def test_evaluate_options(run: Run) -> None:
    results, _ = evaluate_run(run.folder, ["eval.index=hnsw", "eval.filter_seen=true"])
    assert results["test"].summary["overlap_with_flat@50"] > 0.95
    data = prepare(load(run.folder / "config.yaml").dataset, load(run.folder / "config.yaml").data.root)
    held = InteractionData(data, load(run.folder / "config.yaml").split).split.test
    for row in range(len(held)):
        seen = set(data.sequences.items[held.start[row] : held.cut[row]].tolist())
        listed = results["test"].rankings.filter(polars.col("user_idx") == held.user_idx[row])["item_idx"]
        assert not seen & set(listed)
    with pytest.raises(ConfigError, match=r"only eval"):
        evaluate_run(run.folder, ["optim.lr=1"])


@pytest.mark.parametrize("backbone", ["comirec_dr", "mind", "remi", "youtube_dnn", "gru4rec", "sasrec", "popularity"])
def test_every_backbone_runs(backbone: str, data_root: Path, tmp_path: Path) -> None:
    config = load(
        None,
        [
            *(UNTRAINED if backbone == "popularity" else TINY),
            f"backbone={backbone}",
            "split.kind=loo",
            f"data.root={data_root}",
            f"logger.root={tmp_path}",
        ],
    )
    made = train(config)
    assert 0 < made.results["test"].summary["recall@20"] <= 1
    assert len(eimf.load(made.folder).recommend(["P00001", "P00002"], n=3)) == 3


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.name=sampled_softmax", "optim.name=rowwise", "loss.n_negatives=50"],
        ["loss.name=in_batch"],
        ["loss.name=gbce", "optim.name=adamw", "optim.weight_decay=0.01"],
        ["trainer.precision=bf16-mixed"],
        ["data.sampling=random_cut", "data.min_history=4", "split.kind=time"],
        ["trainer.gradient_clip=1.0", "loss.readout_power=2"],
    ],
    ids=" ".join,
)
def test_options_run(overrides: list[str], data_root: Path, tmp_path: Path) -> None:
    made = train(tiny_config(data_root, tmp_path, *overrides))
    assert made.results["test"].summary["recall@50"] > 0


def test_sigkill_and_resume_end_with_the_same_digits(data_root: Path, tmp_path: Path) -> None:
    overrides = ["backbone.dropout=0.3", "loss.name=sampled_softmax", "loss.n_negatives=40", "trainer.max_epochs=12"]
    overrides += ["optim.schedule=cosine", "trainer.patience=12"]
    whole = train(tiny_config(data_root, tmp_path / "whole", *overrides))
    arguments = [*TINY, *overrides, f"data.root={data_root}", f"logger.root={tmp_path / 'killed'}"]
    folder = tmp_path / "killed" / "demo-comirec_sa" / "version_0"
    process = subprocess.Popen([sys.executable, "-m", "eimf", "train", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    curves = folder / "metrics.csv"
    while time.monotonic() < deadline and not (curves.is_file() and curves.read_text().count("\n") >= 4):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "results.json").exists()
    from eimf.training.train import resume_config

    resumed = train(resume_config(folder), folder)
    assert scores(resumed) == scores(whole)

    def learning(path: Path) -> list[dict[str, str]]:
        with (path / "metrics.csv").open() as file:
            return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]

    assert learning(folder) == learning(whole.folder)


def test_the_last_checkpoint_is_that_of_the_last_epoch(data_root: Path, tmp_path: Path) -> None:
    """Also where no epoch is better than the first."""
    made = train(tiny_config(data_root, tmp_path, "optim.lr=1e-8", "trainer.max_epochs=4", "trainer.patience=4"))
    assert [read_checkpoint(made.folder, name)["epoch"] for name in (BEST, LAST)] == [0, 3]


def test_serving_in_three_lines(run: Run) -> None:
    model = eimf.load(run.folder)
    history = ["P00003", "P00005", "P00008"]
    found = model.recommend(history, n=7)
    assert len(found) == 7
    assert all(one.title for one in found)
    assert not {one.item_id for one in found} & set(history)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    by_interest = model.recommend_by_interest(history, n=7)
    assert len(by_interest) == model.n_interests == 4
    best = max(by_interest[0] + by_interest[1] + by_interest[2] + by_interest[3], key=lambda one: one.score)
    assert best == found[0]
    assert len(model.recommend(history, n=7, filter_seen=False, diversity=1.0)) == 7
    with pytest.raises(DataError, match=r"history: 'nope' not in the catalogue .* leave unknown items out"):
        model.interests(["P00003", "nope"])
    with pytest.raises(DataError, match="history: is empty"):
        model.encode([[]])


def test_serving_agrees_with_the_evaluated_rankings(run: Run, data_root: Path) -> None:
    config = load(run.folder / "config.yaml")
    data = prepare(config.dataset, data_root)
    held = InteractionData(data, config.split).split.test
    rankings = polars.read_parquet(run.folder / "rankings.parquet")
    model, ids = eimf.load(run.folder), data.items["item_id"]
    for row in range(3):
        history = ids[(data.sequences.items[held.start[row] : held.cut[row]] - 1).tolist()].to_list()
        served = [one.item_id for one in model.recommend(history, n=50)]
        ranked = rankings.filter(polars.col("user_idx") == held.user_idx[row])["item_idx"].to_list()
        assert served == ids[[item - 1 for item in ranked]].to_list()


def test_an_index_is_kept_and_used_for_serving(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = train(tiny_config(data_root, tmp_path, "eval.index=ivf", "eval.search=99"))
    history = eimf.load(made.folder).items["item_id"].head(3).to_list()
    assert (made.folder / "index.faiss").is_file()
    kept = eimf.load(made.folder).recommend(history)
    assert main(["index", str(made.folder), "eval.index=hnsw"]) == 0
    assert "hnsw" in capsys.readouterr().out
    assert [one.item_id for one in eimf.load(made.folder).recommend(history)] == [one.item_id for one in kept]
    about = json.loads((made.folder / "index.json").read_text())
    (made.folder / "index.json").write_text(json.dumps(about | {"checkpoint": "0"}))
    with pytest.raises(ArtifactError, match="made of other weights; make it again with eimf index"):
        eimf.load(made.folder)
    assert main(["index", str(made.folder), "optim.lr=1"]) == 2
    assert "only eval" in capsys.readouterr().err
    train(made_config := load(made.folder / "config.yaml", ["eval.index=flat", "eval.search=0"]), resume=made.folder)
    assert made_config.eval.index == "flat"
    assert not (made.folder / "index.faiss").exists()  # what was made of earlier weights is not kept
    with pytest.raises(ConfigError, match=r"eval.index: 'IVF4,PQ5' .*cannot hold \d+ items of 16 dimensions"):
        train(tiny_config(data_root, tmp_path, "eval.index=IVF4,PQ5", "trainer.max_epochs=0"))


def test_dense_optimisers_are_refused_for_large_catalogues(data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'adam' reads and writes all \d+ items .*rowwise"):
        train(tiny_config(data_root, tmp_path, "optim.dense_limit=50"))
    assert not list(tmp_path.iterdir())  # a refused run leaves no folder
    large = ["optim.dense_limit=50", "optim.name=rowwise", "loss.name=sampled_softmax", "trainer.max_epochs=1"]
    assert train(tiny_config(data_root, tmp_path, *large)).results


def test_command_line(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TINY, f"data.root={data_root}", f"logger.root={tmp_path}"]
    experiment = tmp_path / "mine.yaml"
    experiment.write_text("dataset: demo\nbackbone: comirec_sa\n")
    assert main(["prepare", *arguments]) == 0
    assert "interactions" in capsys.readouterr().out
    assert main(["train", str(experiment), *arguments]) == 0
    out = capsys.readouterr().out
    assert "recall@50" in out
    folder = next((tmp_path / "demo-comirec_sa").iterdir())
    assert str(folder) in out
    assert main(["evaluate", str(folder)]) == 0
    again = capsys.readouterr().out
    table = [line for line in out.splitlines() if "│ recall@50 " in line]
    assert table
    assert set(table) <= set(again.splitlines())
    assert main(["recommend", str(folder), "--history", "P00003, P00005", "-n", "3"]) == 0
    out = capsys.readouterr().out
    assert "interest 3" in out
    assert "merged" in out
    assert main(["recommend", str(folder), "--user", "u000000", "--diversity", "0.5"]) == 0


def test_user_errors_are_one_line_and_status_2(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(run.folder)
    for arguments, message in [
        (["train", "nowhere.yaml"], "nowhere.yaml: no such experiment file"),
        (["train", "backbone.n_interests=0"], "backbone.n_interests: must be at least 1, is 0"),
        (["train", "trainer.accelerator=abacus"], "trainer: "),
        (["train", "--resume", str(tmp_path)], "this is no run folder"),
        (["train", "--resume", folder, "seed=1"], "'seed=1' cannot change; only trainer.max_epochs can be raised"),
        (["evaluate", str(tmp_path)], "no such checkpoint"),
        (["evaluate", str(run.folder.with_name("version_9"))], f"no such folder (did you mean '{folder}'?)"),
        (["evaluate", str(run.folder.parent)[:-2]], f"no such folder (did you mean '{folder}'?)"),
        (["recommend", folder, "--history", "zzz", "--unknown", "error"], "'zzz' not in the catalogue"),
        (["recommend", folder, "--user", "zzz"], "'zzz' is not among the"),
        (["recommend", folder, "--user", "zzz", "-n", "0"], "n: must be a whole number from 1, is 0"),
    ]:
        extra = (
            [f"logger.root={tmp_path}", f"data.root={tmp_path}"]
            if arguments[0] == "train" and len(arguments) == 2
            else []
        )
        assert main([*arguments, *extra]) == 2, arguments
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.startswith("eimf: ")
        assert captured.err.count("\n") == 1, captured.err


def test_a_run_is_trained_by_one_process_at_a_time(run: Run) -> None:
    held = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", held, str(run.folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ArtifactError, match="another process trains this run; wait for it or end it"):
            train(eimf.load(run.folder).config, run.folder)
        other.kill()


def test_checkpoints_hold_no_code_and_know_their_origin(run: Run) -> None:
    for name in ("best", "last"):
        checkpoint = torch.load(run.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["eimf"]["config"]["backbone"]["name"] == "comirec_sa"
        assert len(checkpoint["eimf"]["data_digest"]) == 64


def copied(run: Run, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(run.folder, target / "run"))


def test_checkpoint_from_other_data_is_refused(run: Run, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    checkpoint = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    checkpoint["eimf"]["data_digest"] = "0" * 64
    torch.save(checkpoint, folder / "checkpoints/best.ckpt")
    with pytest.raises(ArtifactError, match=r"trained on data 000000000000, .* holds [0-9a-f]{12}\. .*eimf train"):
        evaluate_run(folder)


def test_checkpoint_with_another_config_is_refused(run: Run, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["backbone"]["n_interests"] = 2
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        ArtifactError, match="backbone.n_interests is 2, but the checkpoint was trained with 4; restore the file"
    ):
        evaluate_run(folder)


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_damaged_checkpoint(run: Run, tmp_path: Path, content: bytes | None) -> None:
    folder = copied(run, tmp_path)
    path = folder / "checkpoints/best.ckpt"
    path.write_bytes(path.read_bytes()[:5000] if content is None else content)
    with pytest.raises(ArtifactError, match=r"best.ckpt: cannot be loaded") as error:
        eimf.load(folder)
    assert "\n" not in str(error.value)


def test_foreign_files_in_a_run_folder(run: Run, tmp_path: Path) -> None:
    folder = copied(run, tmp_path)
    few = polars.read_parquet(folder / "items.parquet").head(5)
    few.write_parquet(folder / "items.parquet")
    with pytest.raises(ArtifactError, match=r"items.parquet: changed since it was written"):
        eimf.load(folder)
    replace_items(folder, few)
    with pytest.raises(ArtifactError, match="has 5 items"):
        eimf.load(folder)
    (folder / "items.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"no items.parquet"):
        eimf.load(folder)
    torch.save({"state_dict": {}}, folder / "checkpoints/best.ckpt")
    with pytest.raises(ArtifactError, match="not written by eimf train"):
        eimf.load(folder)


def test_wandb_offline_without_network_or_key(data_root: Path, tmp_path: Path) -> None:
    """In a process of its own: W&B leaves threads and warnings behind."""
    arguments = [*TINY, f"data.root={data_root}", f"logger.root={tmp_path}", "logger.wandb=auto"]
    environment = {key: value for key, value in os.environ.items() if "WANDB" not in key} | {"WANDB_SILENT": "true"}
    done = subprocess.run(
        [sys.executable, "-m", "eimf", "train", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "demo-comirec_sa" / "version_0"
    (log,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    content = log.read_bytes()
    for name in (b"train/loss", b"val/recall@50", b"final/test/ndcg@20", b"final/trade_off"):
        assert name in content
    assert (folder / "results.json").is_file()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_evaluate_like_one(data_root: Path, tmp_path: Path, strategy: str) -> None:
    """Over gloo: users are shared out without padding, and sums are reduced, so the numbers agree."""
    arguments = [*TINY, f"data.root={data_root}", f"logger.root={tmp_path}", "trainer.max_epochs=2"]
    done = subprocess.run(
        [sys.executable, "-m", "eimf", "train", *arguments, "trainer.devices=2", f"trainer.strategy={strategy}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "demo-comirec_sa" / "version_0"
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]
    together = json.loads((folder / "results.json").read_text())
    alone, _ = evaluate_run(folder, ["trainer.devices=1", "trainer.strategy=auto"])
    for part in ("val", "test"):
        # Vectors are float32, and their last bit depends on who else is in the batch.
        assert alone[part].summary == pytest.approx(together[part], abs=1e-9)
    frame = polars.read_parquet(folder / "metrics.parquet").filter(polars.col("part") == "test")
    assert alone["test"].per_user.equals(frame.drop("part", "user_id"))


def test_ctrl_c_says_how_to_go_on(data_root: Path, tmp_path: Path) -> None:
    arguments = [*TINY, f"data.root={data_root}", f"logger.root={tmp_path}", "trainer.max_epochs=500"]
    process = subprocess.Popen(
        [sys.executable, "-m", "eimf", "train", *arguments, "trainer.patience=500"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    last = tmp_path / "demo-comirec_sa" / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not last.is_file():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "continue with eimf train --resume " in errors
    assert "Traceback" not in errors
