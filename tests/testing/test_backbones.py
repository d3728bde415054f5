"""The contract of backbones finds what breaks it: one broken backbone for each of its tests."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eimf.backbones import Backbone, Interests
from eimf.testing import BackboneContract


class Mean(Backbone):
    """A correct one: the mean of the history's items."""

    def extract(self, history: Tensor) -> Interests:
        known = (history != 0).unsqueeze(-1)
        total = (self.item_embedding(history) * known).sum(dim=1, keepdim=True)
        return Interests(total / known.sum(dim=1, keepdim=True).clamp(min=1))


class CountsPadding(Mean):
    def extract(self, history: Tensor) -> Interests:
        return Interests(self.item_embedding(history).sum(dim=1, keepdim=True) / history.shape[1])


class MixesUsers(Mean):
    def extract(self, history: Tensor) -> Interests:
        found = super().extract(history).vectors
        return Interests(found - found.mean(dim=0))


class DividesByNothing(Mean):
    def extract(self, history: Tensor) -> Interests:
        known = (history != 0).unsqueeze(-1)
        return Interests(self.item_embedding(history).sum(dim=1, keepdim=True) / known.sum(dim=1, keepdim=True))


class Noisy(Mean):
    def extract(self, history: Tensor) -> Interests:
        found = super().extract(history).vectors
        return Interests(found + 1e-3 * torch.rand(found.shape, generator=GENERATOR))


class LearnsNothing(Mean):
    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # pyright: ignore[reportArgumentType]
        self.unused = nn.Parameter(torch.zeros(3))


class RoutesOutsideGradient(Mean):
    routes = True

    def extract(self, history: Tensor) -> Interests:
        share = (history != 0).float()[:, None]
        return Interests(super().extract(history).vectors, share.requires_grad_())


class Forgets(Mean):
    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # pyright: ignore[reportArgumentType]
        self.scale = torch.rand(()).item() + self.config.init_std  # not in the state

    def extract(self, history: Tensor) -> Interests:
        return Interests(self.scale * super().extract(history).vectors)


GENERATOR = torch.Generator()

BROKEN = {
    CountsPadding: "test_padding_changes_nothing",
    MixesUsers: "test_users_do_not_mix",
    DividesByNothing: "test_history_of_padding_alone_is_finite",
    Noisy: "test_evaluation_is_deterministic",
    LearnsNothing: "test_learns",
    RoutesOutsideGradient: "test_a_loss_of_the_routing_reaches_the_parameters",
    Forgets: "test_state_survives_saving",
}
TESTS = [name for name in dir(BackboneContract) if name.startswith("test_")]


def run(backbone: type[Backbone], test: str, folder: Path) -> None:
    contract = type("Contract", (BackboneContract,), {"backbone": backbone})()
    method = getattr(contract, test)
    method(folder) if test == "test_state_survives_saving" else method()


@pytest.mark.parametrize("test", TESTS)
def test_a_correct_backbone_passes(test: str, tmp_path: Path) -> None:
    run(Mean, test, tmp_path)


@pytest.mark.parametrize(("backbone", "test"), list(BROKEN.items()))
def test_a_broken_backbone_fails(backbone: type[Backbone], test: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run(backbone, test, tmp_path)
