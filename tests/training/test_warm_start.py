"""Training from an earlier run of the same shop, and more epochs for a run."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars
import pytest
import torch

from eimf.cli.main import main
from eimf.core.errors import ConfigError, DataError
from eimf.data.prepared import Prepared
from eimf.runs.folder import LAST, read_checkpoint, restore_backbone
from eimf.runs.provenance import input_digests, run_key
from eimf.runs.text_map import make_text_map
from eimf.training.train import resume_config, train
from tests.conftest import TINY, hash_words, tiny_config

LOO = ["split.kind=loo", "trainer.max_epochs=1"]


@pytest.fixture(autouse=True)
def _stand_in_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eimf.data.text.open_encoder", lambda name: hash_words)


@pytest.fixture(scope="module")
def yesterday(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the first data."""
    return train(tiny_config(data_root, tmp_path_factory.mktemp("yesterday"), *LOO)).folder


@pytest.fixture(scope="module")
def grown(tiny: Prepared, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of newer data: every user has two new interactions, some items are gone, some are new."""
    folder, rows = tmp_path_factory.mktemp("today"), tiny.interactions()
    gone = tiny.items["item_id"].head(3)
    late = rows.group_by("user_id", maintain_order=True).tail(1)
    late = [late.with_columns(polars.col("timestamp") + seconds, item_id=polars.lit("P00009")) for seconds in (1, 2)]
    new = polars.lit("NEW") + (polars.int_range(60) % 4).cast(polars.String)
    late[1] = polars.concat([late[1].head(60).with_columns(item_id=new), late[1][60:]])
    rows = polars.concat([rows.filter(~polars.col("item_id").is_in(gone.implode())), *late])
    rows.write_parquet(folder / "interactions.parquet")
    new = polars.DataFrame({"item_id": [f"NEW{n}" for n in range(4)], "title": ["Yoga Mat, Coral"] * 4})
    polars.concat([tiny.items.select("item_id", "title"), new]).write_parquet(folder / "items.parquet")
    return [
        *(one for one in TINY if not one.startswith("dataset.")),
        *("dataset.source=table", "dataset.name=grown", "dataset.user_min=3", "dataset.item_min=1"),
        *(f"dataset.{name}={folder}/{name}.parquet" for name in ("interactions", "items")),
        *("split.kind=loo", "trainer.max_epochs=0"),
    ]


def table(folder: Path) -> dict[str, np.ndarray]:
    """Item vectors of a run, by raw id."""
    backbone, _ = restore_backbone(read_checkpoint(folder), folder)
    ids = polars.read_parquet(folder / "items.parquet")["item_id"]
    return dict(zip(ids, backbone.item_vectors().detach().numpy()[1:], strict=True))


def start(grown: list[str], data_root: Path, logs: Path, folder: Path, *more: str) -> Path:
    arguments = ["train", *grown, f"data.root={data_root}", f"logger.root={logs}", *more]
    assert main([*arguments, "--backbone", "comirec_sa", "--from", str(folder)]) == 0
    return logs / "grown-comirec_sa" / "version_0"


@pytest.mark.slow
def test_rows_carry_over_by_item_id(yesterday: Path, grown: list[str], data_root: Path, tmp_path: Path) -> None:
    folder = start(grown, data_root, tmp_path, yesterday)
    before, after = table(yesterday), table(folder)
    assert len(set(after) - set(before)) == 4
    assert len(set(before) - set(after)) >= 3
    for item in set(after) & set(before):
        np.testing.assert_array_equal(after[item], before[item])
    old, new = (restore_backbone(read_checkpoint(one), one)[0].state_dict() for one in (yesterday, folder))
    for name in set(old) - {"item_embedding.weight"}:
        torch.testing.assert_close(new[name], old[name])
    about = json.loads((folder / "run.json").read_text())
    assert set(about["inputs"]) == {"start"}


@pytest.mark.slow
def test_new_items_start_from_the_text_map(yesterday: Path, grown: list[str], data_root: Path, tmp_path: Path) -> None:
    plain = table(start(grown, data_root, tmp_path / "plain", yesterday))
    shutil.copytree(yesterday, tmp_path / "mapped")
    made = make_text_map(tmp_path / "mapped", [f"data.root={data_root}"])
    folder = start(grown, data_root, tmp_path / "logs", tmp_path / "mapped")
    vectors = table(folder)
    expected = made(hash_words(["Yoga Mat, Coral"]))[0]
    for n in range(4):
        np.testing.assert_allclose(vectors[f"NEW{n}"], expected, rtol=1e-5)
        assert not np.allclose(plain[f"NEW{n}"], expected)
    assert set(json.loads((folder / "run.json").read_text())["inputs"]) == {"start", "start.text_map"}


def test_another_start_is_another_run(yesterday: Path, data_root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(yesterday, other)
    config, same = (tiny_config(data_root, tmp_path, *LOO, f"start={one}") for one in (yesterday, other))
    plain = tiny_config(data_root, tmp_path, *LOO)

    def key(config) -> str:
        return run_key(config, "data", "", input_digests(config))

    assert key(config) == key(same) != key(plain)
    (other / "checkpoints" / "best.ckpt").write_bytes(b"other weights")
    assert key(config) != key(same)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["backbone=mind"], "has backbone 'comirec_sa', this run 'mind'"),
        (["backbone.embed_dim=8"], "backbone.embed_dim is 16 there, 8 here"),
        (["split.kind=user"], "was trained on another split"),
    ],
)
@pytest.mark.slow
def test_runs_that_do_not_fit(
    yesterday: Path, data_root: Path, tmp_path: Path, settings: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tiny_config(data_root, tmp_path, *LOO, *settings, f"start={yesterday}"))
    assert not list(tmp_path.iterdir())  # no run folder was made
    with pytest.raises(ConfigError, match="start: .* is not a file"):
        train(tiny_config(data_root, tmp_path, *LOO, f"start={tmp_path / 'none'}"))


def test_held_out_users_of_newer_data_may_have_been_trained_on(
    grown: list[str], data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(tiny_config(data_root, tmp_path / "user", "trainer.max_epochs=0")).folder
    arguments = ["train", *grown, "split.kind=user", f"data.root={data_root}", f"logger.root={tmp_path}"]
    assert main([*arguments, "--backbone", "comirec_sa", "--from", str(folder)]) == 2
    assert "use split.kind=time or loo for both runs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_resumed_run_may_have_more_epochs(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tiny_config(data_root, tmp_path / "whole", "trainer.max_epochs=3")).folder
    short = train(tiny_config(data_root, tmp_path / "short", "trainer.max_epochs=1")).folder
    make_text_map(short, [f"data.root={data_root}"])
    assert main(["index", str(short)]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", str(short), "trainer.max_epochs=3"]) == 0
    removed = "removed: the run's text map and index, made of the weights of before; make them again afterwards: "
    assert f"{removed}eimf map {short}; eimf index {short}\n" in capsys.readouterr().out
    assert main(["train", "--resume", str(short)]) == 0
    assert "removed: " not in capsys.readouterr().out
    one, two = (read_checkpoint(folder, LAST)["state_dict"] for folder in (whole, short))
    assert all(torch.equal(one[name], two[name]) for name in one)
    keys = [json.loads((folder / "run.json").read_text())["key"] for folder in (whole, short)]
    assert keys[0] == keys[1]
    assert "max_epochs: 3" in (short / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"trainer.max_epochs: is 2, but .* trained with 3; it can only be raised"):
        resume_config(short, ["trainer.max_epochs=2"])
    with pytest.raises(ConfigError, match=r"'optim.lr=1' cannot change; only trainer.max_epochs"):
        resume_config(short, ["optim.lr=1"])
    cosine = train(tiny_config(data_root, tmp_path / "cosine", "optim.schedule=cosine", "trainer.max_epochs=1")).folder
    with pytest.raises(ConfigError, match=r"is 2, but .* trained with 1; with optim.schedule=cosine it cannot change"):
        resume_config(cosine, ["trainer.max_epochs=2"])
    assert resume_config(cosine, ["trainer.max_epochs=1"]).trainer.max_epochs == 1


@pytest.mark.slow
def test_own_vectors_start_the_item_table(data_root: Path, tiny: Prepared, tmp_path: Path) -> None:
    ids, vectors = tiny.items["item_id"].to_list(), np.random.default_rng(0).normal(size=(tiny.n_items, 6))
    np.savez(tmp_path / "own.npz", ids=ids[::-1], vectors=vectors[::-1])
    polars.DataFrame({"item_id": ids, "vector": vectors.tolist()}).write_parquet(tmp_path / "own.parquet")
    settings = ["text.item_init=text", "trainer.max_epochs=0"]
    npz, parquet = (
        table(train(tiny_config(data_root, tmp_path / kind, *settings, f"text.vectors={tmp_path}/own.{kind}")).folder)
        for kind in ("npz", "parquet")
    )
    plain = table(train(tiny_config(data_root, tmp_path / "plain", *settings)).folder)
    np.testing.assert_allclose(npz[ids[0]], parquet[ids[0]], atol=1e-5)
    assert not np.allclose(npz[ids[0]], plain[ids[0]], atol=1e-3)
    for name, content in {"few": ids[:-1], "twice": [*ids[:-1], ids[0]]}.items():
        np.savez(tmp_path / f"{name}.npz", ids=content, vectors=vectors[: len(content)])
        with pytest.raises(DataError, match=r"no vector for 1 of|1 repeated ids"):
            train(tiny_config(data_root, tmp_path / name, *settings, f"text.vectors={tmp_path}/{name}.npz"))
    (tmp_path / "bad.npz").write_bytes(b"no arrays")
    with pytest.raises(DataError, match="cannot be used"):
        train(tiny_config(data_root, tmp_path / "bad", *settings, f"text.vectors={tmp_path}/bad.npz"))
