import torch

from eimf.config.components import METRICS
from eimf.data.batch import Ragged
from eimf.evaluation.metrics import (
    Exposure,
    RankingMetric,
    category_diversity,
    find_hits,
    gini,
    interest_cosine,
    interests_used,
    ndcg,
    ndcg_comirec,
)


def test_repeated_targets_count_once_and_padding_is_no_hit() -> None:
    hits, count = find_hits(torch.tensor([[5, 0, 7], [0, 0, 0]]), Ragged.of([[7, 7, 3], [1]]))
    assert hits.tolist() == [[False, False, True], [False, False, False]]
    assert count.tolist() == [2, 1]


def test_ndcg_variants_differ_where_targets_were_missed() -> None:
    hits, count = torch.tensor([[False, True]]), torch.tensor([5])
    gain = 1 / torch.log2(torch.tensor(3.0, dtype=torch.float64))
    torch.testing.assert_close(ndcg(hits, count, 2), (gain / (1 + gain))[None])
    torch.testing.assert_close(ndcg_comirec(hits, count, 2), gain[None])


def test_averages_do_not_depend_on_the_batching() -> None:
    torch.manual_seed(0)
    hits, count = torch.rand(10, 20) < 0.2, torch.randint(1, 5, (10,)).clamp(min=1)
    count = torch.maximum(count, hits.sum(1))
    for name in METRICS:
        whole, parts = RankingMetric(name, 10), RankingMetric(name, 10)
        whole.update(hits, count)
        for start in range(0, 10, 3):
            parts.update(hits[start : start + 3], count[start : start + 3])
        torch.testing.assert_close(whole.compute(), parts.compute())
        torch.testing.assert_close(whole.compute(), METRICS[name](hits, count, 10).mean())


def test_exposure() -> None:
    metric = Exposure(3, 2, torch.tensor([0, 7, 0, 0]))
    metric.update(torch.tensor([[1, 2, 3], [1, 3, 2]]))
    found = {key: value.item() for key, value in metric.compute().items()}
    assert found["coverage@2"] == 1.0
    # item 1 has share (7 + 1) / (7 + 3), the others 1 / 10
    expected = (2 * -torch.log2(torch.tensor(0.8)) + 2 * -torch.log2(torch.tensor(0.1))) / 4
    assert abs(found["novelty@2"] - expected.item()) < 1e-6
    assert 0 < found["gini@2"] < 1


def test_gini_extremes() -> None:
    assert gini(torch.ones(10)).item() == 0
    one = torch.zeros(100)
    one[3] = 5
    assert abs(gini(one).item() - 0.99) < 1e-9


def test_interest_metrics() -> None:
    same = torch.ones(1, 3, 2)
    torch.testing.assert_close(interest_cosine(same), torch.ones(1, dtype=torch.float64))
    cross = torch.eye(2)[None]
    torch.testing.assert_close(interest_cosine(cross), torch.zeros(1, dtype=torch.float64))
    listed = torch.tensor([[True, True, True, False]])
    used = interests_used(torch.tensor([[1, 1, 1, 0]]), listed, 3)
    torch.testing.assert_close(used, torch.ones(1, dtype=torch.float64))


def test_diversity_ignores_the_end_of_short_lists() -> None:
    listed = torch.tensor([[True, True, False]])
    assert category_diversity(torch.tensor([[1, 1, 9]]), listed).item() == 0
    assert category_diversity(torch.tensor([[1, 2, 9]]), listed).item() == 1
