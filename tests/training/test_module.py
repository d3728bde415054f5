"""The module and the data module as Lightning users meet them: with a Trainer of their own."""

from pathlib import Path
from typing import Any

import polars
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

import eimf
from eimf.core.errors import ConfigError
from eimf.data.batch import Batch, TrainingBatches
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.runs.curves import read_curves
from eimf.training.train import train
from tests.conftest import tiny_config

# A user's own Trainer has loaders without workers, and a small data set makes short epochs.
pytestmark = pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def data_of(tiny: Prepared, **options: Any) -> eimf.InteractionData:
    all_options: dict[str, Any] = {"batch_size": 64} | options
    return eimf.InteractionData(tiny, "loo", **all_options)


def model_of(data: eimf.InteractionData, **options: Any) -> eimf.MultiInterestModel:
    torch.manual_seed(0)
    backbone = eimf.ComiRecSA(data.n_items, embed_dim=16, dropout=0.2)
    return eimf.MultiInterestModel(backbone, eimf.SampledSoftmax(n_negatives=40), lr=0.01, **options)


class Seen(pl.Callback):
    """Keeps the first target of every batch, epoch by epoch, and what was logged."""

    def __init__(self) -> None:
        self.targets: list[list[int]] = []
        self.logged: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.targets.append([])

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.targets[-1].append(int(batch.target[0]))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.logged.append({key: float(value) for key, value in trainer.callback_metrics.items()})


def test_a_plain_trainer_gives_the_digits_of_eimf_train(data_root: Path, tmp_path: Path) -> None:
    options = ["backbone.dropout=0.2", "loss=sampled_softmax", "loss.n_negatives=40", "trainer.patience=9"]
    options += ["data.sampling=random_cut", "split.kind=loo", "optim.lr=0.01", "seed=3"]
    config = tiny_config(data_root, tmp_path, *options)
    made = train(config)

    data = eimf.InteractionData(
        prepare(config.dataset, data_root), "loo", batch_size=256, sampling="random_cut", seed=3
    )
    torch.manual_seed(3)
    backbone = eimf.ComiRecSA(data.n_items, embed_dim=16, dropout=0.2)
    loss = eimf.SampledSoftmax(n_negatives=40)
    model = eimf.MultiInterestModel(backbone, loss, lr=0.01, k=(10, 20), seed=3)
    seen = Seen()
    best = ModelCheckpoint(tmp_path / "plain", monitor="val/recall@20", mode="max")
    trainer = pl.Trainer(max_epochs=3, callbacks=[seen, best], deterministic=True, **QUIET)
    trainer.fit(model, datamodule=data)
    (tested,) = trainer.test(model, datamodule=data, ckpt_path="best", weights_only=True, verbose=False)

    curves = [{k: v for k, v in row.items() if "/" in k} for row in read_curves(made.folder / "metrics.csv")]
    assert seen.logged == curves
    ours = made.results["test"].summary
    assert {key.removeprefix("test/"): value for key, value in tested.items()} == pytest.approx(ours, rel=1e-6)
    assert model.evaluations["test"].summary == ours  # to the last digit; Lightning returns float32
    assert model.evaluations["test"].per_user.equals(made.results["test"].per_user)


@pytest.mark.slow
def test_every_epoch_has_other_batches_and_a_resumed_one_continues(tiny: Prepared, tmp_path: Path) -> None:
    whole, first, second = Seen(), Seen(), Seen()
    data = data_of(tiny, sampling="random_cut")
    pl.Trainer(max_epochs=4, callbacks=[whole], enable_checkpointing=False, **QUIET).fit(model_of(data), data)
    assert len({tuple(one) for one in whole.targets}) == 4

    data = data_of(tiny, sampling="random_cut")
    trainer = pl.Trainer(max_epochs=2, callbacks=[first], enable_checkpointing=False, **QUIET)
    trainer.fit(model_of(data), data)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    data = data_of(tiny, sampling="random_cut")
    trainer = pl.Trainer(max_epochs=4, callbacks=[second], enable_checkpointing=False, **QUIET)
    trainer.fit(model_of(data), data, ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    assert first.targets + second.targets == whole.targets
    assert first.logged + second.logged == whole.logged


@pytest.mark.slow
def test_a_run_that_stopped_within_an_epoch_continues_there(tiny: Prepared, tmp_path: Path) -> None:
    """The loader knows its place, and dropout and negatives go on from the saved random state."""
    data = data_of(tiny, batch_size=32)
    steps = len(data.train_dataloader())
    whole = model_of(data)
    pl.Trainer(max_epochs=2, enable_checkpointing=False, **QUIET).fit(whole, data)

    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=steps + 3, save_top_k=-1)
    data = data_of(tiny, batch_size=32)
    pl.Trainer(max_steps=steps + 3, callbacks=[every], **QUIET).fit(model_of(data), data)
    (path,) = tmp_path.glob("*.ckpt")
    data, resumed = data_of(tiny, batch_size=32), model_of(data)
    trainer = pl.Trainer(max_epochs=2, callbacks=[every], **QUIET)
    trainer.fit(resumed, data, ckpt_path=path, weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_early_stopping_validate_and_predict_need_nothing_of_ours(tiny: Prepared, tmp_path: Path) -> None:
    data = data_of(tiny)
    model = model_of(data, k=(10, 20))
    stop = EarlyStopping("val/recall@20", mode="max", patience=1)
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/recall@20", mode="max")
    trainer = pl.Trainer(max_epochs=3, callbacks=[stop, checkpoint], **QUIET)
    trainer.fit(model, datamodule=data)
    (validated,) = trainer.validate(model, datamodule=data, verbose=False)
    for key in ("val/recall@10", "val/ndcg@20", "val/coverage@20", "val/interest_cosine", "val/novelty@10"):
        assert key in validated
    vectors = trainer.predict(model, datamodule=data)
    assert vectors is not None
    together = torch.cat([one for one in vectors if isinstance(one, torch.Tensor)])
    assert together.shape == (len(tiny.user_ids), 4, 16)
    items = torch.tensor(tiny.sequences.items[: tiny.sequences.offsets[1]])[None].long()
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(items[:, -20:])[0], together[0])


@pytest.mark.parametrize("kind", ["ComiRecDR", "MIND", "REMI", "SASRec", "Popularity"])
@pytest.mark.slow
def test_load_from_checkpoint_needs_the_path_alone(kind: str, tiny: Prepared, tmp_path: Path) -> None:
    data = data_of(tiny, max_len=12)
    options = {} if kind == "Popularity" else {"embed_dim": 16}
    loss = eimf.InterestHardNegatives(n_negatives=20, ihn_beta=2.0)
    model = eimf.MultiInterestModel(getattr(eimf, kind)(data.n_items, 12, **options), loss, lr=0.02, k=(5,))
    trainer = pl.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    if kind == "Popularity":
        trainer.validate(model, data, verbose=False)
    else:
        trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = eimf.MultiInterestModel.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert type(again.backbone) is getattr(eimf, kind)
    assert (again.backbone.max_len, again.loss.config.ihn_beta, again.hparams["lr"]) == (12, 2.0, 0.02)
    history = torch.tensor([[0, 0, 3, 5], [1, 2, 3, 4]])
    assert torch.equal(again.eval()(history), model.eval()(history))
    assert (again.item_table() == model.item_table()).all()
    (ours,), (theirs,) = (pl.Trainer(**QUIET).test(one, data, verbose=False) for one in (model, again))
    assert ours == theirs


def test_batches_and_a_model_without_our_data_module(tiny: Prepared) -> None:
    """Any loader of such batches will do; losses by frequency ask for the counts."""
    data = data_of(tiny)
    loaders = (data.train_dataloader(), data.val_dataloader())
    model = eimf.MultiInterestModel(eimf.ComiRecSA(data.n_items, embed_dim=16), eimf.InBatchSoftmax())
    trainer = pl.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    with pytest.raises(ConfigError, match=r"needs the frequencies .* call loss.observe\(item_counts\)"):
        trainer.fit(model, *loaders)
    model.observe(data.item_counts)
    trainer = pl.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    trainer.fit(model, *loaders)
    assert "val/recall@50" in trainer.callback_metrics


def test_a_loader_knows_its_epoch(tiny: Prepared) -> None:
    def epoch(loader: TrainingBatches) -> list[list[int]]:
        return [batch.target.tolist() for batch in loader]

    first, second = (data_of(tiny, sampling="random_cut", seed=5).train_dataloader() for _ in range(2))
    one, two = epoch(first), epoch(first)
    assert one != two
    assert [one, two] == [epoch(second), epoch(second)]
    second.set_epoch(0)
    assert epoch(second) == one


@pytest.mark.slow
def test_evaluate_gives_the_numbers_of_a_run(data_root: Path, tmp_path: Path) -> None:
    made = train(tiny_config(data_root, tmp_path, "split.kind=loo"))
    served, data = (
        eimf.load(made.folder),
        eimf.InteractionData(prepare(tiny_config(data_root, tmp_path).dataset, data_root), "loo"),
    )
    held, items = data.split.test, data.prepared.sequences.items
    ids = data.prepared.items["item_id"]
    contexts = [items[a:b] for a, b in zip(held.start, held.cut, strict=True)]
    vectors = served.encode([ids.gather(one - 1).to_list() for one in contexts])
    table = torch.tensor(served.item_vectors())
    found = eimf.evaluate(
        torch.from_numpy(vectors),
        torch.cat([torch.zeros(1, table.shape[1]), table]),
        [items[a:b].tolist() for a, b in zip(held.cut, held.end, strict=True)],
        seen=[one.tolist() for one in contexts],
        k=(10, 20),
        item_counts=data.item_counts,
        categories=data.categories,
    )
    ours = made.results["test"].summary
    assert {key: ours[key] for key in found.summary} == pytest.approx(found.summary, abs=1e-9)
    rankings = polars.read_parquet(made.folder / "rankings.parquet")
    assert rankings.columns == ["user_idx", "user_id", "rank", "item_idx", "item_id", "score", "interest"]
    one = rankings.row(7, named=True)
    assert one["item_id"] == ids[one["item_idx"] - 1]
    assert one["user_id"] == data.prepared.user_ids[one["user_idx"]]
    metrics = polars.read_parquet(made.folder / "metrics.parquet")
    assert metrics["user_id"].to_list() == data.prepared.user_ids.gather(metrics["user_idx"]).to_list()


def test_arguments_that_do_not_fit_are_named(tiny: Prepared) -> None:
    data = data_of(tiny)
    with pytest.raises(ConfigError, match=r"ComiRecSAConfig: n_interest: no such option \(did you mean 'n_interests'"):
        eimf.ComiRecSA(data.n_items, n_interest=2)
    with pytest.raises(ConfigError, match="n_interests: must be at least 1, is 0"):
        eimf.ComiRecSA(data.n_items, n_interests=0)
    with pytest.raises(ConfigError, match=r"BatchConfig: batch_sise: no such option \(did you mean 'batch_size'"):
        eimf.InteractionData(tiny, "loo", batch_sise=3)
    wrong = eimf.MultiInterestModel(eimf.ComiRecSA(3, embed_dim=16))
    with pytest.raises(ConfigError, match=r"n_items: the backbone has 3, the data have \d+; make the backbone with"):
        pl.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET).fit(wrong, data)
    cosine = model_of(data, schedule="cosine")
    with pytest.raises(ConfigError, match="'cosine' needs to know the last epoch"):
        pl.Trainer(max_epochs=-1, max_steps=3, enable_checkpointing=False, **QUIET).fit(cosine, data)


def test_from_name_prepares_by_name(tmp_path: Path) -> None:
    data = eimf.InteractionData.from_name("demo", "loo", root=tmp_path, max_len=7, batch_size=99)
    assert (data.prepared.manifest.counts["users"], data.config.max_len) == (len(data.prepared.user_ids), 7)
    batch = next(iter(data.train_dataloader()))
    assert batch.history.shape == (99, 7)
