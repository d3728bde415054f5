"""Training with explicit interests, on a small simulated shop with made-up labels and a stand-in encoder."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars
import pytest
import torch

import eimf
from eimf.cli.main import main
from eimf.config.load import load_for
from eimf.config.schema import SplitConfig
from eimf.core.errors import ArtifactError, ConfigError, LabelError
from eimf.data import text
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.data.splits import split_sequences
from eimf.explicit.supervision import match_labels
from eimf.labels.cache import LabelCache
from eimf.labels.source import label_source, read_labels
from eimf.report import build_report
from eimf.runs.curves import read_curves
from eimf.runs.folder import read_run
from eimf.runs.interest_names import read_interest_names
from eimf.runs.provenance import input_digests, run_key
from eimf.runs.results import Run
from eimf.serving.recommender import Recommender
from eimf.training.build import _strategy
from eimf.training.evaluate import evaluate_run
from eimf.training.train import train
from tests.conftest import ROOT, TINY, hash_words, tiny_config
from tests.explicit.test_supervision import labels_of
from tests.fault_server import GOOD, completion, failure, sequence, serve


@pytest.fixture(autouse=True)
def _stand_in_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors by hashing words: no model to load, and words in common make texts similar."""

    monkeypatch.setattr(text, "open_encoder", lambda name: hash_words)


@pytest.fixture(scope="module")
def labels(tiny: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "tiny.jsonl"
    rows = [label._asdict() | {"interests": [one._asdict() for one in label.interests]} for label in labels_of(tiny)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(data_root: Path, logs: Path, labels: Path, *overrides: str) -> Run:
    on = ["eimf.enabled=true", f"eimf.labels={labels}"]
    return train(tiny_config(data_root, logs, *on, *overrides))


def metrics(made: Run) -> dict[str, dict[str, float]]:
    return {part: one.summary for part, one in made.results.items()}


def weights(made: Run) -> dict[str, torch.Tensor]:
    state = torch.load(made.folder / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("backbone.")}


def test_weights_of_zero_reproduce_the_backbone_bit_for_bit(data_root: Path, tmp_path: Path, labels: Path) -> None:
    dropout = "backbone.dropout=0.3"
    zero = run(data_root, tmp_path, labels, "eimf.prediction_weight=0", "eimf.alignment_weight=0", dropout)
    plain = train(tiny_config(data_root, tmp_path, dropout))
    assert metrics(zero) == metrics(plain)
    for name, value in weights(plain).items():
        assert torch.equal(weights(zero)[name], value), name
    some = run(data_root, tmp_path, labels, dropout)
    assert metrics(some) != metrics(plain)


@pytest.mark.parametrize("backbone", ["comirec_dr", "mind", "remi", "youtube_dnn", "gru4rec", "sasrec"])
def test_eimf_works_on_every_trained_backbone(backbone: str, data_root: Path, tmp_path: Path, labels: Path) -> None:
    made = run(data_root, tmp_path, labels, f"backbone={backbone}")
    assert made.results["test"].summary["recall@50"] > 0


@pytest.mark.parametrize(
    "overrides",
    [
        ["eimf.prediction=interest", "eimf.alignment=none"],
        ["eimf.only_after=true", "eimf.matching=soft", "eimf.control=shuffle"],
        ["eimf.alignment=cosine", "eimf.warmup_epochs=2", "eimf.share=0.5"],
        ["text.item_init=text", "split.kind=loo"],
        ["eimf.propagate=true", "eimf.every=2"],
        ["eimf.frozen_items=true", "loss.name=sampled_softmax", "loss.n_negatives=20"],
        ["eimf.assignment_weight=0.1", "backbone=mind"],
        ["eimf.prediction=next_interest", "eimf.alignment_weight=0", "eimf.epochs=2"],
        ["eimf.prediction=next_interest", "eimf.control=shuffle", "backbone=sasrec"],
        ["text.item_init=interests", "eimf.share=0.5"],
        ["text.item_init=text+interests+cooccurrence", "text.spectrum=0", "loss.compete=best"],
    ],
    ids=" ".join,
)
def test_options_run(overrides: list[str], data_root: Path, tmp_path: Path, labels: Path) -> None:
    made = run(data_root, tmp_path, labels, *overrides)
    assert made.results["test"].summary["recall@20"] > 0


PROTOTYPES = ["eimf.prediction=none", "eimf.alignment=none", "backbone.n_interests=3", "backbone.shared=1"]


def test_interests_follow_prototypes_of_words_and_have_names(data_root: Path, tmp_path: Path, labels: Path) -> None:
    made = run(data_root, tmp_path, labels, *PROTOTYPES, "eimf.prototypes=interests", "eimf.prototype_weight=3")
    names = read_interest_names(made.folder)
    assert [len(phrases) for phrases in names] == [3, 3, 3]
    curves = read_curves(made.folder / "metrics.csv")
    assert curves[-1]["train/prototype_alignment"] < curves[0]["train/prototype_alignment"]
    model = eimf.load(made.folder)
    lists = model.recommend_by_interest(model.items["item_id"].head(3).to_list(), n=2)
    assert [items.name for items in lists] == [phrases[0] for phrases in names]


@pytest.mark.parametrize("evidence", ["text", "cooccurrence", "text+cooccurrence"])
def test_prototypes_of_other_evidence_need_no_labels(evidence: str, data_root: Path, tmp_path: Path) -> None:
    made = run(data_root, tmp_path, tmp_path / "none.jsonl", *PROTOTYPES, f"eimf.prototypes={evidence}")
    assert read_run(made.folder)["label_digest"] == ""
    assert read_interest_names(made.folder)


def test_agreement_with_labels_of_held_out_users(data_root: Path, tmp_path: Path, labels: Path, tiny: Prepared) -> None:
    """Labels of held-out users, made from their contexts, change the results and nothing else."""
    split = split_sequences(tiny.sequences, SplitConfig())
    ids, lines = tiny.items["item_id"], []
    for held in (split.validation, split.test):
        for user, start, cut in zip(held.user_idx, held.start, held.cut, strict=True):
            history = [ids[int(item) - 1] for item in tiny.sequences.items[start:cut][-20:]]
            half = list(range(1, len(history) // 2 + 1))
            groups = [
                {"name": "a", "items": half},
                {"name": "b", "items": list(range(len(half) + 1, len(history) + 1))},
            ]
            lines.append({"user_id": tiny.user_ids[int(user)], "history": history, "interests": groups})
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("\n".join(json.dumps(line | {"model": "m", "prompt_version": "v1"}) for line in lines))
    plain, measured = (
        run(data_root, tmp_path / name, labels, "trainer.max_epochs=1", f"eval.labels={path}")
        for name, path in (("plain", ""), ("measured", held_out))
    )
    summary = measured.results["test"].summary
    assert -0.2 < summary["agreement"] < 1
    assert summary["agreement_chance"] <= summary["agreement_accuracy"] + 0.1
    assert {key: value for key, value in summary.items() if "agreement" not in key} == plain.results["test"].summary
    same, moved = (
        tiny_config(data_root, tmp_path, f"eval.labels={path}")
        for path in (held_out, shutil.copy(held_out, tmp_path / "moved.jsonl"))
    )
    assert run_key(same, "data", "", input_digests(same)) == run_key(moved, "data", "", input_digests(moved))
    held_out.write_text(json.dumps(lines[0] | {"user_id": "nobody", "model": "m", "prompt_version": "v1"}))
    with pytest.raises(LabelError, match=r"no label is of a held-out user's context; eval\.labels must hold"):
        run(data_root, tmp_path / "wrong", labels, "trainer.max_epochs=1", f"eval.labels={held_out}")


def test_missing_labels_of_held_out_users_are_said_before_training(data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"none\.jsonl: no such file"):
        train(tiny_config(data_root, tmp_path, f"eval.labels={tmp_path}/none.jsonl"))
    assert not (tmp_path / "demo-comirec_sa").exists()


def train_in_two_processes(data_root: Path, root: Path, labels: Path, *options: str) -> polars.DataFrame:
    """Its curves."""
    arguments = [*TINY, f"data.root={data_root}", f"logger.root={root}", "eimf.enabled=true", f"eimf.labels={labels}"]
    done = subprocess.run(
        [sys.executable, "-m", "eimf", "train", *arguments, "trainer.devices=2", "data.batch_size=32", *options],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (curves,) = root.glob("*/version_0/metrics.csv")
    return polars.read_csv(curves)


def test_two_processes_share_a_head_that_stops_early(data_root: Path, tmp_path: Path, labels: Path) -> None:
    curves = train_in_two_processes(data_root, tmp_path, labels, "eimf.epochs=1", "eimf.every=1")
    assert curves["train/modality_alignment"].count() == 1


def test_two_processes_share_a_head_that_rests_at_most_steps(data_root: Path, tmp_path: Path, labels: Path) -> None:
    """Shared out parameters learn from explicit interests what whole ones do."""
    whole, shared = (
        train_in_two_processes(data_root, tmp_path / strategy, labels, f"trainer.strategy={strategy}")
        for strategy in ("ddp", "fsdp")
    )
    for name in ("train/loss", "train/semantic_prediction", "train/modality_alignment", "val/recall@20"):
        assert whole[name].drop_nulls().to_list() == pytest.approx(shared[name].drop_nulls().to_list(), rel=1e-4)


def test_propagated_labels_reach_most_users(
    data_root: Path, tmp_path: Path, labels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "eimf")
    on = ["eimf.enabled=true", f"eimf.labels={labels}", "eimf.propagate=true", "eimf.share=0.1"]
    train(tiny_config(data_root, tmp_path, *on))
    assert "shared with " in caplog.text


def test_the_labels_that_come_with_demo_fit_it(data_root: Path) -> None:
    config = load_for("demo", "comirec_sa", ["eimf.enabled=true", f"data.root={data_root}"])
    assert label_source(config) == Path("experiments/labels/demo.jsonl")
    prepared = prepare(config.dataset, config.data.root)
    labels = read_labels(label_source(config))
    matched = match_labels(labels, prepared, split_sequences(prepared.sequences, config.split).train)
    assert (len(labels), matched.dropped) == (120, {})
    own = load_for("demo", "comirec_sa", ["eimf.enabled=true", "eimf.labels=own.db"])
    assert label_source(own) == Path("own.db")


def test_each_loss_is_logged_by_name(data_root: Path, tmp_path: Path, labels: Path) -> None:
    header = (run(data_root, tmp_path, labels).folder / "metrics.csv").read_text().splitlines()[0]
    for name in ("full_softmax", "semantic_prediction", "modality_alignment", "loss"):
        assert f"train/{name}" in header.split(",")


def test_same_seed_same_digits(data_root: Path, tmp_path: Path, labels: Path) -> None:
    assert metrics(run(data_root, tmp_path, labels)) == metrics(run(data_root, tmp_path, labels))


def operations(model: Recommender) -> list[str]:
    """Names of all operations of a forward pass, in order."""
    with torch.inference_mode(), torch.profiler.profile() as profiler:
        model.backbone(torch.ones(1, 5, dtype=torch.long))
    return [event.name for event in profiler.events() or [] if event.name.startswith("aten::")]


def test_inference_has_no_text_no_label_no_adapter(data_root: Path, tmp_path: Path, labels: Path) -> None:
    made = run(data_root, tmp_path / "a", labels)
    plain = train(tiny_config(data_root, tmp_path / "b"))
    served, bare = eimf.load(made.folder), eimf.load(plain.folder)
    assert isinstance(served, Recommender)
    count = [sum(param.numel() for param in one.backbone.parameters()) for one in (served, bare)]
    assert count[0] == count[1]
    assert [name for name, _ in served.backbone.named_modules()] == [name for name, _ in bare.backbone.named_modules()]
    assert operations(served) == operations(bare)  # the same program runs
    labels_gone = made.folder / "moved.jsonl"
    labels.rename(labels_gone)
    try:
        results, _ = evaluate_run(made.folder)
        assert {part: one.summary for part, one in results.items()} == metrics(made)
        assert "<h2>Groups of users" in build_report(made.folder).read_text()  # without nearness to labelled ones
    finally:
        labels_gone.rename(labels)


def test_missing_labels_and_unfit_settings(data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"none.jsonl"):
        train(tiny_config(data_root, tmp_path, "eimf.enabled=true", "eimf.labels=none.jsonl"))
    on = ["eimf.enabled=true", "eimf.labels=x.jsonl"]
    with pytest.raises(ConfigError, match="has no routing weights; set it to 0"):
        tiny_config(data_root, tmp_path, *on, "backbone=sasrec", "eimf.assignment_weight=0.1")
    with pytest.raises(ConfigError, match=r"typical.run: is empty"):
        tiny_config(data_root, tmp_path, "typical.represent=both")


def trained_users(data_root: Path) -> np.ndarray:
    config = tiny_config(data_root, data_root)
    return split_sequences(prepare(config.dataset, config.data.root).sequences, config.split).train.user_idx


def test_labelling_from_the_command_line(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai", reason="the extra llm is not installed")
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    cache = tmp_path / "labels.db"
    common = [*TINY, f"data.root={data_root}", "typical.budget=5", "typical.min_history=3", f"eimf.labels={cache}"]

    def run(url: str, *more: str) -> str:
        settings = ["llm.model=m", f"llm.base_url={url}", "llm.attempts=1", *more]
        assert main(["label", "run", *common, *settings]) == 0
        said = capsys.readouterr()
        assert key not in said.out + said.err
        return said.out

    with serve(sequence(completion(GOOD), completion("no"), failure(500, f"saw {key}"), completion(GOOD))) as server:
        assert "calls      5 (0 more are in the cache)" in run(server.url, "--dry-run")
        said = run(server.url)
        assert "ok 3 invalid 1 refused 0 failed 1" in said
        assert "status 500: saw ***" in said
        assert len(server.bodies) == 5
        assert "calls      1 (4 more are in the cache)" in run(server.url, "--dry-run")  # what failed is asked again
        assert "calls      2 (3 more are in the cache)" in run(server.url, "--dry-run", "--retry")
        assert "ok 1 invalid 0" in run(server.url)
        assert "ok 1 invalid 0" in run(server.url, "--retry")
        assert "5 known" in run(server.url, "--retry")
        assert len(server.bodies) == 7
    assert not any(key.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    requests = [json.loads(line) for line in batch_lines(common, tmp_path, "another")]
    body = json.loads(completion(GOOD).body)
    answers = [{"custom_id": one["custom_id"], "response": {"status_code": 200, "body": body}} for one in requests]
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers))
    take = ["label", "import", *common, "--from", str(tmp_path / "out.jsonl")]
    assert main([*take, "llm.model=another"]) == 0
    assert "5 ok" in capsys.readouterr().out
    again = ["label", "export", "--batch", "--to", str(tmp_path / "in.jsonl"), *common, "llm.model=another"]
    assert main(again) == 2
    assert "has a reply to every question" in capsys.readouterr().err
    assert main([*take, "llm.model=other"]) == 2
    assert "no line belongs to these requests" in capsys.readouterr().err


def batch_lines(common: list[str], folder: Path, model: str) -> list[str]:
    assert main(["label", "export", "--batch", "--to", str(folder / "in.jsonl"), *common, f"llm.model={model}"]) == 0
    return (folder / "in.jsonl").read_text().splitlines()


def test_lines_that_are_no_labels_are_told(
    data_root: Path, tmp_path: Path, labels: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(labels.read_text() + "{\n3\n")
    train(tiny_config(data_root, tmp_path, "eimf.enabled=true", f"eimf.labels={path}", "trainer.max_epochs=1"))
    assert "2 lines are no labels and were left out" in caplog.text


def test_a_run_does_not_go_on_with_other_labels(data_root: Path, tmp_path: Path, labels: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(labels.read_text())
    config = tiny_config(data_root, tmp_path, "eimf.enabled=true", f"eimf.labels={path}", "trainer.max_epochs=1")
    made = train(config)
    path.write_text("".join(labels.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ArtifactError, match="begun with other labels"):
        train(config, resume=made.folder)


def test_shipped_labels_are_used_while_the_cache_has_none(tmp_path: Path) -> None:
    config = load_for("demo", "comirec_sa", [f"data.root={tmp_path}"])
    config.label_cache.parent.mkdir(parents=True)
    with LabelCache(config.label_cache):
        pass
    assert label_source(config) == Path("experiments/labels/demo.jsonl")


def test_nobody_is_asked_about_items_without_titles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"u{user},i{(user * 7 + step * 3) % 20},{step}" for user in range(30) for step in range(8)]
    (tmp_path / "shop.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    table = ["dataset.name=shop", "dataset.source=table", f"dataset.interactions={tmp_path / 'shop.csv'}"]
    for command in (["run", "--dry-run"], ["run"], ["export", "--batch", "--to", str(tmp_path / "batch.jsonl")]):
        assert main(["label", *command, *table, f"data.root={tmp_path}", "llm.model=m"]) == 2
        assert "none of its items has a title" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["trainer.strategy=ddp"], "ddp_find_unused_parameters_true"),
        (["trainer.devices=2"], "ddp_find_unused_parameters_true"),
        (["trainer.strategy=ddp_spawn", "trainer.devices=-1"], "ddp_spawn_find_unused_parameters_true"),
        (["trainer.devices=1"], "auto"),
        (["trainer.devices=-1", "trainer.accelerator=cpu"], "auto"),
        (["trainer.strategy=ddp", "eimf.enabled=false"], "ddp"),
    ],
)
def test_strategies_expect_a_resting_head(settings: list[str], expected: str) -> None:
    config = load_for("demo", "comirec_sa", ["eimf.enabled=true", *settings])
    assert _strategy(config.trainer, config.eimf.enabled) == expected


def test_label_commands(
    data_root: Path, tmp_path: Path, labels: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    cache = tmp_path / "labels.db"
    base = [*TINY, f"data.root={data_root}", f"logger.root={tmp_path}", "typical.budget=12", "typical.clusters=12"]
    common = [*base, f"eimf.labels={cache}", "typical.min_history=3"]

    def out(*arguments: str, status: int = 0) -> str:
        by_share = any(text.startswith("typical.budget_share=") for text in arguments)
        rest = [text for text in common if not (by_share and text.startswith("typical.budget="))]
        assert main(["label", *arguments, *rest]) == status, capsys.readouterr().err
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    assert "no labels yet; make some with eimf label run" in out("stats", status=2)
    said = out("run", "--dry-run")
    assert "coverage by budget" in said
    trained = train(tiny_config(data_root, tmp_path / "backbone"))
    behaviour = ["typical.represent=both", f"typical.run={trained.folder}"]
    assert out("run", "--dry-run", *behaviour) != said
    assert "another split" in out("run", "--dry-run", *behaviour, "split.seed=5", status=2)
    six = [f"typical.budget_share={6 / len(trained_users(data_root))}"]
    assert "llm.model: is empty" in out("run", status=2)
    assert "OPENAI_API_KEY" in out("run", "llm.model=m", status=2)
    dead = ["llm.model=m", "llm.base_url=http://127.0.0.1:9/v1", "llm.attempts=1"]
    assert "127.0.0.1:9" in out("run", *dead, status=2)
    assert "12 lines" in out("export", "--batch", "--to", str(tmp_path / "batch.jsonl"), "llm.model=m")
    assert "6 lines" in out("export", "--batch", "--to", str(tmp_path / "b.jsonl"), "llm.model=m", *six)
    assert " imported" in out("import", "--from", str(labels))
    assert " repeated" in out("import", "--from", str(labels))
    assert "ok" in out("stats")
    user = json.loads(labels.read_text().splitlines()[0])["user_id"]
    assert "first things" in out("show", "--user", user)
    assert "has no reply" in out("show", "--user", "nobody", status=2)
    assert "cosine of names with their items" in out("check")
    count = len(labels.read_text().splitlines())
    assert f"{count} lines" in out("export", "--to", str(tmp_path / "again.jsonl"))
    assert main(["train", "--eimf", *common]) == 0
    assert "explicit interests: " in capsys.readouterr().out
    assert (tmp_path / "demo-comirec_sa-eimf" / "version_0" / "results.json").is_file()
