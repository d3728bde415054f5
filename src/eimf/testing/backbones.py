"""What every backbone must keep, whoever wrote it."""

from pathlib import Path
from typing import Any, ClassVar

import torch

from eimf.backbones import Backbone
from eimf.backbones.dropout import Dropout
from eimf.losses import FullSoftmax

N_ITEMS, MAX_LEN = 40, 8


class BackboneContract:
    """Tests of a backbone. Subclass it with your class, and pytest runs them:

    ```python
    from eimf.testing import BackboneContract
    from mypackage import MyBackbone

    class TestMyBackbone(BackboneContract):
        backbone = MyBackbone
    ```
    """

    backbone: ClassVar[type[Backbone]]
    """The class under test."""

    def build(self, **changes: Any) -> Backbone:
        """The backbone under test, small and seeded, in evaluation mode."""
        torch.manual_seed(0)
        options: dict[str, Any] = ({"embed_dim": 16} if self.backbone.trainable else {}) | changes
        backbone = self.backbone(N_ITEMS, MAX_LEN, **options)
        backbone.observe(torch.arange(N_ITEMS + 1))
        return backbone.eval()

    def histories(self) -> torch.Tensor:
        """Histories of 7 down to 2 items, left-padded with 0."""
        generator = torch.Generator().manual_seed(1)
        history = torch.randint(1, N_ITEMS + 1, (6, MAX_LEN), generator=generator)
        for row in range(6):
            history[row, : row + 1] = 0
        return history

    def test_shapes(self) -> None:
        backbone = self.build()
        found = backbone(self.histories())
        count = found.vectors.shape[1]
        assert count == getattr(backbone.config, "n_interests", count)
        size = backbone.item_vectors().shape[1] or N_ITEMS + 1  # without item vectors: scores of all items
        assert found.vectors.shape == (6, count, size)
        assert backbone.item_vectors().shape[0] == N_ITEMS + 1
        if backbone.routes:
            assert found.routing is not None
            assert found.routing.shape == (6, count, MAX_LEN)
            assert (found.routing[self.histories()[:, None].expand_as(found.routing) == 0] == 0).all()
            shares = found.item_shares()
            assert shares is not None
            assert torch.allclose(shares.sum(dim=1), (self.histories() != 0).to(shares.dtype), atol=1e-5)

    def test_a_loss_of_the_routing_reaches_the_parameters(self) -> None:
        backbone = self.build()
        if not backbone.routes:
            return
        routing = backbone(self.histories()).routing
        assert routing is not None
        (routing * torch.rand_like(routing)).sum().backward()
        grads = [param.grad for name, param in backbone.named_parameters() if name != "item_embedding.weight"]
        assert any(grad is not None and (grad != 0).any() for grad in grads)

    def test_padding_changes_nothing(self) -> None:
        backbone, history = self.build(), self.histories()
        for row, keep in ((0, 7), (3, 5), (5, 3)):
            short = history[row : row + 1, -keep:]
            torch.testing.assert_close(
                backbone(short).vectors, backbone(history[row : row + 1]).vectors, rtol=1e-5, atol=1e-6
            )

    def test_users_do_not_mix(self) -> None:
        backbone, history = self.build(), self.histories()
        together = backbone(history).vectors
        for row in range(len(history)):
            alone = backbone(history[row : row + 1]).vectors
            torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)

    def test_history_of_padding_alone_is_finite(self) -> None:
        assert self.build()(torch.zeros(2, MAX_LEN, dtype=torch.long)).vectors.isfinite().all()

    def test_longer_history_uses_the_most_recent_items(self) -> None:
        backbone = self.build()
        history = torch.arange(1, MAX_LEN + 4)[None]
        assert torch.equal(backbone(history).vectors, backbone(history[:, -MAX_LEN:]).vectors)

    def test_evaluation_is_deterministic(self) -> None:
        assert torch.equal(self.build()(self.histories()).vectors, self.build()(self.histories()).vectors)

    def test_normalised(self) -> None:
        backbone = self.build(normalize=True)
        if not backbone.trainable:
            return
        assert torch.allclose(backbone.item_vectors()[1:].norm(dim=-1), torch.ones(N_ITEMS), atol=1e-5)
        lengths = backbone(self.histories()).vectors.norm(dim=-1)
        assert ((lengths - 1).abs() < 1e-5).logical_or(lengths == 0).all()

    def test_learns(self) -> None:
        """Every parameter gets a gradient, and a few steps fit a handful of samples."""
        backbone = self.build().train()
        if not backbone.trainable:
            return
        for module in backbone.modules():
            if isinstance(module, Dropout):
                module.rate = 0.0
        loss = FullSoftmax()
        target = torch.arange(1, 7)
        optimizer = torch.optim.Adam(backbone.parameters(), lr=0.03)
        first = last = 0.0
        touched = {name: False for name, _ in backbone.named_parameters()}
        for step in range(60):
            optimizer.zero_grad()
            history = self.histories()
            value = sum(loss(backbone, backbone(history), history, target).values(), start=torch.zeros(()))
            value.backward()
            for name, param in backbone.named_parameters():
                touched[name] |= param.grad is not None and bool((param.grad != 0).any())
            optimizer.step()
            first, last = (value.item() if step == 0 else first), value.item()
        assert all(touched.values()), [name for name, done in touched.items() if not done]
        assert last < 0.5 * first

    def test_state_survives_saving(self, tmp_path: Path) -> None:
        backbone = self.build()
        torch.save(backbone.state_dict(), tmp_path / "state.pt")
        again = self.build(init_std=0.5)
        again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert torch.equal(again(self.histories()).vectors, backbone(self.histories()).vectors)
