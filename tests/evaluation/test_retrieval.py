from pathlib import Path

import numpy as np
import pytest
import torch

from eimf.core.errors import ArtifactError
from eimf.evaluation.retrieval import ItemIndex, Retrieved, is_member, merge, rerank_diverse, retrieve


def table(n: int = 50, dim: int = 6) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(n + 1, dim)).astype(np.float32)
    vectors[0] = 100  # padding would win every search if it were in the index
    return vectors


def interests(batch: int = 5, count: int = 3, dim: int = 6) -> torch.Tensor:
    return torch.randn(batch, count, dim, generator=torch.Generator().manual_seed(1))


def brute_force(vectors: np.ndarray, users: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("bkd,id->bki", users, torch.from_numpy(vectors)).amax(dim=1)
    scores[:, 0] = -torch.inf
    return scores


def test_lists_are_the_exact_top_n_over_all_interests() -> None:
    users = interests()
    found = retrieve(ItemIndex(table()), users, 10)
    best = brute_force(table(), users).topk(10)
    torch.testing.assert_close(found.scores, best.values)
    assert torch.equal(found.items, best.indices)
    each = torch.einsum("bkd,bnd->bkn", users, torch.from_numpy(table())[found.items])
    assert torch.equal(each.argmax(dim=1), found.interest)


def test_seen_items_are_left_out_and_the_list_stays_full() -> None:
    users = interests()
    seen = brute_force(table(), users).topk(7).indices
    seen[0, 3:] = 0
    found = retrieve(ItemIndex(table()), users, 10, seen)
    masked = brute_force(table(), users).scatter(1, seen, -torch.inf)
    assert torch.equal(found.items, masked.topk(10).indices)


def test_short_catalogue_ends_the_list_with_padding() -> None:
    found = retrieve(ItemIndex(table(4)), interests(), 6, torch.tensor([[1, 0]]).expand(5, -1))
    assert (found.items[:, 3:] == 0).all()
    assert (found.scores[:, 3:] == -torch.inf).all()
    assert (found.items[:, :3].sort(dim=1).values == torch.tensor([2, 3, 4])).all()


def test_merge_by_hand() -> None:
    scores = torch.tensor([[[0.9, 0.5, 0.1], [0.8, 0.6, 0.2]]])
    items = torch.tensor([[[4, 7, 9], [7, 4, 2]]])
    found = merge(scores, items, 3)
    assert found.items.tolist() == [[4, 7, 2]]
    assert found.interest.tolist() == [[0, 1, 1]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.9, 0.8, 0.2]]))


@pytest.mark.parametrize(("kind", "options"), [("hnsw", {}), ("ivf", {"ivf_probes": 40})])
def test_approximate_indexes_find_nearly_the_same(kind, options: dict[str, int]) -> None:
    exact = retrieve(ItemIndex(table(800)), interests(), 20)
    found = retrieve(ItemIndex(table(800), kind, **options), interests(), 20)
    overlap = is_member(found.items, exact.items).double().mean()
    assert overlap > 0.9


def test_compressed_vectors_keep_most_of_the_order() -> None:
    exact = retrieve(ItemIndex(table(800)), interests(), 20)
    dim = table(800).shape[1]
    found = retrieve(ItemIndex(table(800), "ivfpq", ivf_lists=8, ivf_probes=8, pq_bytes=dim // 2), interests(), 20)
    assert is_member(found.items, exact.items).double().mean() > 0.5
    tiny = ItemIndex(table(40), "ivfpq", pq_bytes=dim // 2)
    assert retrieve(tiny, interests(), 5).items.max() <= 40


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "ivfpq"])
def test_a_saved_index_answers_as_before(kind, tmp_path: Path) -> None:
    index = ItemIndex(table(800), kind, pq_bytes=table(800).shape[1] // 2)
    index.save(tmp_path / "index.faiss")
    again = ItemIndex.load(tmp_path / "index.faiss")
    before, after = retrieve(index, interests(), 20), retrieve(again, interests(), 20)
    assert torch.equal(before.items, after.items)
    assert again.n_items == 800
    (tmp_path / "index.faiss").write_bytes(b"no index")
    with pytest.raises(ArtifactError, match="cannot be read"):
        ItemIndex.load(tmp_path / "index.faiss")
    with pytest.raises(ArtifactError, match="could not be written"):
        index.save(tmp_path / "nowhere" / "index.faiss")


def greedy(scores: list[float], kinds: list[int], n: int, weight: float) -> list[int]:
    """ComiRec's algorithm 2, one user, by the book."""
    chosen: list[int] = []
    while len(chosen) < n:
        rest = [i for i in range(len(scores)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: scores[i] + weight * sum(kinds[i] != kinds[j] for j in chosen)))
    return chosen


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0, 50.0])
def test_controllable_aggregation_is_the_greedy_algorithm(weight: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(4, 12, generator=generator).sort(dim=1, descending=True).values
    items = torch.stack([torch.randperm(30, generator=generator)[:12] + 1 for _ in range(4)])
    categories = torch.randint(0, 4, (31,), generator=generator)
    candidates = Retrieved(items, scores, torch.zeros_like(items))
    found = rerank_diverse(candidates, categories, 6, weight)
    for row in range(4):
        order = greedy(scores[row].tolist(), categories[items[row]].tolist(), 6, weight)
        assert found.items[row].tolist() == items[row][order].tolist()
    if weight == 0:
        assert torch.equal(found.items, items[:, :6])
