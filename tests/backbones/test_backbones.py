import pytest
import torch

from eimf.backbones import BACKBONES, Backbone, Interests
from eimf.backbones.base import CausalBackbone, route, squash
from eimf.backbones.dropout import Dropout
from eimf.backbones.mind import MIND, MINDConfig
from eimf.core.errors import ConfigError
from eimf.testing import BackboneContract

for _name in BACKBONES:  # one contract class for each backbone, new ones included
    globals()[f"Test_{_name}"] = type(f"Test_{_name}", (BackboneContract,), {"backbone": BACKBONES[_name]})


@pytest.mark.parametrize("name", [name for name, cls in BACKBONES.items() if cls.causal])
def test_states_do_not_see_the_future(name: str) -> None:
    class Contract(BackboneContract):
        backbone = BACKBONES[name]

    contract = Contract()
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
    vectors, weights, _ = route(votes, logits, mask, 3)
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
    torch.manual_seed(1)
    first = MIND(10, 5)
    torch.manual_seed(2)
    second = MIND(10, 5)
    assert torch.equal(first.logits, second.logits)
    assert not torch.equal(first.bilinear.weight, second.bilinear.weight)
    assert "logits" in first.state_dict()


def test_a_backbone_takes_its_options_whole_or_as_arguments() -> None:
    whole, plain = MIND(10, 5, MINDConfig(n_interests=3)), MIND(10, 5, n_interests=3)
    assert whole.config == plain.config
    assert MIND(10).max_len == 20
    with pytest.raises(ConfigError, match="n_interest: no such option .did you mean 'n_interests'"):
        MIND(10, 5, n_interest=3)
    with pytest.raises(ConfigError, match="n_interests: must be at least 1, is 0"):
        MIND(10, 5, n_interests=0)
    with pytest.raises(ConfigError, match="not both"):
        MIND(10, 5, MINDConfig(), n_interests=3)


def test_a_backbone_of_another_package_is_named_by_its_import_path() -> None:
    assert BACKBONES["eimf.backbones.mind:MIND"] is MIND
    assert "eimf.backbones.mind:MIND" not in list(BACKBONES)
    with pytest.raises(ConfigError, match=r"backbone.name: 'mindd' is unknown .did you mean 'mind'"):
        BACKBONES["mindd"]
    with pytest.raises(ConfigError, match=r"backbone.name: 'no.module:Name' cannot be imported"):
        BACKBONES["no.module:Name"]


def test_wrong_shapes_are_told() -> None:
    class Flat(Backbone):
        def extract(self, history: torch.Tensor) -> Interests:
            return Interests(self.item_embedding(history).mean(dim=1))

    class Unrouted(Backbone):
        routes = True

        def extract(self, history: torch.Tensor) -> Interests:
            return Interests(self.item_embedding(history[:, -1:]))

    history = torch.tensor([[1, 2]])
    with pytest.raises(
        ConfigError, match=r"Flat.extract: .* must have the shape \[B, K, D\] = \[1, K, 8\], have \[1, 8\]"
    ):
        Flat(10, embed_dim=8)(history)
    with pytest.raises(ConfigError, match=r"Unrouted.extract: .* \[B, K, L\] = \[1, 1, 2\], returns nothing"):
        Unrouted(10, embed_dim=8)(history)


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
