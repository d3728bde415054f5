import pytest
import torch

from eimf.backbones import BACKBONES
from eimf.backbones.base import CausalBackbone, route, squash
from eimf.backbones.dropout import Dropout
from eimf.backbones.mind import MIND
from tests.contracts import BackboneContract

for _name in BACKBONES:  # one contract class for each backbone, new ones included
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (BackboneContract,), {"name": _name})


@pytest.mark.parametrize("name", [name for name, cls in BACKBONES.items() if cls.causal])
def test_states_do_not_see_the_future(name: str) -> None:
    contract = BackboneContract()
    contract.name = name
    backbone, history = contract.build(), contract.histories()
    assert isinstance(backbone, CausalBackbone)
    changed = history.clone()
    changed[:, -1] = changed[:, -1] % 40 + 1
    known = history[:, :-1] > 0
    before, after = backbone.states(history)[:, :-1], backbone.states(changed)[:, :-1]
    torch.testing.assert_close(before[known], after[known])
    assert not torch.allclose(backbone.states(history)[:, -1], backbone.states(changed)[:, -1])


def test_squash_keeps_direction_and_bounds_length() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    out = squash(vectors)
    torch.testing.assert_close(out[0], torch.tensor([0.6, 0.8]) * 25 / 26)
    assert (out[1] == 0).all()


def test_routing_is_shared_out_among_interests_and_masked_afterwards() -> None:
    torch.manual_seed(0)
    votes, mask = torch.randn(2, 3, 5, 4), torch.ones(2, 1, 5)
    mask[0, 0, :2] = 0
    weights = route(votes, torch.zeros(2, 3, 5), mask, 3).routing
    assert weights is not None
    torch.testing.assert_close(weights.sum(dim=1), mask[:, 0])  # a position's shares sum to 1, padding has none


def test_routing_by_hand() -> None:
    """One position, two interests, two iterations, against the algorithm written out."""
    votes = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])
    first = squash(0.5 * votes[0, :, 0])
    logits = (votes[0, :, 0] * first).sum(-1)
    expected = squash(logits.softmax(0)[:, None] * votes[0, :, 0])
    found = route(votes, torch.zeros(1, 2, 1), torch.ones(1, 1, 1), 2).vectors[0]
    torch.testing.assert_close(found, expected)


def test_interests_have_no_gradient_by_way_of_the_routing() -> None:
    """As in the authors' code; the weights themselves have one, for losses that want it."""
    torch.manual_seed(0)
    votes, logits, mask = torch.randn(2, 3, 5, 4, requires_grad=True), torch.zeros(2, 3, 5), torch.ones(2, 1, 5)
    vectors, weights = route(votes, logits, mask, 3)
    assert weights is not None
    last_sum = squash(torch.einsum("bkl,bkld->bkd", weights.detach(), votes))

    def gradient(of: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(of.square().sum(), votes, retain_graph=True)[0]

    torch.testing.assert_close(gradient(vectors), gradient(last_sum))
    assert gradient(weights).any()


def test_shared_votes_route_as_repeated_ones() -> None:
    torch.manual_seed(0)
    votes, logits, mask = torch.randn(2, 5, 4), torch.randn(2, 3, 5), torch.ones(2, 1, 5)
    shared, repeated = route(votes, logits, mask, 3), route(votes[:, None].expand(-1, 3, -1, -1), logits, mask, 3)
    torch.testing.assert_close(shared.vectors, repeated.vectors)
    torch.testing.assert_close(shared.routing, repeated.routing)


def test_mind_logits_are_a_saved_constant() -> None:
    first, second = MIND(10, 5, routing_seed=3), MIND(10, 5, routing_seed=3)
    assert torch.equal(first.logits, second.logits)
    assert "logits" in first.state_dict()


def test_adding_a_backbone_needs_a_yaml() -> None:
    from eimf.config.load import find_experiment

    assert all(find_experiment(f"backbones/{name}.yaml") for name in BACKBONES)


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    layer, x = Dropout(rate), torch.ones(401, 499, requires_grad=True)  # not a multiple of four
    out = layer(x)
    kept = out != 0
    assert kept.float().mean().item() == pytest.approx(1 - rate, abs=0.005)
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / (1 - rate)), rtol=2e-4, atol=0)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, out.detach())
    # Neighbours share a random word; they must not share their fate.
    both = (kept[:, :-1] & kept[:, 1:]).float().mean().item()
    assert both == pytest.approx((1 - rate) ** 2, abs=0.01)
    layer.eval()
    assert layer(x) is x
