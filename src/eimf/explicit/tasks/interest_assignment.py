"""Interest assignment (beyond the paper): the items of one explicit interest share one behavioural interest."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from eimf.explicit.matching import match_interests
from eimf.explicit.tasks.base import Step, Task


class AssignInterests(Task):
    """Supervises the routing of the labelled samples; see `assign`."""

    name = "interest_assignment"

    def forward(self, step: Step) -> Float[Tensor, ""]:
        assert step.samples is not None
        assert step.labelled is not None
        routing = step.labelled.routing
        if routing is None:
            return step.labelled.vectors.sum() * 0.0
        return assign(routing, step.samples.shown, step.samples.label_embeddings.shape[1])


def assign(routing: Float[Tensor, "B K L"], shown: Int[Tensor, "B L"], n_explicit: int) -> Float[Tensor, ""]:
    """Cross-entropy loss that routes the items of one explicit interest to one behavioural interest.

    The one-to-one matching that agrees best with the current routing chooses the behavioural interest (beyond the
    paper).

    Args:
        routing: weight of each position in each interest, 0 at padding.
        shown: the explicit interest that each position shows, below `n_explicit`; -1 where none is known.
    """
    routing = routing.float()  # float32, since small shares have the largest gradients
    known = (shown >= 0) & (routing.sum(dim=1) > 0)
    if not known.any():
        return routing.sum() * 0.0
    share = routing / routing.sum(dim=1, keepdim=True).clamp(min=1e-12)  # p(k | position)
    explicit = F.one_hot(shown.clamp(min=0), n_explicit).to(share.dtype) * known[..., None]  # [B, L, S]
    chosen = match_interests(share @ explicit, explicit.any(dim=1))  # [B, S]
    wanted = chosen.gather(1, shown.clamp(min=0))  # [B, L]
    probability = share.gather(1, wanted[:, None])[:, 0][known]
    return -probability.clamp(min=1e-24).log().mean()  # keeps the gradient, 1 / share, finite
