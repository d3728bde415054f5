"""What a run was trained on is not held out in a run that starts from it."""

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import polars
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eimf.config.load import load
from eimf.config.schema import SplitConfig
from eimf.core.artifacts import Manifest
from eimf.core.errors import ArtifactError, ConfigError, DataError
from eimf.data.prepared import Prepared, Sequences
from eimf.data.splits import Holdout, Split, split_sequences
from eimf.runs.trained_on import TRAINED_ON, check_held_out, read_trained_on, trained_on, write_trained_on
from eimf.training.train import train
from tests.conftest import TINY

Row = tuple[str, str, int]
"""User, item, time."""
YEAR_2020 = 1_577_836_800


def prepared(rows: Sequence[Row]) -> Prepared:
    """Prepared data of these interactions."""
    users, items = sorted({row[0] for row in rows}), sorted({row[1] for row in rows})
    ordered = sorted(rows, key=lambda row: (row[0], row[2]))
    number = {item: place for place, item in enumerate(items, 1)}
    lengths = [sum(row[0] == user for row in rows) for user in users]
    sequences = Sequences(
        np.array([number[row[1]] for row in ordered], np.int32),
        np.array([row[2] for row in ordered], np.int64),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )
    table = polars.DataFrame({"item_id": items})
    return Prepared(Path(), Manifest("prepared", "", {}, {}, {}), sequences, polars.Series("user_id", users), table)


def parts(rows: Sequence[Row], kind: str) -> tuple[Prepared, Split, list[Row], list[Row]]:
    """Data, their split, and the interactions that are trained on and held out."""
    data = prepared(rows)
    split = split_sequences(data.sequences, SplitConfig(kind=kind, validation=0.2, test=0.2))  # pyright: ignore[reportArgumentType]
    ordered = sorted(rows, key=lambda row: (row[0], row[2]))
    spans = zip(split.train.start, split.train.end, strict=True)
    trained = [row for start, end in spans for row in ordered[start:end]]
    held: list[Row] = []
    for part in (split.validation, split.test):
        assert isinstance(part, Holdout)
        held += [row for cut, end in zip(part.cut, part.end, strict=True) for row in ordered[cut:end]]
    return data, split, trained, held


interactions = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("uvwxyz"), st.integers(0, 30)), min_size=9, max_size=40
)


@given(interactions, st.data(), st.sampled_from(["loo", "time"]))
def test_runs_are_refused_exactly_if_something_held_out_was_trained_on(
    rows: list[Row], data: st.DataObject, kind: str
) -> None:
    rows = [(user, item, YEAR_2020 + time) for user, item, time in rows]
    if kind == "loo":
        rows = list(dict.fromkeys(rows))  # of equal interactions, nobody can say which one was trained on
    then, now = ([row for row in rows if data.draw(st.booleans())] for _ in range(2))
    try:
        before, split, trained, _ = parts(then, kind)
        today, split_today, _, held = parts(now, kind)
    except (DataError, ValueError):  # nothing to split
        assume(False)
        return
    record = trained_on(before, split, kind)
    assert record is not None
    wrong = min(row[2] for row in held) <= max(row[2] for row in trained) if kind == "time" else {*held} & {*trained}
    with pytest.raises(ConfigError, match=r"^[^\n]+held out here[^\n]+$") if wrong else nullcontext():
        check_held_out("run", record, today, split_today, kind)


@given(interactions)
def test_the_same_data_and_data_that_grew_are_accepted(rows: list[Row]) -> None:
    rows = [(user, item, YEAR_2020 + time) for user, item, time in rows]
    grown = [*rows, *((user, "u", YEAR_2020 + 100 + k) for user in "abc" for k in range(3))]
    try:
        before, split, *_ = parts(rows, "loo")
    except DataError:
        assume(False)
        return
    record = trained_on(before, split, "loo")
    assert record is not None
    check_held_out("run", record, before, split, "loo")  # equal interactions differ by their number
    enough = {user for user in "abc" if sum(row[0] == user for row in rows) >= 3}
    today, split_today, *_ = parts([row for row in grown if row[0] in enough], "loo")
    check_held_out("run", record, today, split_today, "loo")


def test_seconds_and_microseconds_are_the_same_times() -> None:
    rows = [(user, item, YEAR_2020 + place) for user in "ab" for place, item in enumerate("uvwxyz")]
    before, split, *_ = parts(rows[:5] + rows[6:], "loo")
    record = trained_on(before, split, "loo")
    assert record is not None
    fewer = [(user, item, time * 1_000_000 + 1 * (user == "b")) for user, item, time in rows if item not in "yz"]
    today, split_today, *_ = parts(fewer, "loo")
    with pytest.raises(ConfigError, match=r"trained on 1 of the 4 interactions .* such as one of user 'a'"):
        check_held_out("run", record, today, split_today, "loo")


def test_a_record_is_kept_with_that_of_the_earlier_run(tmp_path: Path) -> None:
    rows = [(user, item, YEAR_2020 + place) for user in "ab" for place, item in enumerate("uvwxyz")]
    first, second = (parts(some, "loo") for some in (rows, [(u, i, t + 9) for u, i, t in rows]))
    one, two = (trained_on(data, split, "loo") for data, split, *_ in (first, second))
    assert one is not None
    assert two is not None
    both = two.and_those_of(one)
    assert len(both.hashes) == len(one.hashes) + len(two.hashes)
    for folder in (tmp_path, tmp_path / "damaged", tmp_path / "earlier_version"):
        folder.mkdir(exist_ok=True)
        about = {"trained_on_sha256": write_trained_on(folder, both)}
        (folder / "run.json").write_text(json.dumps(about if folder.name != "earlier_version" else {}))
    found = read_trained_on(tmp_path)
    assert found is not None
    assert found.until == max(one.until, two.until)
    np.testing.assert_array_equal(found.hashes, both.hashes)
    assert read_trained_on(tmp_path / "earlier_version") is None
    path = tmp_path / "damaged" / TRAINED_ON
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"trained_on.npz: changed since it was written; restore it"):
        read_trained_on(tmp_path / "damaged")
    path.unlink()
    with pytest.raises(ArtifactError, match=r"trained_on.npz: missing or unreadable"):
        read_trained_on(tmp_path / "damaged")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("time", r"was trained on interactions until 20\d\d-.*, but they are held out here from 20\d\d-.* on"),
        ("loo", r"was trained on \d+ of the \d+ interactions that are held out here, such as one of user 'u0"),
    ],
)
@pytest.mark.slow
def test_a_run_does_not_start_from_a_run_on_newer_data(
    kind: str, message: str, tiny: Prepared, data_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = tiny.interactions()
    kept = rows.filter(polars.int_range(polars.len()).over("user_id") < polars.len().over("user_id") - 3)
    early = rows.filter(polars.col("timestamp") < rows["timestamp"].quantile(0.6)) if kind == "time" else kept
    for name, table in {"today": rows, "before": early}.items():
        table.write_parquet(tmp_path / f"{name}.parquet")

    def run(name: str, *more: str) -> Path:
        data = ["dataset.source=table", f"dataset.name={name}", f"dataset.interactions={tmp_path}/{name}.parquet"]
        data += ["dataset.user_min=1", "dataset.item_min=1", f"split.kind={kind}", "trainer.max_epochs=0"]
        settings = [*(one for one in TINY if not one.startswith("dataset.")), *data, *more]
        return train(load(None, [*settings, f"data.root={data_root}", f"logger.root={tmp_path}/logs"])).folder

    today = run("today")
    with pytest.raises(ConfigError, match=message):
        run("before", f"start={today}")
    before = run("before")
    warm = run("today", f"start={before}")
    assert "does not say" not in caplog.text
    one, two = read_trained_on(today), read_trained_on(warm)
    assert one is not None
    assert two is not None
    assert (one.until, len(one.hashes)) == (two.until, len(two.hashes))  # of the earlier run, all were known
    about = json.loads((today / "run.json").read_text())
    del about["trained_on_sha256"]
    (today / "run.json").write_text(json.dumps(about))
    caplog.set_level(logging.WARNING, "eimf")
    run("before", f"start={today}")
    assert f"start: {today} does not say what it was trained on" in caplog.text
