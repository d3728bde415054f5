"""Raw files of all formats, good and bad, through `prepare`."""

import gzip
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest

from eimf.core.errors import ConfigError, DataError
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.data.sources import demo, table
from eimf.data.sources.amazon import AmazonConfig
from eimf.data.sources.base import clean_interactions, clean_items
from eimf.data.sources.demo import DemoConfig
from eimf.data.sources.movielens import MovieLensConfig
from eimf.data.sources.table import TableConfig

LOOSE: dict[str, Any] = {"user_min": 1, "item_min": 1}


def own(path: Path, items: Path | None = None, **options) -> TableConfig:
    return TableConfig(name="own", interactions=str(path), items=str(items or ""), **{**LOOSE, **options})


def rows_of(prepared: Prepared) -> list[tuple[str, str, int]]:
    ids, sequences = prepared.items["item_id"], prepared.sequences
    return [
        (prepared.user_ids[user], ids[int(sequences.items[at]) - 1], int(sequences.timestamps[at]))
        for user in range(sequences.n_users)
        for at in range(sequences.offsets[user], sequences.offsets[user + 1])
    ]


ROWS = [("b", "y", 5), ("a", "x", 3), ("a", "y", 1), ("a", "z", 2), ("b", "x", 4)]
EXPECTED = [("a", "y", 1), ("a", "z", 2), ("a", "x", 3), ("b", "x", 4), ("b", "y", 5)]


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "jsonl", "jsonl.gz", "parquet"])
def test_own_tables_in_every_format_and_with_other_column_names(tmp_path: Path, kind: str) -> None:
    frame = polars.DataFrame(ROWS, schema=["who", "what", "when"], orient="row")
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        frame.write_parquet(path)
    else:
        text = frame.write_ndjson() if "json" in kind else frame.write_csv(separator="\t" if kind == "tsv" else ",")
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    items = tmp_path / "items.csv"
    items.write_text("what,title,categories,brand\nx,An X,Tools|Saws,Acme\ny,A Y,,\n")
    names = {"user_column": "who", "item_column": "what", "timestamp_column": "when"}
    prepared = prepare(own(path, items, **names), tmp_path / "data")
    assert rows_of(prepared) == EXPECTED
    named = {row["item_id"]: row for row in prepared.items.to_dicts()}
    assert (named["x"]["title"], named["x"]["categories"], named["x"]["brand"]) == ("An X", ["Tools", "Saws"], "Acme")
    assert (named["y"]["categories"], named["z"]["title"]) == ([], "")
    assert prepared.manifest.repairs["items without a title"] == 1


def test_item_jsonl_with_category_lists(tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("user_id,item_id,timestamp\nu,1,1\nu,2,2\n")
    items = tmp_path / "items.jsonl"
    items.write_text('{"item_id": "1", "title": "One", "categories": ["A", "B"], "brand": null}\n{"item_id": 2}\n')
    prepared = prepare(own(rows, items), tmp_path / "data")
    assert prepared.items["categories"].to_list() == [["A", "B"], []]
    assert prepared.categories.tolist() == [0, 1, 0]


def test_ids_by_frequency_then_id_and_stable_under_row_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = polars.DataFrame(
        {"user_id": rng.integers(0, 9, 200), "item_id": rng.integers(0, 15, 200), "timestamp": range(200)}
    )
    found = []
    for order in range(2):
        path = tmp_path / f"{order}.csv"
        (frame if order == 0 else frame.sample(fraction=1, shuffle=True, seed=1)).write_csv(path)
        found.append(prepare(own(path), tmp_path / "data"))
    assert found[0].items.equals(found[1].items)
    assert found[0].digest == found[1].digest
    counts = np.bincount(found[0].sequences.items)[1:]
    assert (np.diff(counts) <= 0).all()
    ids = found[0].items["item_id"].to_list()
    assert all(ids[i] < ids[i + 1] for i in range(len(ids) - 1) if counts[i] == counts[i + 1])


def test_dirty_rows_are_counted_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "dirty.csv"
    path.write_bytes(
        b"user_id,item_id,timestamp\n"
        b"a,x,3\n"
        b" a ,y,2020-01-02 03:04:05\n"  # trims to a known id; time as text
        b"a,x,3\n"  # repeats
        b",x,4\n"  # no user
        b"a,,4\n"  # no item
        b"a,z,soon\n"  # no time
        b"b,\xff,2\n"  # not UTF-8
        b"b,y,1.9\n"  # out of order, fraction of a second
        b"b,x,1e1\n"
    )
    prepared = prepare(own(path), tmp_path / "data")
    assert rows_of(prepared) == [
        ("a", "x", 3_000_000),  # microseconds, as one time is finer than seconds
        ("a", "y", 1577934245_000_000),
        ("b", "y", 1_900_000),
        ("b", "\ufffd", 2_000_000),
        ("b", "x", 10_000_000),
    ]
    repairs = prepared.manifest.repairs
    assert repairs["rows without a user, an item or a readable time (dropped)"] == 3
    assert repairs["rows that repeat user, item and time (dropped)"] == 1
    assert repairs["user_ids that differed from another one by outer spaces only"] == 1
    assert repairs["item_ids with bytes that are not UTF-8"] == 1
    assert repairs["rows out of time order (sorted)"] == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2020-01-02T03:04:05Z", 1577934245),
        ("2020-01-02T03:04:05.250", 1577934245.25),
        ("2020-01-02 03:04:05+01:00", 1577934245 - 3600),
        ("2020-01-02", 1577923200),
        ("1577934245", 1577934245),
    ],
)
def test_times_as_text(text: str, seconds: float) -> None:
    rows = polars.DataFrame({"user_id": ["u", "v"], "item_id": ["i", "i"], "timestamp": [text, "1"]})
    assert clean_interactions([rows], "rows", {}).time.tolist() == [1e6 * seconds, 1e6]


def test_no_time_column_keeps_the_order_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("user_id,item_id\na,z\na,x\na,y\n")
    assert [row[1] for row in rows_of(prepare(own(path, timestamp_column=""), tmp_path / "data"))] == ["z", "x", "y"]


def test_tied_times_keep_the_order_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("user_id,item_id,timestamp\na,z,5\na,x,5\na,y,5\na,w,1\n")
    assert [row[1] for row in rows_of(prepare(own(path), tmp_path / "data"))] == ["w", "z", "x", "y"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"user_id,item_id,timestamp\n", "holds no interactions"),
        (b"user_id;item_id;timestamp\na;b;1\n", r"has no column 'user_id', 'item_id', 'timestamp'.*dataset.separator"),
        (b"user_id,item_id,timestamp\na,b,never\n", "no row has a user, an item and a time"),
        (b"user_id,item_id,timestamp\na,b,1\n", "no user survives the iterative core filter"),
    ],
)
def test_unusable_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        prepare(own(path, user_min=2), tmp_path / "data")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").glob("prepared/*"))  # nothing half-written


@pytest.mark.parametrize("name", ["bad.csv.gz", "bad.jsonl.gz", "bad.parquet", "bad.jsonl"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"x" * 1000)[:40] if name.endswith("gz") else b"\x00\x01garbage\n")
    with pytest.raises(DataError, match=name):
        prepare(own(path), tmp_path / "data")


def test_titles_are_one_clean_line() -> None:
    repairs: dict[str, int] = {}
    rows = polars.DataFrame(
        {"item_id": ["1", "1", " 2", ""], "title": ["A\x1b[31m\nB\u202e  C", "again", None, "none"]}
    )
    out = clean_items(rows, repairs)
    assert out["title"].to_list() == ["A [31m B C", ""]
    assert out["item_id"].to_list() == ["1", "2"]
    assert repairs == {
        "item rows without an id (dropped)": 1,
        "item rows that repeat an id (first kept)": 1,
        "titles with control characters (replaced by a space)": 1,
    }


def test_amazon_2014_with_python_literals(tmp_path: Path) -> None:
    reviews = [
        {"reviewerID": f"R{u}", "asin": f"B{i}", "unixReviewTime": 100 * u + i, "reviewText": "x"}
        for u in range(3)
        for i in range(3)
    ]
    lines = [json.dumps(row) for row in reviews] + ["{broken"]
    (tmp_path / "reviews.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    meta = [
        {"asin": "B0", "title": 'It\'s a "Brush"', "categories": [["Beauty", "Brushes"], ["Other"]], "brand": "Acme"},
        {"asin": "B1", "price": 3.0},
    ]
    (tmp_path / "meta.json.gz").write_bytes(gzip.compress("\n".join(map(repr, meta)).encode()))
    config = AmazonConfig(
        name="amz",
        format="2014",
        interactions=str(tmp_path / "reviews.json.gz"),
        items=str(tmp_path / "meta.json.gz"),
        **LOOSE,
    )
    prepared = prepare(config, tmp_path / "data")
    assert prepared.items.row(0) == (1, "B0", 'It\'s a "Brush"', ["Beauty", "Brushes"], "Acme")
    assert prepared.sequences.lengths.tolist() == [3, 3, 3]
    assert prepared.manifest.repairs["lines that are neither JSON nor a Python literal (dropped)"] == 1
    with pytest.raises(ConfigError, match="dataset.format: must be one of 2014, 2018, 2023"):
        prepare(replace(config, format="2020"), tmp_path / "data")


MOMENT_MS = 1577934245_250


@pytest.mark.parametrize("release", ["2018", "2023"])
def test_amazon_later_releases(tmp_path: Path, release: str) -> None:
    if release == "2018":
        rows = [{"reviewerID": "R", "asin": f"B{i}", "unixReviewTime": i} for i in range(3)]
        meta = [{"asin": "B0", "title": "T", "category": ["A", "B"], "brand": "Acme"}]
    else:
        rows = [{"user_id": "R", "asin": "v", "parent_asin": f"B{i}", "timestamp": MOMENT_MS + i} for i in range(3)]
        meta = [{"parent_asin": "B0", "title": "T", "categories": ["A", "B"], "store": "Acme"}]
    for name, content in (("reviews", rows), ("meta", meta)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    config = AmazonConfig(
        name="amz",
        format=release,
        interactions=str(tmp_path / "reviews.jsonl"),
        items=str(tmp_path / "meta.jsonl"),
        **LOOSE,
    )
    prepared = prepare(config, tmp_path / "data")
    times = [0, 1, 2] if release == "2018" else [1000 * (MOMENT_MS + i) for i in range(3)]  # seconds; microseconds
    assert rows_of(prepared) == [("R", f"B{i}", time) for i, time in enumerate(times)]
    assert prepared.items.row(0) == (1, "B0", "T", ["A", "B"], "Acme")


@pytest.mark.parametrize("release", ["100k", "1m"])
def test_movielens(tmp_path: Path, release: str) -> None:
    if release == "100k":
        files = {
            "ml-100k/u.data": "1\t7\t5\t30\n1\t8\t3\t20\n",
            "ml-100k/u.item": "7|Caf\xe9 (1995)|||url|0|1" + "|0" * 17 + "\n",
        }
    else:
        files = {
            "ml-1m/ratings.dat": "1::7::5::30\n1::8::3::20\n",
            "ml-1m/movies.dat": "7::Caf\xe9 (1995)::Action|Drama\n",
        }
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text.encode("latin-1"))
    config = MovieLensConfig(name="ml", format=release, interactions=str(tmp_path / "ml.zip"), **LOOSE)
    prepared = prepare(config, tmp_path / "data")
    assert rows_of(prepared) == [("1", "8", 20), ("1", "7", 30)]
    assert prepared.items.filter(polars.col("item_id") == "7")["title"].item() == "Café (1995)"
    (tmp_path / "ml.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="no complete MovieLens archive"):
        prepare(config, tmp_path / "data")


def test_demo_is_seeded_and_keeps_true_interests() -> None:
    first, again = demo.simulate(DemoConfig(n_users=200)), demo.simulate(DemoConfig(n_users=200))
    rows = first.interactions.frame()
    assert rows.equals(again.interactions.frame())
    assert first.items.equals(again.items)
    other = demo.simulate(DemoConfig(n_users=200, seed=1))
    assert not rows.equals(other.interactions.frame())
    noise = (rows["interest"] == demo.NOISE).mean()
    assert isinstance(noise, float)
    assert 0.03 < noise < 0.15
    # A true interest is a theme: apart from noise all its items are of one department.
    joined = rows.filter(polars.col("interest") >= 0).join(first.items, on="item_id")
    departments = joined.group_by("interest").agg(polars.col("categories").list.first().n_unique())
    assert (departments["categories"] == 1).all()
    per_user = rows.filter(polars.col("interest") >= 0).group_by("user_id").agg(polars.col("interest").n_unique())
    assert per_user["interest"].max() >= 3  # pyright: ignore[reportOptionalOperand, reportOperatorIssue]


def test_demo_has_the_promised_size(data_root: Path) -> None:
    counts = prepare(DemoConfig(), data_root).manifest.counts
    assert 2800 < counts["users"] < 3400
    assert 1400 < counts["items"] < 1700
    assert prepare(DemoConfig(), data_root).sequences.interests is not None


def test_table_reader_without_items(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("user_id,item_id,timestamp\na,b,1\n")
    assert table.read(own(path), path, None).items.is_empty()


def test_what_is_no_id_is_none_in_json_lines_and_parquet(tmp_path: Path) -> None:
    lines = [
        '{"user_id": "u", "item_id": ["c"], "timestamp": 1}',
        '{"user_id": true, "item_id": "a", "timestamp": 2}',
        '{"user_id": "u", "item_id": {"a": 1}, "timestamp": 3}',
        '{"user_id": "u\\ud800", "item_id": "[a]", "timestamp": 4}',
    ]
    (tmp_path / "o.jsonl").write_text("\n".join(lines))
    repairs: dict[str, int] = {}
    rows = table.read_interactions(TableConfig(name="t"), tmp_path / "o.jsonl", repairs)
    assert rows.user_ids[rows.user].to_list() == ["u?"]
    assert rows.item_ids[rows.item].to_list() == ["[a]"]
    assert repairs == {"rows without a user, an item or a readable time (dropped)": 3}
    frame = polars.DataFrame({"user_id": ["u", "u"], "item_id": [1.0, float("nan")], "timestamp": [1, 2]})
    frame.write_parquet(tmp_path / "o.parquet")
    rows = table.read_interactions(TableConfig(name="t"), tmp_path / "o.parquet", repairs)
    assert rows.item_ids[rows.item].to_list() == ["1"]
