from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies

from eimf.core.errors import ArtifactError, ConfigError, DataError
from eimf.data.batch import Ragged
from eimf.evaluation.evaluator import evaluate
from eimf.evaluation.retrieval import (
    ItemIndex,
    Retrieved,
    fill_proportionally,
    is_member,
    merge,
    rerank_diverse,
    retrieve,
    retrieve_each,
    tie_order,
)


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
    found = retrieve(ItemIndex(table()), users, 10, Ragged.of([[one for one in row if one] for row in seen.tolist()]))
    masked = brute_force(table(), users).scatter(1, seen, -torch.inf)
    assert torch.equal(found.items, masked.topk(10).indices)


def test_short_catalogue_ends_the_list_with_padding() -> None:
    found = retrieve(ItemIndex(table(4)), interests(), 6, Ragged.of([[1]] * 5))
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


@pytest.mark.parametrize(("kind", "options"), [("hnsw", {}), ("ivf", {"search": 40})])
def test_approximate_indexes_find_nearly_the_same(kind, options: dict[str, int]) -> None:
    exact = retrieve(ItemIndex(table(800)), interests(), 20)
    found = retrieve(ItemIndex(table(800), kind, **options), interests(), 20)
    overlap = is_member(found.items, Ragged.of(exact.items.tolist())).double().mean()
    assert overlap > 0.9


@pytest.mark.slow
def test_compressed_vectors_keep_most_of_the_order() -> None:
    exact = retrieve(ItemIndex(table(800)), interests(), 20)
    dim = table(800).shape[1]
    found = retrieve(ItemIndex(table(800), f"IVF8,PQ{dim // 2}", search=8), interests(), 20)
    assert is_member(found.items, Ragged.of(exact.items.tolist())).double().mean() > 0.5
    tiny = ItemIndex(table(40), f"IVF8,PQ{dim // 2}x4")
    assert retrieve(tiny, interests(), 5).items.max() <= 40


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "IVF16,PQ3"])
def test_a_saved_index_answers_as_before(kind, tmp_path: Path) -> None:
    index = ItemIndex(table(800), kind)
    index.save(tmp_path / "index.faiss")
    again = ItemIndex.load(tmp_path / "index.faiss", table(800))
    before, after = retrieve(index, interests(), 20), retrieve(again, interests(), 20)
    assert torch.equal(before.items, after.items)
    assert again.n_items == 800
    (tmp_path / "index.faiss").write_bytes(b"no index")
    with pytest.raises(ArtifactError, match="cannot be read"):
        ItemIndex.load(tmp_path / "index.faiss", table(800))
    with pytest.raises(ArtifactError, match="could not be written"):
        index.save(tmp_path / "nowhere" / "index.faiss")


def ordered(vectors: np.ndarray, users: torch.Tensor, seen: list[list[int]]) -> list[list[int]]:
    """All items of each user by (-score, the fixed order of ties), seen ones left out."""
    scores, order = brute_force(vectors, users), tie_order(len(vectors) - 1)
    lists = []
    for row, own in zip(scores.tolist(), seen, strict=True):
        items = [item for item in range(1, len(vectors)) if item not in own]
        lists.append(sorted(items, key=lambda item: (-row[item], int(order[item]))))
    return lists


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_ties_have_one_order_whatever_is_asked(levels: int) -> None:
    """Few different vectors: nearly everything ties. The order depends on neither n, nor the batch, nor filters."""
    rng = np.random.default_rng(levels)
    vectors = np.concatenate([np.zeros((1, 2)), rng.integers(0, levels, (300, 2)) + 1.0]).astype(np.float32)
    users = torch.tensor(rng.integers(1, 3, (6, 2, 2)), dtype=torch.float32)
    seen = [list(range(1, 1 + 40 * row)) for row in range(6)]
    wanted, free = ordered(vectors, users, seen), ordered(vectors, users, [[]] * 6)
    index = ItemIndex(vectors)
    for n in (1, 10, 50, 299):
        found = retrieve(index, users, n, Ragged.of(seen)).items.tolist()
        assert [[item for item in row if item] for row in found] == [row[:n] for row in wanted]
        assert retrieve(index, users, n).items.tolist() == [row[:n] for row in free]
        for row in range(6):
            alone = retrieve(index, users[row : row + 1], n, Ragged.of(seen[row : row + 1])).items[0].tolist()
            assert alone == found[row]


@pytest.mark.slow
def test_kinds_and_factory_strings_name_an_index() -> None:
    assert retrieve(ItemIndex(table(40, 16), "ivfpq"), interests(dim=16), 5).items.max() <= 40
    assert retrieve(ItemIndex(table(800, 16), "ivfpq"), interests(dim=16), 5).items.min() >= 1
    assert ItemIndex(table()).exact
    assert not ItemIndex(table(), "hnsw").exact
    with pytest.raises(ConfigError, match=r"eval.index: 'nonsense' .* cannot hold 50 items of 6 dimensions"):
        ItemIndex(table(), "nonsense")
    with pytest.raises(ConfigError, match=r"eval.index: 'ivfpq' \(IVF28,PQ16x4\) cannot hold"):  # 16 does not divide 6
        ItemIndex(table(), "ivfpq")


def test_membership_is_of_the_own_row() -> None:
    items = torch.tensor([[1, 5, 0, 9], [1, 5, 0, 9], [1, 5, 0, 9]])
    found = is_member(items, Ragged.of([[5, 5, 7], [], [9, 1]]))
    assert found.tolist() == [[False, True, False, False], [False] * 4, [True, False, False, True]]
    assert not is_member(items, Ragged.of([[], [], []])).any()


def test_one_giant_history_among_short_ones() -> None:
    vectors, users = table(3000), interests(batch=4)
    seen = [[3], list(range(1, 2990)), [], [7, 8, 9]]
    found = retrieve(ItemIndex(vectors), users, 20, Ragged.of(seen))
    assert [[item for item in row if item] for row in found.items.tolist()] == [
        row[:20] for row in ordered(vectors, users, seen)
    ]


def test_evaluate_by_hand() -> None:
    items = torch.tensor([[0.0, 0], [1, 0], [0, 1], [0.9, 0], [0, 0.2]])
    users = torch.tensor(
        [[[1.0, 0], [0, 1]], [[0, 1], [0, 1]]]
    )  # by best score: 1 and 2, then 3, 4; the second: 2, 4, ...
    found = evaluate(users, items, [[3], [4]], seen=[[1, 2], [2]], k=(1, 2))
    assert found.summary["recall@1"] == 1.0
    assert found.summary["raw/recall@1"] == 0.0
    assert found.per_user.filter(user_idx=0, metric="ndcg", k=1)["value"].item() == 1.0
    assert found.rankings.filter(user_idx=1)["item_idx"].to_list()[0] == 4
    for options, message in [
        ({"targets": [[3]]}, "targets: must have a list for each of the 2 users, has 1"),
        ({"targets": [[3], []]}, "targets: user 1 has none"),
        ({"targets": [[3], [5]]}, "targets: items must be numbers from 1 to 4 .*, one is 5"),
        ({"targets": [[3], [4]], "k": (0,)}, "k: cut-offs must be whole numbers from 1"),
    ]:
        with pytest.raises(DataError, match=message):
            evaluate(users, items, **options)


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw", "ivfpq", "PCA8,IVF16,Flat", "SQ8", "IVF8,PQ4x4,RFlat"])
@given(data=strategies.data())
def test_lists_are_full_and_hold_only_what_is_allowed(kind: str, data: strategies.DataObject) -> None:
    """Never short of n while other items may be listed; exact on the flat index, with filters and seen items."""
    index = filtered_index(kind)
    size, users = index.n_items, interests(batch=3, count=2, dim=16)
    share = data.draw(strategies.sampled_from([0.0, 0.005, 0.05, 0.5, 1.0]))
    n = data.draw(strategies.sampled_from([1, 7, 60, 400]))
    rng = np.random.default_rng(data.draw(strategies.integers(0, 2**16)))
    allowed = torch.from_numpy(rng.random(size + 1) < share)
    allowed[0] = data.draw(strategies.booleans())  # padding is never listed, whatever the mask says
    best = brute_force(filtered_table(), users).argsort(dim=1, descending=True).tolist()
    seen = [best[0][: rng.integers(0, 90)], [], [int(one) for one in rng.integers(1, size + 1, 5)]]
    found = retrieve(index, users, n, Ragged.of(seen), allowed=allowed)
    for row, own in enumerate(seen):
        may = {item for item in range(1, size + 1) if allowed[item]} - set(own)
        listed = [item for item in found.items[row].tolist() if item]
        assert len(listed) == len(set(listed)) == min(n, len(may))
        assert set(listed) <= may
        if kind == "flat":
            assert listed == [item for item in best[row] if item in may][:n]
    items, scores = retrieve_each(index, users, n, Ragged.of(seen), allowed)
    for row, own in enumerate(seen):
        may = sum(bool(allowed[item]) and item not in own for item in range(1, size + 1))
        assert ((items[row] != 0).sum(dim=1) == min(n, may)).all()
        assert ((scores[row] > -torch.inf) == (items[row] != 0)).all()


@cache
def filtered_table() -> np.ndarray:
    return table(600, 16)


@cache
def filtered_index(kind: str) -> ItemIndex:
    return ItemIndex(filtered_table(), kind, search=1)  # as little as possible is visited


def clusters(n: int = 10_000, dim: int = 16) -> tuple[np.ndarray, torch.Tensor]:
    """Items and users around few centres, as trained vectors are."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(50, dim))
    vectors = (centres[rng.integers(0, 50, n + 1)] + 0.5 * rng.normal(size=(n + 1, dim))).astype(np.float32)
    users = centres[rng.integers(0, 50, (20, 3))] + 0.5 * rng.normal(size=(20, 3, dim))
    return vectors, torch.tensor(users, dtype=torch.float32)


def recall_of(index: ItemIndex, vectors: np.ndarray, users: torch.Tensor, allowed: torch.Tensor | None) -> float:
    """Share of the true best 20 allowed items that a search finds."""
    wanted = retrieve(ItemIndex(vectors), users, 20, allowed=allowed).items
    found = retrieve(index, users, 20, allowed=allowed).items
    return float(is_member(found, Ragged.of(wanted.tolist())).sum() / (wanted != 0).sum())


@pytest.mark.parametrize("kind", ["hnsw", "ivf", "IVF400,PQ8x4", "PCA8,IVF400,Flat"])
def test_filters_do_not_cost_recall_on_approximate_indexes(kind: str) -> None:
    vectors, users = clusters()
    index = ItemIndex(vectors, kind, search=8)
    free = recall_of(index, vectors, users, None)
    for share in (0.0005, 0.01, 0.1, 0.6):
        allowed = torch.from_numpy(np.random.default_rng(1).random(len(vectors)) < share)
        exact = index.exact_for(allowed)
        assert recall_of(index, vectors, users, allowed) >= (1.0 if exact else free - 0.02)
        assert exact or share >= 0.1
        assert not exact or share <= 0.1


@pytest.mark.parametrize("kind", ["IVF64,Flat,RFlat", "NSG16", "PQ4x4"])
def test_indexes_that_cannot_filter_compare_all_allowed_items(kind: str, tmp_path: Path) -> None:
    vectors, users = clusters(1500)
    index = ItemIndex(vectors, kind)
    allowed = torch.from_numpy(np.random.default_rng(1).random(len(vectors)) < 0.5)
    index.save(tmp_path / "index.faiss")
    for one in (index, ItemIndex.load(tmp_path / "index.faiss", vectors)):
        assert recall_of(one, vectors, users, allowed) == 1.0
    if kind == "NSG16":
        with pytest.raises(ConfigError, match=r"eval.index: an index of this kind cannot grow by new items"):
            index.with_items(vectors[1:3])
    else:
        grown = index.with_items(10 * vectors[1:2])
        assert 1501 in retrieve(grown, torch.from_numpy(vectors[1:2, None]), 5, allowed=torch.ones(1502).bool()).items


def test_a_saved_index_of_other_vectors_is_refused(tmp_path: Path) -> None:
    ItemIndex(table(60), "hnsw").save(tmp_path / "index.faiss")
    with pytest.raises(ArtifactError, match=r"index.faiss: is of other item vectors; make it again with eimf index"):
        ItemIndex.load(tmp_path / "index.faiss", table(61))


def test_pools_for_diversity_are_filtered_too() -> None:
    allowed = torch.zeros(601, dtype=torch.bool)
    allowed[100:140] = True
    found = retrieve(ItemIndex(filtered_table()), interests(count=2, dim=16), 10, pool=50, allowed=allowed)
    assert [sorted(row[row != 0].tolist()) for row in found.items] == [list(range(100, 140))] * 5


def fill_by_the_book(items: list[list[int]], scores: list[list[float]], n: int) -> list[tuple[int, int]]:
    """One user's proportional list: items with the interests that brought them."""
    strength = np.exp([row[0] for row in scores]) / np.exp([row[0] for row in scores]).sum()
    placed, chosen = [0] * len(items), []
    while len(chosen) < n:
        rest = [[item for item in row if item and item not in dict(chosen)] for row in items]
        if not any(rest):
            break
        k = max((k for k in range(len(items)) if rest[k]), key=lambda k: strength[k] / (2 * placed[k] + 1))
        chosen.append((rest[k][0], k))
        placed[k] += 1
    return chosen


def test_a_proportional_list_follows_the_strengths() -> None:
    users = interests(batch=40, count=3, dim=16)
    seen = Ragged.of([[row + 1, row + 9] for row in range(40)])
    items, scores = retrieve_each(ItemIndex(filtered_table()), users, 30, seen)
    found = fill_proportionally(items, scores, 30)
    for row in range(40):
        wanted = fill_by_the_book(items[row].tolist(), scores[row].tolist(), 30)
        assert list(zip(found.items[row].tolist(), found.interest[row].tolist(), strict=True)) == wanted
    exact = torch.einsum(
        "bnkd,bnd->bnk", users[:, None].expand(-1, 30, -1, -1), torch.from_numpy(filtered_table())[found.items]
    )
    torch.testing.assert_close(found.scores, exact.gather(2, found.interest[:, :, None])[:, :, 0])


def test_equal_interests_get_equal_places_and_a_list_may_end() -> None:
    items = torch.tensor([[[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 0, 0], [2, 1, 0, 0]], [[0] * 4, [0] * 4]])
    scores = torch.tensor([[[3.0, 2, 1, 0]] * 2, [[3.0, 2, -torch.inf, -torch.inf]] * 2, [[-torch.inf] * 4] * 2])
    found = fill_proportionally(items, scores, 4)
    assert found.items.tolist() == [[1, 5, 2, 6], [1, 2, 0, 0], [0] * 4]
    assert found.interest.tolist() == [[0, 1, 0, 1], [0, 1, 0, 0], [0] * 4]
    assert (found.scores == -torch.inf).tolist() == [[False] * 4, [False, False, True, True], [True] * 4]
