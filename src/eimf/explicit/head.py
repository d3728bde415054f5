"""EIMF's two auxiliary tasks, semantic prediction and modality alignment, and the head that carries them.

Nothing here is in the inference graph: the head lives beside the backbone and is dropped when a run is served. The
paper (arXiv 2411.09410) names the two tasks; how they are computed is our reading, listed under *Choices* in
docs/explanation/choices.md and open to ablation.

Shapes: B labelled samples, K behavioural interests, S explicit interests, D and D_text their dimensions, P pairs.
"""

from collections.abc import Callable
from itertools import permutations
from math import perm
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eimf.backbones.base import Backbone, Interests, Items
from eimf.explicit.item_interests import ItemInterests
from eimf.losses.functions import read_out

MAX_PERMUTATIONS = 6_000
"""Above this many assignments `optimal` matching falls back to `greedy`: for 4 explicit interests (a label has no more)
with more than 10 behavioural ones."""


def match_interests(
    similarity: Float[Tensor, "B K S"],
    present: Bool[Tensor, "B S"],
    method: Literal["optimal", "greedy"] = "optimal",
) -> Int[Tensor, "B S"]:
    """Assign an own behavioural interest to each explicit one, so that the sum of similarities is large.

    `optimal` is the exact assignment (as the Hungarian algorithm finds it), by trying all of them at once: K and S are
    small (greedy above `MAX_PERMUTATIONS`). With more explicit interests than behavioural ones, those left over take
    their most similar one.

    Returns:
        The behavioural interest of each explicit one; meaningless where `present` is false.
    """
    batch, count, size = similarity.shape
    few = min(count, size)
    similarity = similarity.detach().masked_fill(~present[:, None], 0.0)
    if size > count:  # so low that an absent interest takes a partner only where no present one is left
        similarity = torch.where(present[:, None], similarity, -1 - 2 * few * similarity.abs().amax())
    if method == "optimal" and perm(max(count, size), few) <= MAX_PERMUTATIONS:
        # Each way to give the fewer ones partners of their own among the others.
        table = torch.tensor(list(permutations(range(max(count, size)), few)), device=similarity.device)  # [A, few]
        own = torch.arange(few, device=similarity.device).expand_as(table)
        if size <= count:
            return table[similarity[:, table, own].sum(dim=2).argmax(dim=1)]
        best = table[similarity[:, own, table].sum(dim=2).argmax(dim=1)]  # [B, K]: the explicit one of each behavioural
        return similarity.argmax(dim=1).scatter(1, best, own[:1].expand_as(best))
    left = similarity.masked_fill(~present[:, None], -torch.inf)
    chosen = similarity.argmax(dim=1)
    rows = torch.arange(batch, device=similarity.device)
    for _ in range(few):
        best = left.flatten(1).argmax(dim=1)
        k, s = best // size, best % size
        valid = left[rows, k, s] > -torch.inf
        chosen[rows[valid], s[valid]] = k[valid]
        left[rows, k] = -torch.inf
        left[rows, :, s] = -torch.inf
    return chosen


def contrast(
    behaviour: Float[Tensor, "P D"], words: Float[Tensor, "P D"], user: Int[Tensor, " P"], temperature: float
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE over matched pairs; other users' partners are the negatives.

    A user's own other interests are neither positive nor negative: they are his too.
    """
    if len(user) == 0:
        return behaviour.sum() * 0.0
    logits = F.normalize(behaviour, dim=-1) @ F.normalize(words, dim=-1).T / temperature
    own = (user[:, None] == user[None]) & ~torch.eye(len(user), dtype=torch.bool, device=user.device)
    logits = logits.masked_fill(own, -torch.inf)
    target = torch.arange(len(user), device=user.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def assign(routing: Float[Tensor, "B K L"], shown: Int[Tensor, "B L"], n_explicit: int) -> Float[Tensor, ""]:
    """Cross-entropy that wants items of one explicit interest with one behavioural interest, and others elsewhere.

    Which behavioural interest that is, is the one-to-one matching that agrees best with the routing as it is (beyond
    the paper).

    Args:
        routing: weight of each position in each interest, 0 at padding.
        shown: the explicit interest that each position shows, below `n_explicit`; -1 where none is known.
    """
    routing = routing.float()  # small shares have the largest gradients
    known = (shown >= 0) & (routing.sum(dim=1) > 0)
    if not known.any():
        return routing.sum() * 0.0
    share = routing / routing.sum(dim=1, keepdim=True).clamp(min=1e-12)  # p(k | position)
    explicit = F.one_hot(shown.clamp(min=0), n_explicit).to(share.dtype) * known[..., None]  # [B, L, S]
    chosen = match_interests(share @ explicit, explicit.any(dim=1))  # [B, S]
    wanted = chosen.gather(1, shown.clamp(min=0))  # [B, L]
    likely = share.gather(1, wanted[:, None])[:, 0][known]
    return -likely.clamp(min=1e-24).log().mean()  # far below, 1 / routing is infinite


class ExplicitInterests(nn.Module):
    """The head: maps the words of interests into the behavioural space, and computes both auxiliary losses.

    Args:
        text_dim, embed_dim: D_text and D.
        centres: f32[C, D_text], clusters of all explicit interests, for `prediction="interest"`.
        prediction: `next_item`: the explicit interests predict the target as behavioural ones would; `interest`: the
            behavioural interests predict the vector and the cluster of the user's explicit ones; `next_interest`: the
            behavioural interests of every user predict the explicit interests that the target serves; or `none`.
        alignment: `infonce`, `cosine`, `mse` or `none`.
        matching: which behavioural interest belongs to an explicit one: `optimal`, `greedy`, or `soft`, the
            similarity-weighted mean of all.
        temperature: of the contrast and of the soft matching.
        frozen_items: semantic prediction trains the adapter alone, and leaves the item vectors to the recommendation
            loss (beyond the paper).
        served: the explicit interests that each item serves, for `prediction="next_interest"`.
    """

    centres: Tensor
    vocabulary: Tensor
    interest: Tensor
    share: Tensor

    def __init__(
        self,
        text_dim: int,
        embed_dim: int,
        centres: Float[Tensor, "C D_text"],
        prediction: Literal["next_item", "interest", "next_interest", "none"] = "next_item",
        alignment: Literal["infonce", "cosine", "mse", "none"] = "infonce",
        matching: Literal["optimal", "greedy", "soft"] = "optimal",
        temperature: float = 0.1,
        frozen_items: bool = False,
        served: ItemInterests | None = None,
    ) -> None:
        super().__init__()
        self.prediction, self.alignment, self.frozen_items = prediction, alignment, frozen_items
        self.matching: Literal["optimal", "greedy", "soft"] = matching
        self.temperature = temperature
        if prediction in ("next_item", "next_interest") or alignment != "none":
            hidden = 2 * embed_dim
            self.adapter = nn.Sequential(nn.Linear(text_dim, hidden), nn.GELU(), nn.Linear(hidden, embed_dim))
        if prediction == "interest":
            self.describe = nn.Linear(embed_dim, text_dim)
            self.register_buffer("centres", centres)
        if prediction == "next_interest":
            assert served is not None
            for name, value in (("vocabulary", served.vectors), ("interest", served.interest), ("share", served.share)):
                self.register_buffer(name, value, persistent=False)  # made again from the labels

    def forward(
        self,
        backbone: Backbone,
        interests: Interests,
        words: Float[Tensor, "B S D_text"],
        alignable: Bool[Tensor, "B S"],
        predictive: Bool[Tensor, "B S"],
        user: Int[Tensor, " B"],
        target: Int[Tensor, " B"],
        predict: Callable[[Items, Tensor, Tensor], Tensor],
        shown: Int[Tensor, "B L"] | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Unweighted losses by name: `semantic_prediction`, `modality_alignment` and `interest_assignment`, those
        that are on.

        Args:
            interests: the backbone's interests of the labelled samples.
            words: text vectors of the users' explicit interests.
            alignable, predictive: which of them this step may use for which task (see `Supervision`).
            predict: the recommendation loss of vectors [B, 1, D] and targets (`eimf.losses.RetrievalLoss.predict`), so
                that explicit interests predict items as behavioural ones do.
            shown: the explicit interest that each position of the history shows; None leaves out the assignment.
        """
        losses: dict[str, Tensor] = {}
        mapped = self.adapter(words) if hasattr(self, "adapter") else words  # [B, S, D]
        if self.prediction == "next_item":
            losses["semantic_prediction"] = self._predict_item(backbone, mapped, predictive, target, predict)
        elif self.prediction == "interest":
            losses["semantic_prediction"] = self._predict_interest(interests.vectors, words, alignable)
        if self.alignment != "none":
            losses["modality_alignment"] = self._align(interests.vectors, mapped, alignable, user)
        if shown is not None and interests.routing is not None:
            losses["interest_assignment"] = assign(interests.routing, shown, words.shape[1])
        return losses

    def predict_next_interest(
        self, backbone: Backbone, interests: Interests, target: Int[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """Semantic prediction as `next_interest`: which of all explicit interests does the next item serve?

        The behavioural interest nearest to the target has to score the explicit interests that the target serves above
        all others', as it has to score the target above all other items. It needs no label of the user.
        """
        user = read_out(interests.vectors, backbone.item_vectors(target))
        told = (user @ self.adapter(self.vocabulary).T).float().log_softmax(dim=1)  # [B, C]
        return -(self.share[target] * told.gather(1, self.interest[target])).sum(dim=1).mean()

    def _predict_item(
        self,
        backbone: Backbone,
        mapped: Tensor,
        allowed: Tensor,
        target: Tensor,
        predict: Callable[[Items, Tensor, Tensor], Tensor],
    ) -> Float[Tensor, ""]:
        usable = allowed.any(dim=1)
        if not usable.any():
            return mapped.sum() * 0.0
        mapped, allowed, target = mapped[usable], allowed[usable], target[usable]
        items = _FrozenItems(backbone) if self.frozen_items else backbone
        # A hard read-out among the allowed interests: those that are not are pushed out of its reach.
        scores = torch.einsum("bsd,bd->bs", mapped, items.item_vectors(target)).masked_fill(~allowed, -torch.inf)
        best = mapped[torch.arange(len(target), device=target.device), scores.argmax(dim=1)]
        return predict(items, best[:, None], target)

    def _predict_interest(self, vectors: Tensor, words: Tensor, present: Tensor) -> Float[Tensor, ""]:
        told, wanted = self._partners(self.describe(vectors), words, present)[present], words[present]  # [P, D_text]
        if len(told) == 0:
            return self.describe(vectors).sum() * 0.0
        regression = (1 - F.cosine_similarity(told, wanted, dim=-1)).mean()
        cluster = (wanted @ self.centres.T).argmax(dim=1)
        logits = F.normalize(told, dim=-1) @ F.normalize(self.centres, dim=-1).T / self.temperature
        return regression + F.cross_entropy(logits, cluster)

    def _align(self, vectors: Tensor, mapped: Tensor, present: Tensor, user: Tensor) -> Float[Tensor, ""]:
        partner = self._partners(vectors, mapped, present)[present]
        words, owner = mapped[present], user[:, None].expand_as(present)[present]
        if len(words) == 0:
            return mapped.sum() * 0.0
        if self.alignment == "infonce":
            return contrast(partner, words, owner, self.temperature)
        if self.alignment == "cosine":
            return (1 - F.cosine_similarity(partner, words, dim=-1)).mean()
        return F.mse_loss(partner, words)

    def _partners(self, vectors: Tensor, mapped: Tensor, present: Tensor) -> Float[Tensor, "B S D"]:
        """The behavioural interest that belongs to each explicit one."""
        similarity = F.normalize(vectors, dim=-1) @ F.normalize(mapped, dim=-1).transpose(1, 2)  # [B, K, S]
        if self.matching == "soft":
            weights = (similarity / self.temperature).softmax(dim=1)
            return weights.transpose(1, 2) @ vectors
        chosen = match_interests(similarity, present, self.matching)
        return vectors.gather(1, chosen[..., None].expand(-1, -1, vectors.shape[-1]))


class _FrozenItems:
    """A backbone's items as constants."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.n_items = backbone, backbone.n_items

    def item_vectors(self, items: Int[Tensor, "*N"] | None = None) -> Float[Tensor, "*N D"]:
        return self.backbone.item_vectors(items).detach()
