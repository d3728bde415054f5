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
    steps = RowWiseAdagrad(ours.parameters(), dense_lr=0.01), torch.optim.Adam(theirs.parameters(), lr=0.01)
    for seed in range(5):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        for layer, optimizer in zip((ours, theirs), steps, strict=True):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_names() -> None:
    layer = nn.Linear(2, 2)
    options = {"lr": 0.1, "item_lr": 0.2, "weight_decay": 0.3, "fused": True}
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rowwise": RowWiseAdagrad}
    for name, kind in kinds.items():
        assert type(build_optimizer(layer, name, **options)) is kind
