"""`evaluate` and the evaluator against lists sorted by brute force."""

import pytest
import torch

from eimf.data.batch import Ragged
from eimf.evaluation import Evaluation, Evaluator, evaluate
from eimf.evaluation.metrics import category_diversity, find_hits, interests_used, ndcg, recall
from eimf.evaluation.retrieval import ItemIndex, fill_proportionally, retrieve_each, tie_order

USERS, ITEMS = 23, 60


def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    """Interests and items of small whole numbers: scores are exact, and many of them tie."""
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(-2, 3, (USERS, 3, 4), generator=generator).float()
    return users, torch.randint(-2, 3, (ITEMS + 1, 4), generator=generator).float()


def lists(longest: int, seed: int) -> list[list[int]]:
    """From 1 to `longest` different items for each user."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randperm(ITEMS, generator=generator)[: 1 + row % longest] + 1).tolist() for row in range(USERS)]


def best(users: torch.Tensor, items: torch.Tensor, seen: list[list[int]], n: int) -> list[list[int]]:
    """The n best items of each user that are not seen."""
    scores, order = (users @ items.T).amax(dim=1).tolist(), tie_order(len(items) - 1).tolist()
    return [
        sorted(set(range(1, len(items))) - set(own), key=lambda item: (-row[item], order[item]))[:n]
        for row, own in zip(scores, seen, strict=True)
    ]


def assert_same(first: Evaluation, second: Evaluation) -> None:
    assert first.summary == pytest.approx(second.summary, abs=1e-12)
    assert first.per_user.equals(second.per_user)
    assert first.rankings.equals(second.rankings)


@pytest.mark.parametrize("filtered", [False, True])
def test_lists_and_values_are_those_of_brute_force(filtered: bool) -> None:
    users, items = vectors()
    targets, seen = lists(4, 1), lists(7, 2)
    found = evaluate(users, items, targets, seen=seen if filtered else None, k=(10, 3))
    wanted = best(users, items, seen if filtered else [[]] * USERS, 10)
    for row in range(USERS):
        listed = found.rankings.filter(user_idx=row)
        assert listed["item_idx"].to_list() == wanted[row]
        assert listed["rank"].to_list() == list(range(1, 11))
        each = users[row] @ items[wanted[row]].T
        assert listed["score"].to_list() == each.amax(dim=0).tolist()
        assert listed["interest"].to_list() == each.argmax(dim=0).tolist()
    for k in (3, 10):
        recall = [len(set(wanted[row][:k]) & set(targets[row])) / len(targets[row]) for row in range(USERS)]
        assert found.summary[f"recall@{k}"] == pytest.approx(sum(recall) / USERS)
        assert found.per_user.filter(metric="recall", k=k)["value"].to_list() == pytest.approx(recall)
        shown = {item for row in wanted for item in row[:k]}
        assert found.summary[f"coverage@{k}"] == pytest.approx(len(shown) / ITEMS)
        assert (f"raw/recall@{k}" in found.summary) == filtered
    assert "novelty@10" not in found.summary  # needs the items' counts
    assert not any(key.startswith("untied/") for key in found.summary)


def test_lists_that_are_not_filtered_are_reported_beside() -> None:
    users, items = vectors()
    targets = best(users, items, [[]] * USERS, 3)
    seen = [row[:2] for row in targets]
    plain, filtered = evaluate(users, items, targets, k=(5,)), evaluate(users, items, targets, seen=seen, k=(5,))
    for name in ("recall", "hr", "ndcg", "ndcg_comirec", "mrr"):
        assert filtered.summary[f"raw/{name}@5"] == pytest.approx(plain.summary[f"{name}@5"])
        raw, own = filtered.per_user.filter(metric=f"raw/{name}"), plain.per_user.filter(metric=name)
        assert raw["value"].to_list() == own["value"].to_list()
    assert filtered.summary["raw/recall@5"] == pytest.approx(1)
    assert filtered.summary["recall@5"] == pytest.approx(1 / 3)


@pytest.mark.slow
def test_results_depend_on_neither_batches_nor_other_cut_offs() -> None:
    users, items = vectors()
    options = {"targets": lists(4, 1), "seen": lists(7, 2), "item_counts": torch.arange(ITEMS + 1)}
    whole = evaluate(users, items, **options, k=(3, 10))
    assert_same(whole, evaluate(users, items, **options, k=(10, 3, 3), batch_size=4))
    deeper = evaluate(users, items, **options, k=(3, 10, 40))
    for name in ("recall@3", "ndcg@10", "raw/mrr@3", "coverage@10", "novelty@10"):
        assert deeper.summary[name] == pytest.approx(whole.summary[name])
    assert deeper.rankings.filter(deeper.rankings["rank"] <= 10).equals(whole.rankings)


@pytest.mark.parametrize("filtered", [False, True])
def test_the_categories_of_targets_that_are_hit(filtered: bool) -> None:
    users, items = vectors()
    targets, seen = lists(6, 1), lists(7, 2)
    seen = [sorted(set(own) - set(wanted)) for own, wanted in zip(seen, targets, strict=True)]
    categories = torch.arange(ITEMS + 1) % 4  # one of them is 0: unknown
    options = {"seen": seen if filtered else None, "categories": categories, "batch_size": 5}
    found = evaluate(users, items, targets, k=(5, 20), **options)
    for k in (5, 20):
        wanted = []
        for row, listed in enumerate(best(users, items, seen if filtered else [[]] * USERS, k)):
            kinds = {int(categories[item]) for item in targets[row]}
            wanted.append(len({int(categories[item]) for item in set(listed) & set(targets[row])}) / len(kinds))
        own = found.per_user.filter(metric="category_recall", k=k)
        assert own["value"].to_list() == pytest.approx(wanted)
        assert found.summary[f"category_recall@{k}"] == pytest.approx(sum(wanted) / USERS)
        assert found.summary[f"category_recall@{k}"] > 0
    assert "category_recall@5" not in evaluate(users, items, targets, k=(5,)).summary


def test_rows_of_nobody_are_left_out() -> None:
    users, items = vectors()
    targets, seen = Ragged.of(lists(4, 1)), Ragged.of(lists(7, 2))
    tied = torch.arange(USERS) % 3 == 0
    found = []
    for padded in (False, True):
        evaluator = Evaluator(items.numpy(), [5], filter_seen=True)
        evaluator.add(torch.arange(USERS), users, targets, seen, tied)
        if padded:  # a row of padding among users, and a batch of it
            some, none = torch.tensor([4, 7]), Ragged.of([[]])
            numbers = torch.tensor([-1, -1])
            evaluator.add(numbers, users[some], targets.select(some), seen.select(some), tied[some])
            evaluator.add(numbers[:1], users[:1], none, none, tied[:1])
        found.append(evaluator.evaluation())
    assert_same(*found)
    assert found[0].per_user.filter(metric="hr")["tied"].to_list() == tied.tolist()
    untied = found[0].per_user.filter(metric="hr", tied=False)["value"].to_list()
    assert found[0].summary["untied/hr@5"] == pytest.approx(sum(untied) / len(untied))


def test_more_weight_on_categories_gives_more_diverse_lists() -> None:
    users, items = vectors()
    categories = torch.arange(ITEMS + 1) % 3 + 1
    found = evaluate(users, items, lists(4, 1), k=(5, 10), diversity_lambdas=(0.0, 0.5, 50.0), categories=categories)
    assert [row["lambda"] for row in found.trade_off] == [0.0, 0.5, 50.0]
    diversity = [row["diversity@10"] for row in found.trade_off]
    assert diversity == sorted(diversity)
    assert diversity[0] < diversity[2]
    assert found.trade_off[0]["recall@5"] == pytest.approx(found.summary["recall@5"])
    assert not any(key.startswith("controlled/") for key in found.summary)
    # One interest and long lists: there are still items to choose from.
    found = evaluate(users[:, :1], items, lists(4, 1), k=(50,), diversity_lambdas=(0.0, 50.0), categories=categories)
    assert found.trade_off[0]["diversity@50"] < found.trade_off[1]["diversity@50"]
    unknown = evaluate(users, items, lists(4, 1), k=(5,), diversity_lambdas=(0.5,), categories=torch.zeros(61).long())
    assert unknown.trade_off == []


def test_an_approximate_index_tells_its_overlap_with_the_exact_one() -> None:
    torch.manual_seed(0)
    users, items = torch.randn(USERS, 3, 4), torch.randn(ITEMS + 1, 4)
    exact = evaluate(users, items, lists(4, 1), k=(5,))
    every = evaluate(users, items, lists(4, 1), k=(5,), index="IVF4,Flat", search=4)
    assert "overlap_with_flat@5" not in exact.summary
    assert every.summary["overlap_with_flat@5"] == 1.0
    few = evaluate(users, items, lists(4, 1), k=(5,), index="IVF4,Flat", search=1)
    assert few.summary["overlap_with_flat@5"] < 1.0


def test_lists_by_shares_are_reported_beside_the_default() -> None:
    users, items = vectors()
    categories, seen = torch.arange(ITEMS + 1) % 3 + 1, lists(7, 2)
    found = evaluate(users, items, lists(4, 1), seen=seen, k=(5, 10), categories=categories).summary
    index = ItemIndex(items.numpy())
    filled = fill_proportionally(*retrieve_each(index, users, 10, Ragged.of(seen)), 10)
    hits, n_targets = find_hits(filled.items, Ragged.of(lists(4, 1)))
    assert found["proportional/recall@10"] == pytest.approx(float(recall(hits, n_targets, 10).mean()))
    assert found["proportional/ndcg@5"] == pytest.approx(float(ndcg(hits, n_targets, 5).mean()))
    kinds = categories[filled.items[:, :5]]
    diversity = category_diversity(kinds, torch.ones_like(kinds, dtype=torch.bool)).mean()
    assert found["proportional/diversity@5"] == pytest.approx(float(diversity))
    used = interests_used(filled.interest, filled.items != 0, 3).mean()
    assert found["proportional/interests_used@10"] == pytest.approx(float(used))
    assert 0 < found["diversity@5"] <= 1
    alone = evaluate(users[:, :1], items, lists(4, 1), k=(5,)).summary
    assert not any("proportional" in key or "diversity" in key for key in alone)
