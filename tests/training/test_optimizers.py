from typing import Literal

import torch
from torch import nn

from eimf.training.optimizers import RowWiseAdagrad, build_optimizer


def test_rows_that_a_batch_does_not_touch_stay() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(6, 3, sparse=True)
    before = table.weight.detach().clone()
    optimizer = RowWiseAdagrad(table.parameters(), lr=0.1)
    table(torch.tensor([1, 4, 4])).square().sum().backward()
    optimizer.step()
    moved = (table.weight != before).any(dim=1)
    assert moved.tolist() == [False, True, False, False, True, False]
    assert optimizer.state[table.weight]["sum"].shape == (6,)


def test_row_step_by_hand() -> None:
    table = nn.Embedding.from_pretrained(torch.tensor([[3.0, 4.0]]), freeze=False, sparse=True)
    optimizer = RowWiseAdagrad(table.parameters(), lr=0.1, eps=0.0)
    table(torch.tensor([0])).square().sum().backward()  # gradient (6, 8), mean square 50
    optimizer.step()
    expected = torch.tensor([[3.0, 4.0]]) - 0.1 * torch.tensor([[6.0, 8.0]]) / 50**0.5
    torch.testing.assert_close(table.weight.detach(), expected)


def test_dense_part_is_adam() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    steps = RowWiseAdagrad(ours.parameters(), lr=0.01), torch.optim.Adam(theirs.parameters(), lr=0.01)
    for seed in range(5):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        for layer, optimizer in zip((ours, theirs), steps, strict=True):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_embeddings_with_sparse_gradients_have_a_rate_of_their_own() -> None:
    table, plain = nn.Embedding(6, 3, sparse=True), nn.Embedding(4, 3)
    model = nn.ModuleDict({"table": table, "plain": plain, "out": nn.Linear(3, 2)})
    made = build_optimizer(model, "rowwise", lr=0.1, item_lr=0.2, weight_decay=0.0, fused=False)
    rate = {id(param): group["lr"] for group in made.param_groups for param in group["params"]}
    assert {name: rate[id(param)] for name, param in model.named_parameters()} == {
        "table.weight": 0.2,
        "plain.weight": 0.1,
        "out.weight": 0.1,
        "out.bias": 0.1,
    }


def test_every_group_steps_with_its_rate() -> None:
    table = nn.Embedding.from_pretrained(torch.tensor([[3.0, 4.0]]), freeze=False, sparse=True)
    out = nn.Linear(2, 1, bias=False)
    model = nn.ModuleDict({"table": table, "out": out})
    made = build_optimizer(model, "rowwise", lr=0.01, item_lr=0.2, weight_decay=0.0, fused=False)
    before = out.weight.detach().clone()
    (table(torch.tensor([0])).square().sum() + out.weight.sum()).backward()
    made.step()
    moved = 0.2 * torch.tensor([[6.0, 8.0]]) / 50**0.5
    torch.testing.assert_close(table.weight.detach(), torch.tensor([[3.0, 4.0]]) - moved)
    torch.testing.assert_close(out.weight.detach(), before - 0.01)  # Adam's first step is its rate


def test_names() -> None:
    layer = nn.Linear(2, 2)
    options = {"lr": 0.1, "item_lr": 0.2, "weight_decay": 0.3, "fused": True}
    kinds: dict[Literal["adam", "adamw", "rowwise"], type] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "rowwise": RowWiseAdagrad,
    }
    for name, kind in kinds.items():
        assert type(build_optimizer(layer, name, **options)) is kind
