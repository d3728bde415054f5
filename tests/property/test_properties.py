"""Properties that hold for any data."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eimf.backbones import BACKBONES
from eimf.config.components import METRICS
from eimf.config.schema import SplitConfig
from eimf.core.errors import DataError, LabelError
from eimf.data.batch import HoldoutBatches, Ragged, TrainingBatches
from eimf.data.prepare import core_filter
from eimf.data.prepared import Sequences
from eimf.data.splits import split_sequences
from eimf.evaluation.metrics import find_hits
from eimf.evaluation.retrieval import ItemIndex, merge, rerank_diverse, retrieve, tie_order
from eimf.explicit.supervision import build_supervision, match_labels
from eimf.labels.label import Label
from eimf.labels.prompts import Interest
from eimf.losses import FullSoftmax
from eimf.losses.functions import read_out


@st.composite
def any_sequences(draw: st.DrawFn) -> Sequences:
    """Users of any lengths with possibly tied times; every interaction has an item of its own, so that a leak of
    the future into the past is visible."""
    lengths = draw(st.lists(st.integers(1, 12), min_size=3, max_size=25))
    total = sum(lengths)
    steps = draw(st.lists(st.integers(0, 3), min_size=total, max_size=total))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = np.concatenate([np.cumsum(steps[a:b]) for a, b in pairwise(offsets)])
    return Sequences(np.arange(1, total + 1, dtype=np.int32), times.astype(np.int64), offsets)


kinds = st.sampled_from(["user", "loo", "time"])
samplings = st.sampled_from(["every_position", "random_cut", "sequence"])


@given(any_sequences(), kinds, samplings, st.integers(1, 8), st.integers(0, 3))
def test_no_future_item_in_any_training_or_evaluation_input(
    data: Sequences, kind, sampling, max_len: int, epoch: int
) -> None:
    try:
        parts = split_sequences(data, SplitConfig(kind=kind, validation=0.3, test=0.3))
    except DataError:
        return
    items = torch.from_numpy(data.items).long()
    held_out: set[int] = set()
    for holdout in (parts.validation, parts.test):
        for batch in HoldoutBatches(items, holdout, max_len=max_len, batch_size=4):
            for place, (history, user) in enumerate(zip(batch.history, batch.user_idx.tolist(), strict=True)):
                row = int(np.flatnonzero(holdout.user_idx == user)[0])
                context = history[history > 0]
                alone = torch.tensor([place])
                assert (
                    batch.targets.select(alone).values.tolist()
                    == data.items[holdout.cut[row] : holdout.end[row]].tolist()
                )
                assert (
                    batch.seen.select(alone).values.tolist()
                    == data.items[holdout.start[row] : holdout.cut[row]].tolist()
                )
                # Items are numbered by position: the context ends right before the first target, in the same user.
                assert context[-1] == data.items[holdout.cut[row]] - 1
                assert context[0] > holdout.start[row]
        for row in range(len(holdout)):
            held_out.update(data.items[holdout.cut[row] : holdout.end[row]].tolist())
    for batch in TrainingBatches(items, parts.train, max_len=max_len, batch_size=5, sampling=sampling, epoch=epoch):
        target = batch.target if batch.target.ndim == 2 else batch.target[:, None]
        history = batch.history if batch.target.ndim == 2 else batch.history[:, -1:]
        known = target > 0
        assert (target[known] == history[known] + 1).all()
        assert not held_out & set(target[known].tolist())
        assert not held_out & set(batch.history.flatten().tolist())
    counts = parts.item_counts(data, len(data.items))
    assert not any(counts[item] for item in held_out)


@st.composite
def any_labels(draw: st.DrawFn) -> tuple[Any, list[Label]]:
    """Users who buy some items again and again, and labels made from any part of their histories, held out or not."""
    lengths = draw(st.lists(st.integers(1, 9), min_size=6, max_size=12))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    chosen = draw(st.lists(st.integers(1, 5), min_size=int(offsets[-1]), max_size=int(offsets[-1])))
    items = np.array(chosen, dtype=np.int32)
    times = np.concatenate([np.arange(one) for one in lengths])
    labels = []
    for user, (a, b) in enumerate(pairwise(offsets)):
        shown = [place for place in range(a, b) if draw(st.booleans())]
        groups = [draw(st.integers(0, 2)) for _ in shown]
        found = [tuple(n for n, g in enumerate(groups, 1) if g == group) for group in range(3)]
        interests = tuple(Interest(f"n{user}-{k}", numbers) for k, numbers in enumerate(found) if numbers)
        if interests:
            labels.append(Label(f"u{user}", interests, tuple(f"i{items[place]}" for place in shown), "m", "v1"))
    prepared = SimpleNamespace(
        sequences=Sequences(items, times.astype(np.int64), offsets),
        user_ids=polars.Series([f"u{user}" for user in range(len(lengths))]),
        items=polars.DataFrame({"item_id": [f"i{n}" for n in range(1, 6)], "item_idx": range(1, 6)}),
        folder=SimpleNamespace(name="any"),
    )
    return prepared, labels


def is_within(wanted: list[str], items: list[str]) -> bool:
    """Whether `wanted` can be found in `items`, in order."""
    rest = iter(items)
    return all(item in rest for item in wanted)


@given(any_labels(), kinds)
def test_no_training_step_may_predict_an_item_from_an_interest_made_from_it(
    made: tuple[Any, list[Label]], kind
) -> None:
    prepared, labels = made
    flat = prepared.sequences.items
    try:
        spans = split_sequences(prepared.sequences, SplitConfig(kind=kind, validation=0.3, test=0.3)).train
        matched = match_labels(labels, prepared, spans)
    except (DataError, LabelError):
        return
    names = {one.name: np.ones(2, np.float32) for label in labels for one in label.interests}
    supervision = build_supervision(matched, names, flat)
    for n, (row, _, label, _) in enumerate(matched.rows):
        start, end = int(spans.start[row]), int(spans.end[row])
        own = [f"i{item}" for item in flat[start:end]]
        assert is_within(list(label.history), own)  # nothing held out was seen
        for at in range(start + 1, end):
            here, target, item = torch.tensor([n]), torch.tensor([at]), torch.tensor([int(flat[at])])
            loose = supervision.predictive(here, target, item, only_after=False)[0]
            strict = supervision.predictive(here, target, item, only_after=True)[0]
            visible = supervision.alignable(here, target)[0]
            assert not (strict & ~loose).any()
            if strict.any():
                assert is_within(list(label.history), own[: at - start])
            for s, interest in enumerate(label.interests):
                shown = {label.history[number - 1] for number in interest.items}
                assert not (bool(loose[s]) and f"i{int(flat[at])}" in shown)
                assert not bool(visible[s]) or shown & set(own[: at - start])


@given(any_sequences(), kinds)
def test_time_never_runs_backwards_across_a_cut(data: Sequences, kind) -> None:
    try:
        parts = split_sequences(data, SplitConfig(kind=kind, validation=0.3, test=0.3))
    except DataError:
        return
    for holdout in (parts.validation, parts.test):
        assert (holdout.start < holdout.cut).all()
        assert (holdout.cut < holdout.end).all()
        border = data.timestamps[holdout.cut - 1] <= data.timestamps[holdout.cut]
        assert border.all()


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=80), st.integers(1, 4), st.integers(1, 4))
def test_iterative_core_is_a_core_and_the_largest(pairs: list[tuple[int, int]], user_min: int, item_min: int) -> None:
    users, items = (np.array([pair[k] for pair in pairs], dtype=np.int64) for k in range(2))
    kept = core_filter(users, items, user_min, item_min, "iterative")
    assert all((users[kept] == user).sum() >= user_min for user in users[kept])
    assert all((items[kept] == item).sum() >= item_min for item in items[kept])
    alive = set(range(len(pairs)))  # the textbook way: take one violation away at a time
    while True:
        bad = [
            i
            for i in alive
            if sum(users[j] == users[i] for j in alive) < user_min
            or sum(items[j] == items[i] for j in alive) < item_min
        ]
        if not bad:
            break
        alive.discard(bad[0])
    assert sorted(alive) == kept.tolist()


@st.composite
def any_search(draw: st.DrawFn) -> tuple[np.ndarray, torch.Tensor, int, torch.Tensor]:
    n_items, count, dim = draw(st.integers(1, 30)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n_items + 1, dim)).astype(np.float32)
    users = torch.from_numpy(rng.normal(size=(3, count, dim)).astype(np.float32))
    seen = torch.from_numpy(rng.integers(0, n_items + 1, (3, draw(st.integers(0, 6)))))
    return vectors, users, draw(st.integers(1, 35)), seen


@given(any_search(), st.booleans())
def test_flat_index_is_brute_force_max_over_interests(search, filtered: bool) -> None:
    vectors, users, n, seen = search
    found = retrieve(
        ItemIndex(vectors),
        users,
        n,
        Ragged.of([[one for one in row if one] for row in seen.tolist()]) if filtered else None,
    )
    scores = torch.einsum("bkd,id->bki", users, torch.from_numpy(vectors)).amax(dim=1)
    scores[:, 0] = -torch.inf
    if filtered:
        scores = scores.scatter(1, seen, -torch.inf)
    width = min(n, scores.shape[1])
    best = scores.topk(width)
    torch.testing.assert_close(found.scores[:, :width], best.values, rtol=1e-4, atol=1e-5)
    for row in range(3):
        listed = found.items[row][found.items[row] > 0].tolist()
        assert len(set(listed)) == len(listed)
        assert len(listed) == min(n, int((scores[row] > -torch.inf).sum()))
        if filtered:
            assert not set(listed) & set(seen[row].tolist())


@given(any_search(), st.integers(1, 3))
def test_items_of_equal_score_are_in_their_fixed_order(search, levels: int) -> None:
    """Small whole numbers: scores are exact, and most of them tie. Lists are the start of one order of all items."""
    vectors, users, n, seen = search
    vectors, users = (vectors * levels).round(), (users * levels).round()
    scores, ties = (users @ torch.from_numpy(vectors).T).amax(dim=1).tolist(), tie_order(len(vectors) - 1).tolist()
    lists = [[item for item in row if item] for row in seen.tolist()]
    found = retrieve(ItemIndex(vectors), users, n, Ragged.of(lists))
    for row, own in enumerate(lists):
        rest = set(range(1, len(vectors))) - set(own)
        wanted = sorted(rest, key=lambda item, row=row: (-scores[row][item], ties[item]))[:n]
        assert found.items[row].tolist() == wanted + [0] * (n - len(wanted))


@given(any_search(), st.randoms(use_true_random=False))
def test_order_of_interests_changes_nothing(search, random) -> None:
    vectors, users, n, _ = search
    order = list(range(users.shape[1]))
    random.shuffle(order)
    index = ItemIndex(vectors)
    first, second = retrieve(index, users, n), retrieve(index, users[:, order], n)
    torch.testing.assert_close(first.scores, second.scores)
    assert torch.equal(first.items, second.items)
    kept = first.items > 0
    assert torch.equal(first.interest[kept], torch.tensor(order)[second.interest][kept])
    target = torch.from_numpy(vectors[:3] if len(vectors) >= 3 else np.repeat(vectors[:1], 3, axis=0))
    torch.testing.assert_close(read_out(users, target), read_out(users[:, order], target))


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 15))
@pytest.mark.slow
def test_metrics_stay_within_bounds(seed: int, n: int, k: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    ranked = torch.stack([torch.randperm(20, generator=rng)[:n] for _ in range(6)])  # 0 is padding
    targets = torch.randint(0, 20, (6, 5), generator=rng)
    targets[:, 0] = targets[:, 0].clamp(min=1)
    hits, count = find_hits(ranked, Ragged.of([[item for item in row if item] for row in targets.tolist()]))
    values = {name: function(hits, count, k) for name, function in METRICS.items()}
    for value in values.values():
        assert ((value >= 0) & (value <= 1 + 1e-12)).all()
    assert (values["recall"] <= values["hr"]).all()
    assert (values["ndcg"] <= values["ndcg_comirec"] + 1e-12).all()
    assert torch.equal(values["hr"] > 0, values["ndcg"] > 0)
    for row in range(6):
        wanted = {int(item) for item in targets[row] if item}
        made = len(wanted & {int(item) for item in ranked[row, :k]})
        assert values["recall"][row].item() == pytest.approx(made / len(wanted))


@given(st.integers(0, 10**6), st.floats(0, 10))
def test_diverse_lists_are_permutations_of_candidates(seed: int, weight: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores, items = torch.rand(2, 3, 5, generator=rng), torch.randint(1, 12, (2, 3, 5), generator=rng)
    candidates = merge(scores.sort(dim=2, descending=True).values, items, 15)
    found = rerank_diverse(candidates, torch.randint(0, 3, (12,), generator=rng), 15, weight)
    assert torch.equal(found.items.sort(dim=1).values, candidates.items.sort(dim=1).values)


@pytest.mark.parametrize("name", list(BACKBONES))
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 4))
def test_padding_invariance(name: str, seed: int, length: int, padding: int) -> None:
    torch.manual_seed(seed)
    backbone = BACKBONES[name](30, 10).eval()
    history = torch.randint(1, 31, (2, length))
    padded = torch.cat([torch.zeros(2, padding, dtype=torch.long), history], dim=1)
    torch.testing.assert_close(backbone(history).vectors, backbone(padded).vectors, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 10**6))
def test_loss_does_not_depend_on_the_order_of_samples(seed: int) -> None:
    torch.manual_seed(seed)
    backbone = BACKBONES["comirec_sa"](30, 6).eval()
    history, target = torch.randint(0, 31, (5, 6)), torch.randint(1, 31, (5,))
    loss = FullSoftmax()
    order = torch.randperm(5)
    first = loss(backbone, backbone(history), history, target)["full_softmax"]
    second = loss(backbone, backbone(history[order]), history[order], target[order])["full_softmax"]
    torch.testing.assert_close(first, second)
