"""The swappable part: models that turn a history of item ids into interest vectors.

To add one: write `eimf/backbones/<name>.py` with a config dataclass and a `Backbone` subclass, add a line here,
and an `experiments/backbones/<name>.yaml`. The contract tests in `tests/contracts.py` then cover it.
"""

from eimf.backbones.base import Backbone, BackboneConfig, Interests
from eimf.backbones.comirec_dr import ComiRecDR
from eimf.backbones.comirec_sa import ComiRecSA
from eimf.backbones.gru4rec import GRU4Rec
from eimf.backbones.mind import MIND
from eimf.backbones.popularity import Popularity
from eimf.backbones.remi import REMI
from eimf.backbones.sasrec import SASRec
from eimf.backbones.youtube_dnn import YouTubeDNN

BACKBONES: dict[str, type[Backbone]] = {
    "comirec_sa": ComiRecSA,
    "comirec_dr": ComiRecDR,
    "mind": MIND,
    "remi": REMI,
    "youtube_dnn": YouTubeDNN,
    "gru4rec": GRU4Rec,
    "sasrec": SASRec,
    "popularity": Popularity,
}


__all__ = ["BACKBONES", "Backbone", "BackboneConfig", "Interests"]
