"""REMI: ComiRec-SA trained with interest-aware hard negatives and routing regularisation.

Xie et al., RecSys 2023, arXiv 2302.14532. The body is ComiRec-SA's; what is new are the losses, which
`experiments/backbones/remi.yaml` chooses: `loss.name=ihn` and `loss.routing_weight` (see `eimf.losses`).
"""

from eimf.backbones.comirec_sa import ComiRecSA


class REMI(ComiRecSA):
    """ComiRec-SA's body under REMI's name."""
