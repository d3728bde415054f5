"""Losses as plain functions of scores.

Shapes: B samples, K interests, L positions, D dimensions, I items, N negatives. Every loss is the mean over the
batch, in nats.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def read_out(
    interests: Float[Tensor, "B K D"], target: Float[Tensor, "B D"], power: float = float("inf")
) -> Float[Tensor, "B D"]:
    """Label-aware attention: combine a user's interests, weighted by the target (MIND eq. 8, ComiRec eq. 8).

    Args:
        power: p in softmax(score^p). 0 gives the mean, inf the interest with the highest score.

    Deviation: score^p keeps the sign of the score. The papers' formula is undefined, or loses the sign, for negative
    scores.
    """
    if interests.shape[1] == 1:
        return interests[:, 0]
    scores = torch.einsum("bkd,bd->bk", interests, target)
    if power == float("inf"):
        best = scores.argmax(dim=1)
        return interests[torch.arange(len(best), device=best.device), best]
    weights = (scores.sign() * scores.abs().pow(power)).softmax(dim=1)
    return torch.einsum("bk,bkd->bd", weights, interests)


def sampled_softmax(
    positive: Float[Tensor, " B"],
    negative: Float[Tensor, "B N"],
    hits: Bool[Tensor, "B N"],
    log_q_positive: Float[Tensor, " B"] | None = None,
    log_q_negative: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """Softmax over the target and sampled items (Jean et al. 2015, arXiv 1412.2007, eq. 6).

    Args:
        positive: scores of the targets.
        negative: scores of the sampled items.
        hits: true where a sampled item is the row's own target (an "accidental hit"); these are left out.
        log_q_positive: log sampling probability of the targets; None skips the correction.
        log_q_negative: the same for the sampled items.
    """
    if log_q_positive is not None and log_q_negative is not None:
        positive, negative = positive - log_q_positive, negative - log_q_negative
    negative = negative.masked_fill(hits, -torch.inf)
    return (torch.cat([positive[:, None], negative], dim=1).logsumexp(dim=1) - positive).mean()


def interest_hard_negatives(
    positive: Float[Tensor, " B"],
    negative: Float[Tensor, "B N"],
    hits: Bool[Tensor, "B N"],
    beta: float,
    log_q_negative: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """REMI's softmax against negatives re-weighted towards the interest (arXiv 2302.14532, eqs. 9 to 11).

    Negatives should come from pi(j) ~ exp(beta s_j), but are sampled from q. So each has the importance
    exp(beta s_j) / q_j, and the denominator is exp(s+) + N E_pi[exp(s)]. This is computed in log space, since the
    published code exponentiates first and overflows. beta = 0 is `sampled_softmax` with uniform q.
    """
    importance = beta * negative
    if log_q_negative is not None:
        importance = importance - log_q_negative
    importance = importance.masked_fill(hits, -torch.inf)
    count = (~hits).sum(dim=1).clamp(min=1).to(negative.dtype)
    mass = (importance + negative).logsumexp(dim=1) - importance.logsumexp(dim=1) + count.log()
    mass = torch.where(hits.all(dim=1), -torch.inf, mass)
    return (torch.logaddexp(positive, mass) - positive).mean()


def gbce(
    positive: Float[Tensor, " B"],
    negative: Float[Tensor, "B N"],
    hits: Bool[Tensor, "B N"],
    n_items: int,
    t: float = 0.75,
) -> Float[Tensor, ""]:
    """Generalised binary cross-entropy (Petrov & Macdonald, RecSys 2023, arXiv 2308.07192, eqs. 11 and 15).

    sigma(s+)^beta removes the overconfidence that comes from sampling few negatives:
    beta = alpha (t (1 - 1/alpha) + 1/alpha) with alpha = N / (I - 1).
    """
    count = negative.shape[1]
    alpha = min(count / max(n_items - 1, 1), 1.0)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    misses = F.softplus(negative).masked_fill(hits, 0.0).sum(dim=1)
    return ((beta * F.softplus(-positive) + misses) / (count + 1)).mean()


def routing_regularisation(routing: Float[Tensor, "B K L"], item: Bool[Tensor, "B L"]) -> Float[Tensor, ""]:
    """REMI's penalty on interests that attend to a single item: || diag(C) ||^2 (arXiv 2302.14532, eq. 13).

    C is the K by K covariance of the routing weights over the positions.

    Deviations: padding is left out of mean and covariance. The penalty is averaged over the batch, so that its weight
    does not depend on the batch size. It is not divided by the embedding size. The published weight of 100 (summed over
    batches of 128, divided by D = 64 before the square) is 100 * 128 / 64^2 = 3.1 here.
    """
    mask = item[:, None].to(routing.dtype)
    mean = (routing * mask).sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp(min=1)
    variance = ((routing - mean) * mask).square().sum(dim=-1)  # [B, K]
    return variance.square().sum(dim=1).mean()
