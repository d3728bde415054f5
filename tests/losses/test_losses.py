import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from eimf.backbones import Interests
from eimf.backbones.comirec_sa import ComiRecSA
from eimf.core.errors import ConfigError
from eimf.losses import GBCE, LOSSES, FullSoftmax, InBatchSoftmax, Loss, NegativeSampler, SampledLoss, SampledSoftmax
from eimf.losses.functions import (
    gbce,
    interest_hard_negatives,
    read_out,
    routing_regularisation,
    sampled_softmax,
)
from eimf.losses.kernels import _Sampled, full_softmax
from eimf.losses.sampled_softmax import SampledSoftmaxConfig

CPU = torch.device("cpu")


def make(name: str, **options: Any) -> Loss:
    """A loss of a catalogue of 20 items that are equally frequent, with 10 negatives if it samples any."""
    kind = LOSSES[name]
    sampled = {"n_negatives": 10} if issubclass(kind, SampledLoss) else {}
    loss = kind(**sampled, **options)
    loss.observe(torch.ones(21, dtype=torch.long))
    return loss


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(7, 5), torch.randn(31, 5), torch.randint(1, 31, (7,))


@pytest.mark.parametrize("max_bytes", [1, 31 * 4 * 100, 10**6])
def test_full_softmax_equals_cross_entropy_at_any_chunk_size(max_bytes: int) -> None:
    torch.manual_seed(0)
    user, items, target = torch.randn(150, 5), torch.randn(31, 5), torch.randint(1, 31, (150,))
    user.requires_grad_()
    items.requires_grad_()
    scores = user @ items.T
    scores = torch.cat([torch.full((150, 1), -torch.inf), scores[:, 1:]], dim=1)
    expected = F.cross_entropy(scores, target)
    expected_grads = torch.autograd.grad(3 * expected, (user, items))
    found = full_softmax(user, items, target, max_bytes)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(3 * found, (user, items)), expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_full_softmax_survives_large_scores(batch) -> None:
    user, items, target = batch
    user = (1e4 * user).requires_grad_()
    loss = full_softmax(user, items, target)
    loss.backward()
    assert loss.isfinite()
    assert user.grad is not None
    assert user.grad.isfinite().all()


def test_full_softmax_under_bf16_autocast_is_close(batch) -> None:
    user, items, target = batch
    exact = full_softmax(user, items, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = full_softmax(user.requires_grad_(), items.requires_grad_(), target)
    low.backward()
    torch.testing.assert_close(low, exact, rtol=0.02, atol=0.02)
    assert user.grad is not None
    assert user.grad.dtype == torch.float32


def test_full_softmax_gives_no_gradient_to_padding(batch) -> None:
    user, items, target = batch
    items.requires_grad_()
    full_softmax(user, items, target).backward()
    assert items.grad is not None
    assert (items.grad[0] == 0).all()


def test_sampled_softmax_with_every_item_once_is_the_full_softmax(batch) -> None:
    user, items, target = batch
    everything = torch.arange(1, 31)
    positive, negative = (user * items[target]).sum(-1), user @ items[everything].T
    found = sampled_softmax(positive, negative, everything == target[:, None])
    torch.testing.assert_close(found, full_softmax(user, items, target))


def test_log_q_removes_the_samplers_bias() -> None:
    """With many samples from any distribution, the corrected loss nears the full softmax up to a constant."""
    torch.manual_seed(0)
    counts = torch.tensor([0, 100, 50, 20, 5, 1, 1, 1, 1])
    user, items, target = torch.randn(4, 3), torch.randn(9, 3), torch.tensor([1, 3, 5, 8])
    sampler = NegativeSampler("frequency")
    sampler.observe(counts)
    sampled, log_q = sampler.sample(400_000, 8, CPU), sampler.log_probabilities(8, CPU)
    assert log_q is not None
    log_mean = torch.logsumexp(user @ items[sampled].T - log_q[sampled], dim=1) - math.log(len(sampled))
    torch.testing.assert_close(log_mean, torch.logsumexp(user @ items[1:].T, dim=1), atol=0.02, rtol=0.02)
    assert target.shape == (4,)


@pytest.mark.parametrize("kind", ["uniform", "log_uniform", "frequency"])
def test_samplers_draw_what_they_say_and_never_padding(kind) -> None:
    torch.manual_seed(0)
    sampler = NegativeSampler(kind)
    sampler.observe(torch.tensor([99, 40, 20, 10, 5, 0]))
    sampled, log_q = sampler.sample(200_000, 5, CPU), sampler.log_probabilities(5, CPU)
    if kind == "uniform":  # a constant cancels
        assert log_q is None
        log_q = torch.full((6,), -math.log(5))
    assert log_q is not None
    assert sampled.min() >= 1
    assert sampled.max() <= 5
    share = torch.bincount(sampled, minlength=6)[1:] / len(sampled)
    torch.testing.assert_close(share, log_q[1:].exp(), atol=5e-3, rtol=0.05)
    assert log_q[1:].exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("loss", [InBatchSoftmax(), SampledSoftmax(sampler="frequency"), GBCE(sampler="frequency")])
def test_a_loss_that_needs_frequencies_asks_for_them(loss: Loss) -> None:
    backbone = ComiRecSA(20, 5, embed_dim=8)
    vectors, target = torch.randn(3, 1, 8), torch.tensor([1, 2, 3])
    with pytest.raises(ConfigError, match=r"needs the frequencies of items; .* or call loss.observe\(item_counts\)"):
        loss.predict(backbone, vectors, target)
    loss.observe(torch.arange(21))
    assert loss.predict(backbone, vectors, target).isfinite()


def test_without_the_correction_the_in_batch_softmax_needs_no_frequencies() -> None:
    torch.manual_seed(0)
    backbone = ComiRecSA(20, 5, embed_dim=8)
    vectors, target = torch.randn(3, 1, 8), torch.tensor([1, 2, 3])
    items = backbone.item_vectors(target)
    found = InBatchSoftmax(log_q=False).predict(backbone, vectors, target)
    torch.testing.assert_close(found, F.cross_entropy(vectors[:, 0] @ items.T, torch.arange(3)))
    uneven = InBatchSoftmax()
    uneven.observe(torch.tensor([0, 9, 4, 0, *[1] * 17]))
    log_q = (torch.tensor([10.0, 5.0, 1.0]) / (30 + 20)).log()
    corrected = F.cross_entropy(vectors[:, 0] @ items.T - log_q, torch.arange(3))
    torch.testing.assert_close(uneven.predict(backbone, vectors, target), corrected)


def test_a_loss_takes_its_options_whole_or_as_arguments() -> None:
    whole, plain = SampledSoftmax(SampledSoftmaxConfig(n_negatives=7)), SampledSoftmax(n_negatives=7)
    assert whole.config == plain.config
    with pytest.raises(ConfigError, match="n_negatives: must be at least 1, is 0"):
        SampledSoftmax(n_negatives=0)
    with pytest.raises(ConfigError, match="n_negatives: no such option"):
        FullSoftmax(n_negatives=7)


@pytest.mark.parametrize("name", ["sampled_softmax", "in_batch", "ihn"])
@pytest.mark.parametrize("power", [float("inf"), 2.0])
def test_the_size_of_chunks_changes_no_loss(name: str, power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = ComiRecSA(20, 5, embed_dim=8)
    vectors, target = torch.randn(150, 3, 8), torch.randint(1, 21, (150,))
    loss, found = make(name, readout_power=power), []
    for size in (1, 10**6):
        monkeypatch.setattr("eimf.losses.kernels.CHUNK_BYTES", size)
        torch.manual_seed(0)
        found.append(loss.predict(backbone, vectors, target))
    torch.testing.assert_close(*found)


def test_ihn_with_beta_zero_is_sampled_softmax() -> None:
    torch.manual_seed(0)
    positive, negative, none = torch.randn(3), torch.randn(3, 6), torch.zeros(3, 6, dtype=torch.bool)
    torch.testing.assert_close(
        interest_hard_negatives(positive, negative, none, 0.0), sampled_softmax(positive, negative, none)
    )


def test_ihn_equals_the_published_formula_and_does_not_overflow() -> None:
    torch.manual_seed(0)
    positive, negative, none = torch.randn(3), torch.randn(3, 6), torch.zeros(3, 6, dtype=torch.bool)
    importance = (2.0 * negative).exp()
    mass = (importance * negative.exp()).sum(1) / importance.mean(1)
    expected = -(positive.exp() / (positive.exp() + mass)).log().mean()
    torch.testing.assert_close(interest_hard_negatives(positive, negative, none, 2.0), expected)
    assert interest_hard_negatives(positive, 1000 * negative, none, 10.0).isfinite()


@pytest.mark.parametrize("loss", [sampled_softmax, lambda p, n, h: interest_hard_negatives(p, n, h, 1.0)])
def test_accidental_hits_do_not_count(loss) -> None:
    torch.manual_seed(0)
    positive, negative = torch.randn(2), torch.randn(2, 4)
    hits = torch.tensor([[True, False, False, False], [True, False, False, False]])
    none = torch.zeros(2, 3, dtype=torch.bool)
    torch.testing.assert_close(loss(positive, negative, hits), loss(positive, negative[:, 1:], none))
    every = torch.ones(2, 4, dtype=torch.bool)
    assert loss(positive, negative, every).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("beta", [None, 0.0, 2.0])
@pytest.mark.parametrize("log_q", [None, torch.linspace(-3, 1, 12)])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_losses_of_a_step_equal_the_plain_ones_at_any_chunk_size(beta, log_q, rows: int) -> None:
    torch.manual_seed(0)
    user, truth, negative = (torch.randn(count, 5, requires_grad=True) for count in (7, 7, 9))
    target, negatives = torch.randint(1, 12, (7,)), torch.randint(1, 12, (9,))
    negatives[:2] = target[0]
    positive, scores, hits = (user * truth).sum(-1), user @ negative.T, negatives == target[:, None]
    q_positive, q_negative = (log_q[target], log_q[negatives]) if log_q is not None else (None, None)
    if beta is None:
        expected = sampled_softmax(positive, scores, hits, q_positive, q_negative)
    else:
        expected = interest_hard_negatives(positive, scores, hits, beta, q_negative)
    expected_grads = torch.autograd.grad(3 * expected, (user, truth, negative))
    found = _Sampled.apply(user, truth, negative, None, target, negatives, log_q, beta, rows)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(3 * found, (user, truth, negative)), expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beta", [None, 2.0])
def test_a_row_whose_negatives_are_all_hits_has_no_loss(beta) -> None:
    user, same = torch.randn(3, 5, requires_grad=True), torch.full((4,), 2)
    loss = _Sampled.apply(user, torch.randn(3, 5), torch.randn(4, 5), None, same[:3], same, None, beta, 2)
    assert isinstance(loss, torch.Tensor)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(loss, user)[0].abs().max().item() == 0


@pytest.mark.parametrize("beta", [None, 2.0])
@pytest.mark.parametrize("rows", [2, 100])
def test_rivals_score_the_sampled_items_by_the_best_of_them(beta, rows: int) -> None:
    torch.manual_seed(0)
    user, truth, negative = (torch.randn(count, 5, requires_grad=True) for count in (7, 7, 9))
    rivals = torch.randn(7, 3, 5, requires_grad=True)
    target, negatives = torch.randint(1, 12, (7,)), torch.randint(1, 12, (9,))
    scores = torch.einsum("bkd,nd->bkn", rivals, negative).amax(dim=1)
    positive, hits = (user * truth).sum(-1), negatives == target[:, None]
    if beta is None:
        expected = sampled_softmax(positive, scores, hits)
    else:
        expected = interest_hard_negatives(positive, scores, hits, beta)
    inputs = (user, truth, negative, rivals)
    found = _Sampled.apply(user, truth, negative, rivals, target, negatives, None, beta, rows)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * expected, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", list(LOSSES))
def test_competing_interests_lower_the_probability_of_the_target(name: str) -> None:
    """An item that another interest scores high counts against the target, as it does in the merged list."""
    backbone = ComiRecSA(20, 5, embed_dim=8)
    vectors, target = torch.randn(30, 3, 8), torch.randint(1, 21, (30,))
    found = {}
    for compete in ("own", "best"):
        torch.manual_seed(0)
        found[compete] = make(name, compete=compete).predict(backbone, 20 * vectors, target)
    assert found["best"] > found["own"]
    single = {}
    for compete in ("own", "best"):
        torch.manual_seed(0)
        single[compete] = make(name, compete=compete).predict(backbone, vectors[:, :1], target)
    assert single["best"] == single["own"]


def test_full_softmax_over_the_best_interest_of_each_item() -> None:
    backbone = ComiRecSA(20, 5, embed_dim=8)
    vectors, target = torch.randn(30, 3, 8), torch.randint(1, 21, (30,))
    scores = torch.einsum("bkd,nd->bkn", vectors, backbone.item_vectors()[1:]).amax(dim=1)
    found = FullSoftmax(compete="best").predict(backbone, vectors, target)
    torch.testing.assert_close(found, F.cross_entropy(scores, target - 1))


def test_gbce_with_t_zero_is_bce() -> None:
    torch.manual_seed(0)
    positive, negative, none = torch.randn(3), torch.randn(3, 4), torch.zeros(3, 4, dtype=torch.bool)
    logits, labels = torch.cat([positive[:, None], negative], 1), torch.tensor([[1.0, 0, 0, 0, 0]]).expand(3, -1)
    torch.testing.assert_close(
        gbce(positive, negative, none, n_items=100, t=0.0), F.binary_cross_entropy_with_logits(logits, labels)
    )
    calibrated = gbce(positive, negative, none, n_items=100, t=1.0)
    alpha = 4 / 99  # fully calibrated: beta = alpha
    expected = ((alpha * F.softplus(-positive) + F.softplus(negative).sum(1)) / 5).mean()
    torch.testing.assert_close(calibrated, expected)


def test_read_out() -> None:
    interests = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    target = torch.tensor([[0.2, 1.0]])
    assert torch.equal(read_out(interests, target), torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(read_out(interests, target, 0.0), torch.tensor([[0.5, 0.5]]))
    weights = torch.tensor([0.2, 1.0]).softmax(0)
    torch.testing.assert_close(read_out(interests, target, 1.0), weights[None])
    assert read_out(interests, -target, 3.0).isfinite().all()


def test_routing_regularisation_ignores_padding_and_is_zero_when_even() -> None:
    item = torch.tensor([[False, False, True, True]])
    even = torch.tensor([[[0.0, 0.0, 0.5, 0.5]]])
    assert routing_regularisation(even, item).item() == 0
    sharp = torch.tensor([[[0.0, 0.0, 1.0, 0.0]]])
    assert routing_regularisation(sharp, item).item() == pytest.approx(0.25)  # (2 * 0.5^2)^2
    twice = torch.cat([sharp, sharp])
    assert routing_regularisation(twice, item.expand(2, -1)).item() == pytest.approx(0.25)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("power", [float("inf"), 2.0])
def test_every_loss_trains_interests_and_items(name, power: float) -> None:
    torch.manual_seed(0)
    backbone = ComiRecSA(20, 5, embed_dim=8)
    loss = make(name, readout_power=power, routing_weight=1.0)
    history = torch.randint(0, 21, (6, 5))
    terms = loss(backbone, backbone(history), history, torch.randint(1, 21, (6,)))
    assert set(terms) == {name, "routing"}
    sum(terms.values(), start=torch.zeros(())).backward()
    for param in backbone.parameters():
        assert param.grad is not None
        assert param.grad.isfinite().all()
    assert backbone.item_embedding.weight.grad is not None
    assert (backbone.item_embedding.weight.grad[0] == 0).all()


def test_temperature_divides_the_scores() -> None:
    torch.manual_seed(0)
    backbone = ComiRecSA(20, 5, embed_dim=8)
    vectors, target = torch.randn(3, 1, 8), torch.tensor([1, 2, 3])
    warm, plain = FullSoftmax(temperature=0.5), FullSoftmax()
    torch.testing.assert_close(
        warm(backbone, Interests(vectors), None, target)["full_softmax"],
        plain(backbone, Interests(2 * vectors), None, target)["full_softmax"],
    )
