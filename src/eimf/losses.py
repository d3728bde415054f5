"""Training losses, as pure functions, and `RetrievalLoss`, which puts the chosen ones together.

Shapes: B samples, K interests, L positions, D dimensions, I items, N negatives. Every loss is the mean over the
batch, in nats.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eimf.backbones.base import Backbone, Interests, Items
from eimf.negatives import NegativeSampler


def read_out(
    interests: Float[Tensor, "B K D"], target: Float[Tensor, "B D"], power: float = float("inf")
) -> Float[Tensor, "B D"]:
    """Label-aware attention: combine a user's interests in view of the target (MIND eq. 8, ComiRec eq. 8).

    Args:
        power: p in softmax(score^p). 0 is the mean, inf the best-matching interest alone.

    Deviation: score^p keeps the sign of the score, where the papers' formula is undefined or even for negative
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


def _product_type(user: Float[Tensor, "B D"]) -> torch.dtype:
    """The type of matrix products: autocast's, where it is on."""
    kind = user.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else user.dtype


class _FullSoftmax(torch.autograd.Function):
    """Cross-entropy over all items that never holds more than `rows` rows of scores.

    The gradients are made in the forward pass, while a chunk's probabilities are at hand, so that nothing has to
    be computed twice and the backward pass only scales them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        user: Float[Tensor, "B D"],
        items: Float[Tensor, "I_plus_1 D"],
        target: Int[Tensor, " B"],
        rows: int,
    ) -> Float[Tensor, ""]:
        count, scale, device = len(user), 1 / max(len(user), 1), user.device
        dtype = _product_type(user)
        wanted = any(ctx.needs_input_grad)
        loss = torch.zeros((), device=device)
        grad_user = torch.empty(user.shape, device=device) if wanted else None
        grad_items = torch.zeros(items.shape, device=device) if wanted else None
        with torch.autocast(device.type, enabled=False):
            low_user, low_items = user.to(dtype), items.to(dtype)
            buffer = torch.empty(min(rows, count), len(items), dtype=dtype, device=device)
            for start in range(0, count, rows):
                chunk = low_user[start : start + rows]
                scores = torch.mm(chunk, low_items.T, out=buffer[: len(chunk)])
                scores[:, 0] = -torch.inf  # padding is no candidate
                chosen = scores.gather(1, target[start : start + rows, None]).float()
                top = scores.amax(dim=1, keepdim=True)
                mass = scores.sub_(top).exp_()  # in place: not yet divided by their sum
                total = mass.sum(dim=1, keepdim=True, dtype=torch.float32)
                loss += (total.log() + top - chosen).sum()
                if grad_user is None or grad_items is None:
                    continue
                # Dividing the narrow sides by the sum is the same as dividing the wide matrix.
                grad_user[start : start + rows] = (mass @ low_items).float() / total
                narrow = (chunk / total).to(dtype)
                if dtype == torch.float32:
                    grad_items.addmm_(mass.T, narrow)
                else:
                    grad_items += mass.T @ narrow
        if grad_user is not None and grad_items is not None:
            grad_user -= items[target]
            grad_items.index_add_(0, target, user.float(), alpha=-1)
            ctx.save_for_backward(grad_user.mul_(scale), grad_items.mul_(scale))
        return loss * scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_user, grad_items = ctx.saved_tensors
        return grad_user * grads[0], grad_items * grads[0], None, None


def full_softmax(
    user: Float[Tensor, "B D"],
    items: Float[Tensor, "I_plus_1 D"],
    target: Int[Tensor, " B"],
    max_bytes: int = 4 * 2**20,
) -> Float[Tensor, ""]:
    """Cross-entropy of the target among all items; row 0 of `items` (padding) is no candidate.

    Args:
        max_bytes: most memory that scores take at a time, but at least `LEAST_ROWS` rows of them.
    """
    return _FullSoftmax.apply(user, items, target, _rows_at_once(max_bytes, len(items)))  # pyright: ignore[reportReturnType]


LEAST_ROWS = 64
"""Of scores at a time: matrix products of fewer rows are several times slower, which costs more than a full cache."""


def _rows_at_once(max_bytes: int, width: int) -> int:
    """How many rows of `width` float32 scores are made at a time."""
    return max(LEAST_ROWS, max_bytes // (4 * width))


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
        hits: sampled items that are the row's own target ("accidental hits"); they are left out.
        log_q_positive: log sampling probability of the targets; None skips the correction.
        log_q_negative: the same of the sampled items.
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

    Negatives should come from pi(j) ~ exp(beta s_j). Those at hand come from q, so each has the importance
    exp(beta s_j) / q_j, and the denominator is exp(s+) + N E_pi[exp(s)]. All of it in log space: the published
    code exponentiates first and overflows. beta = 0 is `sampled_softmax` with uniform q.
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
    """REMI's penalty on interests that look at a single item: || diag(C) ||^2 (arXiv 2302.14532, eq. 13).

    C is the K by K covariance of the routing weights over the positions.

    Deviations: padding is left out of mean and covariance; averaged over the batch, so that its weight does not
    depend on the batch size; not divided by the embedding size. The published weight of 100 (batches of 128 summed,
    divided by D = 64 before the square) is 100 * 128 / 64^2 = 3.1 here.
    """
    mask = item[:, None].to(routing.dtype)
    mean = (routing * mask).sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp(min=1)
    variance = ((routing - mean) * mask).square().sum(dim=-1)  # [B, K]
    return variance.square().sum(dim=1).mean()


class _Sampled(torch.autograd.Function):
    """`sampled_softmax` (`beta` None) or `interest_hard_negatives`, from vectors, `rows` rows of scores at a time.

    As in `_FullSoftmax` the gradients are made in the forward pass, while the scores are in the cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        user: Float[Tensor, "B D"],
        truth: Float[Tensor, "B D"],
        negative: Float[Tensor, "N D"],
        target: Int[Tensor, " B"],
        negatives: Int[Tensor, " N"],
        log_q: Float[Tensor, " I_plus_1"] | None,
        beta: float | None,
        rows: int,
    ) -> Float[Tensor, ""]:
        count, scale, device = len(user), 1 / max(len(user), 1), user.device
        dtype = _product_type(user)
        loss = torch.zeros((), device=device)
        grad_user = torch.empty(user.shape, device=device)
        grad_negative = torch.zeros(negative.shape, device=device)
        grad_positive = torch.empty(count, device=device)
        with torch.autocast(device.type, enabled=False):
            low_user, low_negative = user.to(dtype), negative.to(dtype)
            positive = (user * truth).sum(dim=-1).float()
            if log_q is not None and beta is None:
                positive -= log_q[target]
            weight_q = log_q[negatives] if log_q is not None else None
            left = len(negatives) - _count_in(negatives, target)
            for start in range(0, count, rows):
                part = slice(start, start + rows)
                scores = (low_user[part] @ low_negative.T).float()
                hits = negatives == target[part, None]
                if beta is None:
                    total, weight, grad_positive[part] = _softmax_gradient(positive[part], scores, hits, weight_q)
                else:
                    one, kept = positive[part], left[part]
                    total, weight, grad_positive[part] = _ihn_gradient(one, scores, hits, kept, weight_q, beta)
                loss += total
                low_weight = weight.to(dtype)
                grad_user[part] = (low_weight @ low_negative).float()
                grad_negative += low_weight.T @ low_user[part]
            grad_user += grad_positive[:, None] * truth
            grad_truth = grad_positive[:, None] * user
        grads = (one.mul_(scale) for one in (grad_user, grad_truth.float(), grad_negative))
        ctx.save_for_backward(*grads)
        return loss * scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return *(grads[0] * one for one in ctx.saved_tensors), None, None, None, None, None


def _count_in(items: Int[Tensor, " N"], wanted: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """How often each wanted item is among the items; much cheaper than adding up a [B, N] mask."""
    ordered = items.sort().values
    return torch.searchsorted(ordered, wanted, right=True) - torch.searchsorted(ordered, wanted)


def _softmax_gradient(
    positive: Float[Tensor, " R"], scores: Float[Tensor, "R N"], hits: Bool[Tensor, "R N"], log_q: Tensor | None
) -> tuple[Tensor, Float[Tensor, "R N"], Float[Tensor, " R"]]:
    """Sum of `sampled_softmax` over rows, and its derivatives by the scores (in their place) and by the positive ones.

    Args:
        positive: corrected already.
    """
    if log_q is not None:
        scores.sub_(log_q)
    scores.masked_fill_(hits, -torch.inf)
    top = torch.maximum(scores.amax(dim=1), positive)
    mass = scores.sub_(top[:, None]).exp_()
    own = (positive - top).exp()
    total = mass.sum(dim=1) + own
    loss = (total.log() + top - positive).sum()
    return loss, mass.div_(total[:, None]), own / total - 1


def _ihn_gradient(
    positive: Float[Tensor, " R"],
    scores: Float[Tensor, "R N"],
    hits: Bool[Tensor, "R N"],
    left: Int[Tensor, " R"],
    log_q: Tensor | None,
    beta: float,
) -> tuple[Tensor, Float[Tensor, "R N"], Float[Tensor, " R"]]:
    """The same of `interest_hard_negatives`.

    Args:
        left: number of negatives that are no hits.
    """
    lowest = torch.finfo(scores.dtype).min
    importance = beta * scores
    if log_q is not None:
        importance.sub_(log_q)
    importance.masked_fill_(hits, -torch.inf)
    joint = scores.add_(importance)

    def weigh(logits: Tensor) -> tuple[Tensor, Tensor]:  # log of the mass, and the softmax
        top = logits.amax(dim=1, keepdim=True).clamp(min=lowest)  # a row of hits alone has no negative
        mass = logits.sub_(top).exp_()
        total = mass.sum(dim=1, keepdim=True)
        return (total.log() + top)[:, 0], mass.div_(total.clamp(min=1e-30))

    (log_joint, joint), (log_importance, importance) = weigh(joint), weigh(importance)
    mass = (log_joint - log_importance + left.clamp(min=1).to(scores.dtype).log()).masked_fill(left == 0, -torch.inf)
    pull = torch.sigmoid(mass - positive)
    weight = joint.mul_(beta + 1).sub_(importance, alpha=beta).mul_(pull[:, None])
    return (torch.logaddexp(positive, mass) - positive).sum(), weight, -pull


class RetrievalLoss(nn.Module):
    """The recommendation loss of a batch: read out the interests in view of the target, then the named loss.

    Args:
        name: which loss, see `eimf.config.LossConfig`; the other arguments are explained there too.
        item_counts: occurrences in the training interactions, for samplers and in-batch correction.
    """

    def __init__(
        self,
        name: Literal["full_softmax", "sampled_softmax", "in_batch", "gbce", "ihn"],
        item_counts: Int[Tensor, " I_plus_1"],
        readout_power: float = float("inf"),
        temperature: float = 1.0,
        n_negatives: int = 1280,
        sampler: Literal["uniform", "log_uniform", "frequency"] = "uniform",
        log_q: bool = True,
        gbce_t: float = 0.75,
        ihn_beta: float = 10.0,
        routing_weight: float = 0.0,
        chunk_mb: int = 4,
    ) -> None:
        super().__init__()
        self.name, self.power, self.temperature = name, readout_power, temperature
        self.n_negatives, self.log_q = n_negatives, log_q
        self.gbce_t, self.ihn_beta, self.routing_weight = gbce_t, ihn_beta, routing_weight
        self.max_bytes = chunk_mb * 2**20
        # In-batch negatives are training targets, so their distribution is the training frequency.
        self.sampler = NegativeSampler("frequency" if name == "in_batch" else sampler, item_counts)

    def forward(
        self,
        backbone: Backbone,
        interests: Interests,
        history: Int[Tensor, "B L"] | None,
        target: Int[Tensor, " B"],
    ) -> dict[str, Float[Tensor, ""]]:
        """Named loss terms, already weighted: their sum is what to minimise.

        Args:
            history: the items that `interests.routing` refers to; None where there is no routing.
        """
        terms = {self.name: self.predict(backbone, interests.vectors, target)}
        if self.routing_weight > 0 and interests.routing is not None and history is not None:
            terms["routing"] = self.routing_weight * routing_regularisation(interests.routing, history != 0)
        return terms

    def predict(self, backbone: Items, vectors: Float[Tensor, "B K D"], target: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """The named loss alone, of any K vectors that should have the target among their nearest items."""
        if self.name == "full_softmax":
            items = backbone.item_vectors()
            user = read_out(vectors, items[target], self.power) / self.temperature
            return full_softmax(user, items, target, self.max_bytes)
        if self.name == "in_batch":
            negatives, truth = target, backbone.item_vectors(target)
            negative = truth
        else:
            negatives = self.sampler.sample(self.n_negatives)
            both = backbone.item_vectors(torch.cat([target, negatives]))  # one look-up has one gradient to gather
            truth, negative = both.split([len(target), len(negatives)])
        user = read_out(vectors, truth, self.power) / self.temperature
        if self.name == "gbce":
            positive, scores = (user * truth).sum(dim=-1).float(), (user @ negative.T).float()
            return gbce(positive, scores, negatives == target[:, None], backbone.n_items, self.gbce_t)
        # A constant, as of uniform sampling, cancels.
        log_q = self.sampler.log_q if self.log_q and self.sampler.kind != "uniform" else None
        beta = self.ihn_beta if self.name == "ihn" else None
        rows = _rows_at_once(self.max_bytes, len(negatives))
        return _Sampled.apply(user, truth, negative, target, negatives, log_q, beta, rows)  # pyright: ignore[reportReturnType]
