"""ComiRec-SA: interests by self-attentive pooling (Cen et al., KDD 2020, arXiv 2005.09347, section 3.2)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from eimf.backbones.base import Backbone, Interests, MultiInterestConfig
from eimf.backbones.dropout import Dropout

_ROWS = 512
"""Numbers of rows are rounded up to a multiple of this."""
HIDDEN_RATIO = 4
"""Width of the attention's hidden layer, in units of embed_dim (ComiRec's code: 4)."""


@dataclass(frozen=True)
class ComiRecSAConfig(MultiInterestConfig):
    """Options of ComiRec-SA."""


class ComiRecSA(Backbone):
    """A = softmax(W2 tanh(W1 (H + P))), interests = A H (eqs. 6 and 7; positions enter the attention only).

    The softmax is over positions, so that even an interest that a user does not have attends to something. Which
    interest an item belongs to (`Interests.shares`) is the softmax of the same logits over the interests: it depends on
    the item, not on what else the history has.

    Deviation: positions count back from the most recent item, so that a longer window changes nothing for a
    short history; the authors' code counts from the oldest item in the window.
    """

    Config = ComiRecSAConfig
    config: ComiRecSAConfig
    routes = True

    def __init__(self, n_items: int, max_len: int = 20, config: ComiRecSAConfig | None = None, **options: Any) -> None:
        super().__init__(n_items, max_len, config, **options)
        embed_dim, config = self.embed_dim, self.config
        self.position = nn.Parameter(torch.randn(max_len, embed_dim) * config.init_std)
        self.hidden = nn.Linear(embed_dim, HIDDEN_RATIO * embed_dim, bias=False)
        self.heads = nn.Linear(HIDDEN_RATIO * embed_dim, config.n_interests, bias=False)
        self.dropout = Dropout(config.dropout)

    def extract(self, history: Int[Tensor, "B L"]) -> Interests:
        items = self.dropout(self.item_embedding(history))  # [B, L, D]
        placed = items + self.position[-history.shape[1] :]
        item = history != 0
        if history.device.type == "cpu" and not torch.compiler.is_compiling():  # exported programs have no nonzero
            # Most positions of short histories are padding: leave them out of the expensive part. (On an
            # accelerator, the host would have to wait for their number.)
            known = item.flatten().nonzero()[:, 0]
            # Round up to _ROWS: oneDNN compiles and keeps a bfloat16 kernel for every different number of rows.
            rows = F.pad(known, (0, -len(known) % _ROWS))
            scores = self.heads(torch.tanh(self.hidden(placed.flatten(0, 1)[rows])))[: len(known)]
            logits = scores.new_zeros(item.numel(), self.heads.out_features).index_copy(0, known, scores)
            logits = logits.unflatten(0, history.shape)
        else:
            logits = self.heads(torch.tanh(self.hidden(placed)))
        logits, padding = logits.transpose(1, 2), ~item[:, None]  # [B, K, L]
        # The lowest finite value, not -inf: a history that is all padding then gives zeros instead of NaN.
        weights = logits.masked_fill(padding, torch.finfo(logits.dtype).min).softmax(dim=-1)
        weights = weights.masked_fill(padding, 0.0)
        shares = logits.softmax(dim=1).masked_fill(padding, 0.0)
        return Interests(weights @ items.to(weights.dtype), weights, shares)
