"""Arguments of the Lightning classes that are wrong, or do not fit each other."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

import eimf
from eimf.backbones import Backbone
from eimf.core.errors import ConfigError
from eimf.data.prepared import Prepared
from eimf.explicit.tasks import ExplicitTasks
from eimf.explicit.tasks.modality_alignment import AlignModalities
from eimf.losses import Loss
from tests.training.test_module import QUIET, Seen, data_of, model_of

pytestmark = pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")


REFUSED = {
    "eimf.ComiRecSA(0)": "ComiRecSA: n_items must be a whole number from 1, is 0",
    "eimf.ComiRecSA(9, max_len=0)": "max_len must be a whole number from 1",
    "eimf.ComiRecSA(9, n_interests=2.5)": "n_interests: must be a whole number, is 2.5",
    "eimf.ComiRecSA(9, config=eimf.ComiRecSA.Config(n_interests=0))": "n_interests: must be at least 1",
    "eimf.ComiRecSA(9, config=eimf.SASRec.Config())": "config: must be a ComiRecSAConfig",
    "eimf.SampledSoftmax(1280)": "config: must be a SampledSoftmaxConfig, is 1280",
    "eimf.SampledSoftmax(sampler='foo')": "sampler: must be one of",
    "eimf.SampledSoftmax(compete='foo')": "compete: must be one of own, best",
    "eimf.MultiInterestModel('comirec_sa')": "backbone: must be a Backbone, is 'comirec_sa'",
    "eimf.MultiInterestModel(mind, 'ihn')": "loss: must be a Loss, is 'ihn'",
    "eimf.MultiInterestModel(mind, lr=-1)": "lr: must be at least 0.0",
    "eimf.MultiInterestModel(mind, optimizer='sgd')": "optimizer: must be one of",
    "eimf.MultiInterestModel(mind, schedule='foo')": "schedule: must be one of",
    "eimf.MultiInterestModel(mind, filter_seen='yes')": "filter_seen: must be",
    "eimf.MultiInterestModel(mind, k=0)": "k: cut-offs must be whole numbers from 1",
    "eimf.MultiInterestModel(mind, item_lr=0.1)": "item_lr: is 0.1, which has no effect: it needs optimizer=rowwise",
    "eimf.MultiInterestModel(mind, sampled, optimizer='rowwise', weight_decay=0.1)": "it needs optimizer=adam or adamw",
    "eimf.MultiInterestModel(mind, optimizer='rowwise')": "'rowwise' needs sparse gradients",
    "eimf.MultiInterestModel(eimf.YouTubeDNN(9), eimf.FullSoftmax(routing_weight=1.0))": "has no routing weights",
    "eimf.MultiInterestModel(mind, tasks=tasks(16))": "tasks: were made for embed_dim=16, the backbone has 8",
    "tasks(8, prediction='foo')": "prediction: must be one of",
    "eimf.evaluate(np.zeros((2, 3)), np.ones((5, 4)), [[1], [2]])": "interests: must have the shape [U, K, D]",
    "eimf.evaluate(np.zeros((2, 1, 3)), np.ones((5, 4)), [[1], [2]])": "have 3 dimensions, item_vectors 4",
    "eimf.evaluate(np.zeros((2, 1, 4)), np.full((5, 4), np.nan), [[1], [2]])": "some values are no finite numbers",
    "eimf.evaluate(np.zeros((2, 1, 4)), np.ones((5, 4)), [[1], [2]], k=0)": "k: cut-offs must be whole numbers",
    "eimf.evaluate(np.zeros((2, 1, 4)), np.ones((5, 4)), [[1]])": "a list for each of the 2 users",
}
"""What cannot be, and what the error says."""
ALLOWED = (
    "eimf.ComiRecSA(np.int64(9), n_interests=np.int64(2), dropout=np.float32(0.5))",
    "eimf.evaluate(np.ones((2, 1, 4)), np.ones((5, 4)), [[1], [2]], k=2)",
)
SCRIPT = """
import json, sys
import numpy as np
import eimf
from eimf.explicit.tasks import ExplicitTasks
from eimf.explicit.tasks.modality_alignment import AlignModalities
def tasks(dim, **options):
    return ExplicitTasks(None, dim, **({"prediction": "none", "alignment": "none"} | options))
mind, sampled = eimf.MIND(9, embed_dim=8), eimf.SampledSoftmax()
for call in json.load(sys.stdin):
    try:
        eval(call)
        print("nothing")
    except eimf.EimfError as error:
        print(error)
"""


def test_arguments_that_cannot_be() -> None:
    """In a process of its own: in this one, beartype would refuse wrong types first."""
    calls = json.dumps([*REFUSED, *ALLOWED])
    done = subprocess.run([sys.executable, "-c", SCRIPT], input=calls, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *said, first, second = done.stdout.splitlines()
    assert (first, second) == ("nothing", "nothing")
    for call, wanted, found in zip(REFUSED, REFUSED.values(), said, strict=True):
        assert wanted in found, call


def test_components_without_their_method() -> None:
    class Unfinished(Backbone):
        """Without `extract`."""

    with pytest.raises(ConfigError, match="Unfinished: has no method extract"):
        Unfinished(9)(torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(ConfigError, match="Loss: has no method predict"):
        Loss().predict(eimf.MIND(9), torch.ones(1, 1, 64), torch.ones(1, dtype=torch.long))


def _bare_tasks(embed_dim: int = 8, **options: Any) -> ExplicitTasks:
    """Tasks without any that needs labels."""
    given: dict[str, Any] = {"prediction": "none", "alignment": "none"} | options
    return ExplicitTasks(None, embed_dim, **given)


def test_data_that_cannot_be(tiny: Prepared) -> None:
    for options, said in (
        ({"sampling": "foo"}, "sampling: must be one of"),
        ({"max_len": 1.5}, "max_len: must be a whole number"),
        ({"explicit": 1}, "config: must be a EIMFConfig, is 1"),
        ({"labels": True}, "labels: must be a file or a list of labels"),
    ):
        with pytest.raises(ConfigError, match=said):
            data_of(tiny, **options)
    with pytest.raises(ConfigError, match="kind: must be one of user, loo, time, is 'lo'"):
        eimf.InteractionData(tiny, "lo")  # pyright: ignore[reportArgumentType]


def test_a_model_that_does_not_fit_the_data(tiny: Prepared) -> None:
    data = data_of(tiny, max_len=50)
    trainer = pl.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    with pytest.raises(ConfigError, match="max_len: the data have up to 50 items of a history, the backbone sees 20"):
        trainer.fit(model_of(data), datamodule=data)
    data = data_of(tiny)
    with pytest.raises(ConfigError, match="Popularity has nothing to train"):
        trainer.fit(eimf.MultiInterestModel(eimf.Popularity(data.n_items)), datamodule=data)
    rowwise = model_of(data, optimizer="rowwise")
    clipped = pl.Trainer(max_epochs=1, enable_checkpointing=False, gradient_clip_val=1.0, **QUIET)
    with pytest.raises(ConfigError, match="sparse gradients, which cannot be clipped"):
        clipped.fit(rowwise, datamodule=data)
    whole = eimf.InteractionData(tiny, "loo", sampling="sequence")
    with pytest.raises(ConfigError, match="needs a causal backbone"):
        trainer.fit(model_of(data), whole.train_dataloader(), whole.val_dataloader())


def test_tasks_without_labels_are_refused_in_the_first_step(tiny: Prepared) -> None:
    data = data_of(tiny)
    tasks = _bare_tasks(16)
    assert tasks.needs_samples({}) is False
    model = model_of(data, tasks=tasks)
    tasks.tasks["modality_alignment"] = AlignModalities(8, 16, "infonce", "optimal", 0.1)
    trainer = pl.Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
    with pytest.raises(ConfigError, match="tasks: need samples of labelled users"):
        trainer.fit(model, datamodule=data)


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_repeats_its_batches(tiny: Prepared) -> None:
    data, seen = data_of(tiny), Seen()
    trainer = pl.Trainer(max_epochs=3, overfit_batches=2, enable_checkpointing=False, callbacks=[seen], **QUIET)
    trainer.fit(model_of(data), datamodule=data)
    assert len(seen.targets[0]) == 2
    assert seen.targets[0] == seen.targets[1] == seen.targets[2]


def test_loggers_get_the_hyperparameters(tiny: Prepared, tmp_path: Path) -> None:
    data, logger = data_of(tiny), CSVLogger(tmp_path)
    options: dict[str, Any] = QUIET | {"logger": logger}
    pl.Trainer(max_epochs=1, enable_checkpointing=False, **options).fit(model_of(data), datamodule=data)
    (file,) = tmp_path.rglob("hparams.yaml")
    assert "n_negatives: 40" in file.read_text()
