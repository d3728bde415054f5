"""Fused losses: compute scores, loss and gradients in one pass, for a few rows of scores at a time.

Shapes: B samples, R rows of a chunk, D dimensions, I items, N negatives.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK_BYTES = 4 * 2**20
"""Memory limit of one chunk of scores (never less than `LEAST_ROWS` rows). Fastest when a chunk fits the CPU cache."""
LEAST_ROWS = 64
"""Fewest rows of scores at a time. Matrix products of fewer rows are several times slower, which costs more than a
cache-sized chunk saves."""


def _product_type(user: Float[Tensor, "B D"]) -> torch.dtype:
    """The type of matrix products: that of autocast, if it is on."""
    kind = user.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else user.dtype


class _FullSoftmax(torch.autograd.Function):
    """Cross-entropy over all items that never holds more than `rows` rows of scores.

    The forward pass also computes the gradients, from the probabilities of each chunk. So nothing is computed twice,
    and the backward pass only scales the gradients.
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
                scores[:, 0] = -torch.inf  # padding is not a candidate
                chosen = scores.gather(1, target[start : start + rows, None]).float()
                top = scores.amax(dim=1, keepdim=True)
                mass = scores.sub_(top).exp_()  # in place; not normalised
                total = mass.sum(dim=1, keepdim=True, dtype=torch.float32)
                loss += (total.log() + top - chosen).sum()
                if grad_user is None or grad_items is None:
                    continue
                # Normalise the [R, D] factors instead of the [R, I] matrix: same result, less work.
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
    max_bytes: int | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the target among all items; row 0 of `items` (padding) is not a candidate.

    Args:
        max_bytes: memory limit of one chunk of scores, but at least `LEAST_ROWS` rows of them; None is `CHUNK_BYTES`.
    """
    return _FullSoftmax.apply(user, items, target, _rows_at_once(max_bytes or CHUNK_BYTES, len(items)))  # pyright: ignore[reportReturnType]


def _rows_at_once(max_bytes: int, width: int) -> int:
    """Number of rows of `width` float32 scores in a chunk."""
    return max(LEAST_ROWS, max_bytes // (4 * width))


def fused_loss(
    user: Float[Tensor, "B D"],
    truth: Float[Tensor, "B D"],
    negative: Float[Tensor, "N D"],
    target: Int[Tensor, " B"],
    negatives: Int[Tensor, " N"],
    log_q: Float[Tensor, " I_plus_1"] | None = None,
    beta: float | None = None,
    rivals: Float[Tensor, "B K D"] | None = None,
) -> Float[Tensor, ""]:
    """`eimf.losses.functions.sampled_softmax`, or `interest_hard_negatives` if `beta` is given, from vectors.

    Args:
        user: read-out vectors.
        truth, negative: vectors of the targets and of the sampled items.
        target, negatives: their ids.
        log_q: log sampling probability of every item; None skips the correction.
        beta: concentration of REMI's hard negatives.
        rivals: if given, a sampled item has its highest score with any of these vectors, instead of that with `user`.
    """
    rows = _rows_at_once(CHUNK_BYTES, len(negatives) * (1 if rivals is None else rivals.shape[1]))
    return _Sampled.apply(user, truth, negative, rivals, target, negatives, log_q, beta, rows)  # pyright: ignore[reportReturnType]


class _Sampled(torch.autograd.Function):
    """`sampled_softmax` (`beta` None) or `interest_hard_negatives`, from vectors, `rows` rows of scores at a time.

    As in `_FullSoftmax`, the forward pass computes the gradients, while the scores are in the cache.
    """

    @staticmethod
    def forward(
        ctx: Any,
        user: Float[Tensor, "B D"],
        truth: Float[Tensor, "B D"],
        negative: Float[Tensor, "N D"],
        rivals: Float[Tensor, "B K D"] | None,
        target: Int[Tensor, " B"],
        negatives: Int[Tensor, " N"],
        log_q: Float[Tensor, " I_plus_1"] | None,
        beta: float | None,
        rows: int,
    ) -> Float[Tensor, ""]:
        count, scale, device = len(user), 1 / max(len(user), 1), user.device
        dtype = _product_type(user)
        loss = torch.zeros((), device=device)
        grad_user = torch.zeros(user.shape, device=device)
        grad_rivals = None if rivals is None else torch.empty(rivals.shape, device=device)
        grad_negative = torch.zeros(negative.shape, device=device)
        grad_positive = torch.empty(count, device=device)
        with torch.autocast(device.type, enabled=False):
            low_user, low_negative = user.to(dtype), negative.to(dtype)
            low_rivals = None if rivals is None else rivals.to(dtype)
            positive = (user * truth).sum(dim=-1).float()
            if log_q is not None and beta is None:
                positive -= log_q[target]
            weight_q = log_q[negatives] if log_q is not None else None
            left = len(negatives) - _count_in(negatives, target)
            for start in range(0, count, rows):
                part = slice(start, start + rows)
                best = None
                if low_rivals is None:
                    scores = (low_user[part] @ low_negative.T).float()
                else:
                    every = torch.matmul(low_rivals[part].transpose(0, 1), low_negative.T)  # [K, R, N]
                    scores, best = every.float().max(dim=0)
                hits = negatives == target[part, None]
                if beta is None:
                    total, weight, grad_positive[part] = _softmax_gradient(positive[part], scores, hits, weight_q)
                else:
                    total, weight, grad_positive[part] = _ihn_gradient(
                        positive[part], scores, hits, left[part], weight_q, beta
                    )
                loss += total
                low_weight = weight.to(dtype)
                if low_rivals is None or grad_rivals is None:
                    grad_user[part] = (low_weight @ low_negative).float()
                    grad_negative += low_weight.T @ low_user[part]
                    continue
                for k in range(low_rivals.shape[1]):  # the gradient goes to the vector with the highest score
                    own_weight = low_weight * (best == k)
                    grad_rivals[part, k] = (own_weight @ low_negative).float()
                    grad_negative += own_weight.T @ low_rivals[part, k]
            grad_user += grad_positive[:, None] * truth
            grad_truth = grad_positive[:, None] * user
        grads = [grad.mul_(scale) for grad in (grad_user, grad_truth.float(), grad_negative)]
        ctx.save_for_backward(*grads, *([] if grad_rivals is None else [grad_rivals.mul_(scale)]))
        return loss * scale

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        user, truth, negative, *rivals = (grads[0] * grad for grad in ctx.saved_tensors)
        return user, truth, negative, rivals[0] if rivals else None, None, None, None, None, None


def _count_in(items: Int[Tensor, " N"], wanted: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """How often each wanted item is among the items. Much cheaper than the sum of a [B, N] mask."""
    ordered = items.sort().values
    return torch.searchsorted(ordered, wanted.contiguous(), right=True) - torch.searchsorted(
        ordered, wanted.contiguous()
    )


def _softmax_gradient(
    positive: Float[Tensor, " R"], scores: Float[Tensor, "R N"], hits: Bool[Tensor, "R N"], log_q: Tensor | None
) -> tuple[Tensor, Float[Tensor, "R N"], Float[Tensor, " R"]]:
    """Sum of `sampled_softmax` over rows, and its derivatives by the scores (in place) and by the positive scores.

    Args:
        positive: positive scores, already corrected.
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
    """The same as `_softmax_gradient`, for `interest_hard_negatives`.

    Args:
        left: number of negatives that are not hits.
    """
    lowest = torch.finfo(scores.dtype).min
    importance = beta * scores
    if log_q is not None:
        importance.sub_(log_q)
    importance.masked_fill_(hits, -torch.inf)
    joint = scores.add_(importance)

    def weigh(logits: Tensor) -> tuple[Tensor, Tensor]:  # log of the mass, and the softmax
        top = logits.amax(dim=1, keepdim=True).clamp(min=lowest)  # if all are hits, there is no negative
        mass = logits.sub_(top).exp_()
        total = mass.sum(dim=1, keepdim=True)
        return (total.log() + top)[:, 0], mass.div_(total.clamp(min=1e-30))

    (log_joint, joint), (log_importance, importance) = weigh(joint), weigh(importance)
    mass = (log_joint - log_importance + left.clamp(min=1).to(scores.dtype).log()).masked_fill(left == 0, -torch.inf)
    pull = torch.sigmoid(mass - positive)
    weight = joint.mul_(beta + 1).sub_(importance, alpha=beta).mul_(pull[:, None])
    return (torch.logaddexp(positive, mass) - positive).sum(), weight, -pull
