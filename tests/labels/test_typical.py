from dataclasses import replace

import numpy as np
import polars
import pytest
import torch

from eimf.backbones.comirec_sa import ComiRecSA
from eimf.config.schema import SplitConfig
from eimf.core.errors import ConfigError
from eimf.data.prepared import Prepared
from eimf.data.splits import split_sequences
from eimf.labels.typical import (
    ask_about,
    choose_typical,
    coverage,
    coverage_by_budget,
    interest_vectors,
    side_by_side,
    user_vectors,
)


def test_typical_users_see_training_items_only(tiny: Prepared) -> None:
    data = tiny.sequences
    parts = split_sequences(data, SplitConfig(kind="loo"))
    vectors = np.random.default_rng(0).normal(size=(tiny.n_items + 1, 6)).astype(np.float32)
    before = user_vectors(data, parts.train, vectors)
    mean = vectors[data.items[parts.train.start[3] : parts.train.end[3]]].mean(axis=0)
    np.testing.assert_allclose(before[3], mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-5)
    changed = data.items.copy()
    for held in (parts.validation, parts.test):
        for row in range(len(held)):
            changed[held.cut[row] : held.end[row]] = 1
    assert np.array_equal(before, user_vectors(replace(data, items=changed), parts.train, vectors))


def test_a_larger_budget_covers_better(tiny: Prepared) -> None:
    spans = split_sequences(tiny.sequences, SplitConfig(kind="user")).train
    items = np.random.default_rng(0).normal(size=(tiny.n_items + 1, 8)).astype(np.float32)
    vectors = user_vectors(tiny.sequences, spans, items)
    found = coverage_by_budget(vectors, spans, (5, 20, 60), n_clusters=60, min_history=3)
    distances = [one.coverage for one in found]
    assert distances == sorted(distances, reverse=True)
    assert [len(one.users) for one in found] == [5, 20, 60]


def test_users_by_behaviour_see_training_items_only(tiny: Prepared) -> None:
    spans = split_sequences(tiny.sequences, SplitConfig(kind="loo")).train
    torch.manual_seed(0)
    backbone = ComiRecSA(tiny.n_items, 10, embed_dim=8)
    before = interest_vectors(backbone, tiny.sequences, spans, 10)
    np.testing.assert_allclose(np.linalg.norm(before, axis=1), 1, rtol=1e-5)
    changed = tiny.sequences.items.copy()
    changed[spans.end] = changed[spans.end] % tiny.n_items + 1  # the validation items
    after = interest_vectors(backbone, replace(tiny.sequences, items=changed), spans, 10)
    np.testing.assert_array_equal(before, after)
    both = side_by_side(before, before)
    np.testing.assert_allclose(both @ both.T, before @ before.T, atol=1e-5)


def test_typical_users_cover_better_than_random_ones(tiny: Prepared) -> None:
    data = tiny.sequences
    parts = split_sequences(data, SplitConfig(kind="loo"))
    vectors = user_vectors(
        data, parts.train, np.random.default_rng(0).normal(size=(tiny.n_items + 1, 4)).astype(np.float32)
    )
    found = {
        method: choose_typical(vectors, parts.train, n_clusters=20, budget=20, min_history=3, method=method, seed=1)
        for method in ("cluster", "random", "longest")
    }
    assert found["cluster"].coverage < found["random"].coverage
    for one in found.values():
        assert len(set(one.users["user_idx"])) == 20
        lengths = dict(zip(parts.train.user_idx, parts.train.end - parts.train.start, strict=True))
        assert all(lengths[user] >= 3 for user in one.users["user_idx"])
    again = choose_typical(vectors, parts.train, n_clusters=20, budget=20, min_history=3, seed=1)
    assert again.users.equals(found["cluster"].users)
    few = choose_typical(vectors, parts.train, n_clusters=5, budget=20, min_history=3, seed=1).users
    share = few.group_by("cluster").agg(polars.len())
    assert share["len"].sum() == 20
    assert coverage(vectors, vectors) == pytest.approx(0, abs=1e-5)
    with pytest.raises(ConfigError, match=r"typical.budget: is 9999, but only \d+ of"):
        choose_typical(vectors, parts.train, n_clusters=5, budget=9999)


def test_questions_show_training_items_only(tiny: Prepared) -> None:
    parts = split_sequences(tiny.sequences, SplitConfig(kind="loo"))
    users = parts.train.user_idx[:20].tolist()
    for one, user in zip(ask_about(tiny, parts.train, users, 6), users, strict=True):
        row = parts.train.user_idx.tolist().index(user)
        items = tiny.sequences.items[parts.train.start[row] : parts.train.end[row]][-6:]
        assert one.history == tuple(tiny.items["item_id"][int(item) - 1] for item in items)
        assert one.user_id == tiny.user_ids[user]
        assert tiny.items["title"][int(items[-1]) - 1] in one.prompt.user
