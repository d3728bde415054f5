"""EIMF: multi-interest sequential recommendation, helped by an LLM at training time only.

```python
import eimf
import pytorch_lightning as pl

data = eimf.InteractionData.from_name("demo")
model = eimf.MultiInterestModel(eimf.ComiRecSA(data.n_items, n_interests=4), eimf.SampledSoftmax(), lr=0.002)
trainer = pl.Trainer(max_epochs=5)
trainer.fit(model, datamodule=data)
trainer.test(model, datamodule=data)
```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from eimf.core.version import VERSION

if TYPE_CHECKING:
    from eimf.backbones import Backbone, BackboneConfig, CausalBackbone, Interests
    from eimf.backbones.comirec_dr import ComiRecDR
    from eimf.backbones.comirec_sa import ComiRecSA
    from eimf.backbones.gru4rec import GRU4Rec
    from eimf.backbones.item_to_item import EASE, ItemKNN
    from eimf.backbones.mind import MIND
    from eimf.backbones.popularity import Popularity
    from eimf.backbones.remi import REMI
    from eimf.backbones.sasrec import SASRec
    from eimf.backbones.youtube_dnn import YouTubeDNN
    from eimf.config.load import load as load_config
    from eimf.config.schema import Config
    from eimf.core.errors import EimfError
    from eimf.data.prepare import prepare
    from eimf.data.prepared import Prepared
    from eimf.evaluation import Evaluation, Evaluator, evaluate, metrics
    from eimf.explicit.tasks import ExplicitTasks, Task
    from eimf.losses import (
        GBCE,
        FullSoftmax,
        InBatchSoftmax,
        InterestHardNegatives,
        Loss,
        SampledLoss,
        SampledSoftmax,
    )
    from eimf.runs.results import Run
    from eimf.serving.recommender import Recommendation, Recommender, load
    from eimf.studies.comparison import Comparison, compare
    from eimf.training.datamodule import InteractionData
    from eimf.training.evaluate import evaluate_run
    from eimf.training.module import MultiInterestModel
    from eimf.training.train import train

__version__ = VERSION

_PLACES = {
    "eimf.backbones": ("Backbone", "BackboneConfig", "CausalBackbone", "Interests"),
    "eimf.backbones.comirec_dr": ("ComiRecDR",),
    "eimf.backbones.comirec_sa": ("ComiRecSA",),
    "eimf.backbones.gru4rec": ("GRU4Rec",),
    "eimf.backbones.item_to_item": ("EASE", "ItemKNN"),
    "eimf.backbones.mind": ("MIND",),
    "eimf.backbones.popularity": ("Popularity",),
    "eimf.backbones.remi": ("REMI",),
    "eimf.backbones.sasrec": ("SASRec",),
    "eimf.backbones.youtube_dnn": ("YouTubeDNN",),
    "eimf.config.schema": ("Config",),
    "eimf.core.errors": ("EimfError",),
    "eimf.data.prepare": ("prepare",),
    "eimf.data.prepared": ("Prepared",),
    "eimf.evaluation": ("Evaluation", "Evaluator", "evaluate", "metrics"),
    "eimf.explicit.tasks": ("ExplicitTasks", "Task"),
    "eimf.losses": (
        *("FullSoftmax", "GBCE", "InBatchSoftmax", "InterestHardNegatives"),
        *("Loss", "SampledLoss", "SampledSoftmax"),
    ),
    "eimf.runs.results": ("Run",),
    "eimf.serving.recommender": ("Recommendation", "Recommender", "load"),
    "eimf.studies.comparison": ("Comparison", "compare"),
    "eimf.training.datamodule": ("InteractionData",),
    "eimf.training.evaluate": ("evaluate_run",),
    "eimf.training.module": ("MultiInterestModel",),
    "eimf.training.train": ("train",),
}
"""Where the names below are; torch takes seconds to import, so they are imported when they are used."""

__all__ = [
    "EASE",
    "GBCE",
    "MIND",
    "REMI",
    "Backbone",
    "BackboneConfig",
    "CausalBackbone",
    "ComiRecDR",
    "ComiRecSA",
    "Comparison",
    "Config",
    "EimfError",
    "Evaluation",
    "Evaluator",
    "ExplicitTasks",
    "FullSoftmax",
    "GRU4Rec",
    "InBatchSoftmax",
    "InteractionData",
    "InterestHardNegatives",
    "Interests",
    "ItemKNN",
    "Loss",
    "MultiInterestModel",
    "Popularity",
    "Prepared",
    "Recommendation",
    "Recommender",
    "Run",
    "SASRec",
    "SampledLoss",
    "SampledSoftmax",
    "Task",
    "YouTubeDNN",
    "__version__",
    "compare",
    "evaluate",
    "evaluate_run",
    "load",
    "load_config",
    "metrics",
    "prepare",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "load_config":
        return import_module("eimf.config.load").load
    for module, names in _PLACES.items():
        if name in names:
            found = import_module(module)
            return import_module(f"{module}.{name}") if name == "metrics" else getattr(found, name)
    raise AttributeError(f"module 'eimf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
