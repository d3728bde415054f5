"""REMI: ComiRec-SA trained with interest-aware hard negatives and routing regularisation.

Xie et al., RecSys 2023, arXiv 2302.14532. The model is ComiRec-SA; only the losses are new.
`experiments/backbones/remi.yaml` sets them: `loss.name=ihn` and `loss.routing_weight` (see `eimf.losses`).
"""

from eimf.backbones.comirec_sa import ComiRecSA


class REMI(ComiRecSA):
    """The model of ComiRec-SA, under the name REMI."""
