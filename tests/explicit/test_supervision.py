"""Labels as supervision: what a training step may use of them, controls, propagation and links."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars
import pytest
import torch

from eimf.config.schema import EIMFConfig, SplitConfig
from eimf.core.errors import LabelError
from eimf.data.batch import TrainingBatches
from eimf.data.prepared import Prepared
from eimf.data.splits import Spans, split_sequences
from eimf.data.text import TextVectors
from eimf.explicit.controls import mixed_groups, shuffled, shuffled_links, take_share
from eimf.explicit.item_interests import link_items
from eimf.explicit.load import load_links, load_supervision
from eimf.explicit.propagation import propagate
from eimf.explicit.sampling import LabelledSampler
from eimf.explicit.supervision import Supervision, build_supervision, match_labels, names_of
from eimf.explicit.tasks import ExplicitTasks
from eimf.labels.label import Label
from eimf.labels.prompts import Interest
from eimf.labels.typical import user_vectors
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
    sampler = LabelledSampler(
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
        samples = sampler.sample(generator)
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


def test_shared_interests_keep_every_rule(tiny: Prepared) -> None:
    """Receivers are unlabelled training users; the words come from training labels; no item of theirs is from the
    future; nothing predicts an item that it was made from."""
    parts = split_sequences(tiny.sequences, SplitConfig(kind="user"))
    labelled = supervised(tiny, parts.train)
    some = take_rows(labelled, 20)
    random = np.random.default_rng(0)
    items = random.normal(size=(tiny.n_items + 1, 8)).astype(np.float32)
    flat = tiny.sequences.items
    users = user_vectors(tiny.sequences, parts.train, items)
    made = propagate(some, parts.train, flat, items, users)
    received = slice(len(some), None)
    assert len(made) > 2 * len(some)
    assert len(set(made.span_row.tolist())) == len(made)
    assert set(made.user_idx.tolist()) <= set(parts.train.user_idx.tolist())
    assert (made.weight[: len(some)] == 1).all()
    assert ((made.weight[received] > 0) & (made.weight[received] <= 1.0001)).all()
    start, end = (torch.from_numpy(part)[made.span_row] for part in (parts.train.start, parts.train.end))
    real = made.items >= 0
    assert ((made.items >= start[:, None, None]) | ~real).all()
    assert ((made.items < end[:, None, None]) | ~real).all()
    counts = real[received].sum(dim=(1, 2))
    torch.testing.assert_close(counts, (end - start)[received])  # each of a receiver's items shows one interest
    own_words = {tuple(row.tolist()) for row in some.vectors.flatten(0, 1)}
    assert {tuple(row.tolist()) for row in made.vectors[received].flatten(0, 1)} <= own_words
    whole = torch.tensor(flat, dtype=torch.long)
    sampler = LabelledSampler(whole, parts.train, made, size=300, max_len=10, only_after=False)
    samples = sampler.sample(torch.Generator().manual_seed(0))
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
    labels = LabelledSampler(items, parts.train, made, size=4, every=every, max_len=5, only_after=False)
    supplied = list(TrainingBatches(items, parts.train, **options, labels=labels))
    tasks = ExplicitTasks(made, 8, prediction="none", every=every)
    assert [one.labelled is not None for one in supplied] == [
        bool(tasks.weights_at(0, n)) for n in range(len(supplied))
    ]
    for one, plain in zip(supplied, TrainingBatches(items, parts.train, **options), strict=True):
        assert torch.equal(one.history, plain.history)


def test_labelled_samples_end_with_their_epochs(tiny: Prepared) -> None:
    """When the tasks end, so do their samples."""
    spans = split_sequences(tiny.sequences, SplitConfig(kind="user")).train
    items, made = torch.tensor(tiny.sequences.items, dtype=torch.long), supervised(tiny, spans)
    sampler = LabelledSampler(items, spans, made, size=4, every=2, epochs=3, max_len=5, only_after=False)
    tasks = ExplicitTasks(made, 8, prediction="none", every=2, epochs=3)
    on = [[sampler.is_on(epoch, step) for step in range(4)] for epoch in range(5)]
    assert on == [[True, False, True, False]] * 3 + [[False] * 4] * 2
    assert on == [[bool(tasks.weights_at(epoch, step)) for step in range(4)] for epoch in range(5)]


def test_what_the_history_shows_is_looked_up_if_wanted(tiny: Prepared) -> None:
    spans = split_sequences(tiny.sequences, SplitConfig(kind="user")).train
    items, made = torch.tensor(tiny.sequences.items, dtype=torch.long), supervised(tiny, spans)
    found = []
    for shown in (True, False):
        sampler = LabelledSampler(items, spans, made, size=50, max_len=5, only_after=False, shown=shown)
        found.append(sampler.sample(torch.Generator().manual_seed(0)))
    assert (found[0].shown >= 0).any()
    assert (found[1].shown == -1).all()
    assert torch.equal(found[0].history, found[1].history)


def test_sampling_follows_the_weights(tiny: Prepared) -> None:
    parts = split_sequences(tiny.sequences, SplitConfig(kind="user"))
    made = take_rows(supervised(tiny, parts.train), 3)
    made = replace(made, weight=torch.tensor([1.0, 0.5, 0.0]))
    items = torch.tensor(tiny.sequences.items, dtype=torch.long)
    sampler = LabelledSampler(items, parts.train, made, size=6000, max_len=5, only_after=False)
    sampled = sampler.sample(torch.Generator().manual_seed(0)).user_idx
    shares = [(sampled == user).double().mean().item() for user in made.user_idx]
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
    """The words of others, or items assigned at random, must not come with fewer positions or groups."""
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


def test_supervision_is_made_from_labels_as_the_options_say(tiny: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(texts, *_) -> TextVectors:
        vectors = np.stack([np.random.default_rng(len(text) + sum(text.encode())).normal(size=8) for text in texts])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return TextVectors(Path(), vectors.astype(np.float32), "")

    def encode_all(items: polars.DataFrame, *_) -> TextVectors:
        vectors = encode(items["title"]).vectors
        return TextVectors(Path(), np.concatenate([np.zeros_like(vectors[:1]), vectors]), "")

    monkeypatch.setattr("eimf.explicit.load.encode_texts", encode)
    monkeypatch.setattr("eimf.explicit.load.encode_items", encode_all)
    monkeypatch.setattr("eimf.explicit.load.item_vectors", encode_all)
    spans, labels = split_sequences(tiny.sequences, SplitConfig(kind="user")).train, labels_of(tiny)

    def made(seed: int = 0, **options) -> Supervision:
        return load_supervision(labels, tiny, spans, EIMFConfig(**options), encoder="any", root="any", seed=seed)

    plain = made()
    assert len(plain) == len(match_labels(labels, tiny, spans).rows)
    fewer = made(share=0.25)
    assert 0 < len(fewer) < len(plain) / 2
    assert set(fewer.user_idx.tolist()) < set(plain.user_idx.tolist())
    assert set(made(seed=1, share=0.25).user_idx.tolist()) != set(fewer.user_idx.tolist())
    for control in ("shuffle", "mix", "both"):
        other = made(control=control)
        assert torch.equal(other.user_idx, plain.user_idx)
        assert torch.equal(other.vectors, plain.vectors) == (control == "mix")
        assert torch.equal(other.groups, plain.groups) == (control == "shuffle")
        links, mixed = (
            load_links(plain, tiny, EIMFConfig(control=one, linked=3), encoder="any", root="any")
            for one in ("none", control)
        )
        assert links.interest.shape == (tiny.n_items + 1, 3)
        assert torch.equal(links.interest, mixed.interest) == (control == "mix")
    shared = made(share=0.25, propagate=True)
    assert torch.equal(shared.user_idx[: len(fewer)], fewer.user_idx)
    assert len(shared) > 2 * len(fewer)


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


def test_items_are_linked_to_the_interests_nearest_to_their_titles() -> None:
    rng = np.random.default_rng(0)
    names = rng.normal(size=(9, 5)).astype(np.float32)
    names /= np.linalg.norm(names, axis=1, keepdims=True)
    titles = np.concatenate([np.zeros((1, 5), np.float32), names[[4, 2, 7]]])
    links = link_items(titles, names, most=3, temperature=0.05)
    assert links.interest[1:, 0].tolist() == [4, 2, 7]
    torch.testing.assert_close(links.share.sum(dim=1), torch.ones(4))
    assert (links.share[1:, 0] > links.share[1:, 1]).all()
    profiles = links.profiles()
    assert profiles.shape == (4, 9)
    assert profiles[1:].argmax(axis=1).tolist() == [4, 2, 7]
    assert link_items(titles, names, most=20, temperature=0.05).interest.shape == (4, 9)


def test_shuffled_links_are_those_of_other_items() -> None:
    links = link_items(np.eye(6, 4, dtype=np.float32), np.eye(4, dtype=np.float32), most=1, temperature=0.05)
    mixed = shuffled_links(links._replace(interest=torch.arange(6)[:, None]), seed=3)
    assert mixed.interest[0].item() == 0
    assert sorted(mixed.interest[1:, 0].tolist()) == [1, 2, 3, 4, 5]
    assert (mixed.interest[1:, 0] != torch.arange(1, 6)).all()
