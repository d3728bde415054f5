"""Properties of reading raw data: one meaning in every format, nothing lost silently, never a traceback."""

import csv
import gzip
import io
import json
import random
import zlib
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eimf.cli.main import main
from eimf.core.errors import EimfError
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared
from eimf.data.sources.table import TableConfig, read_interactions
from eimf.data.sources.times import parse_times

texts = st.text(
    st.characters(blacklist_categories=("Cs", "Cc", "Zs", "Zl", "Zp", "Cf")), min_size=1, max_size=8
).filter(lambda text: "\ufffd" not in text and text == text.strip() and "|" not in text)
names = st.one_of(
    texts, st.sampled_from(['say "hi"', "a,b", "x\ty", "x;y", "semi;colon", "0", "007", "ünïcode", "'quoted'"])
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[tuple[str, str, int]], list[tuple[str, str, list[str], str]]]:
    """Interactions (user, item, seconds) and items (id, title, categories, brand)."""
    users, items = (
        draw(st.lists(names, min_size=1, max_size=4)),
        draw(st.lists(names, min_size=1, max_size=5, unique=True)),
    )
    rows = draw(
        st.lists(
            st.tuples(st.sampled_from(users), st.sampled_from(items), st.integers(0, 2_000_000_000)),
            min_size=1,
            max_size=12,
        )
    )
    details = [
        (item, draw(names), draw(st.lists(names, max_size=3)), draw(st.one_of(st.just(""), names))) for item in items
    ]
    return rows, details


def content(prepared: Prepared) -> tuple[str, list[dict[str, Any]], list[int]]:
    return prepared.digest, prepared.items.to_dicts(), prepared.sequences.timestamps.tolist()


def written(folder: Path, kind: str, table: Any) -> dict[str, Any]:
    """Write both tables in a format; returns the settings to read them with."""
    rows, details = table
    columns = (["user_id", "item_id", "timestamp", "note"], ["item_id", "title", "categories", "brand", "note"])
    note = 'a "note" nobody reads'
    lists = [(*row, note) for row in rows], [(*one, note) for one in details]
    flat = lists[0], [(item, title, "|".join(kinds), brand, note) for item, title, kinds, brand, _ in lists[1]]
    folder.mkdir()
    base, _, extra = kind.partition("-")
    settings_: dict[str, Any] = {}
    for part, name in enumerate(("orders", "products")):
        path = folder / f"{name}.{base}"
        settings_["interactions" if part == 0 else "items"] = str(path)
        plain = base.removesuffix(".gz")
        if plain == "parquet":
            frame = polars.DataFrame(lists[part], schema=columns[part], orient="row", infer_schema_length=None)
            if part:
                frame = frame.with_columns(polars.col("categories").cast(polars.List(polars.String)))
            frame.write_parquet(path)
            continue
        if plain == "jsonl":
            source = lists if extra != "flat" else flat
            data = "".join(
                json.dumps(dict(zip(columns[part], row, strict=True)), ensure_ascii=extra == "ascii") + "\n"
                for row in source[part]
            ).encode()
        else:
            separator = {"tsv": "\t"}.get(plain, {"semicolon": ";", "pipe": "|", "tab": "\t"}.get(extra, ","))
            settings_["separator"] = separator
            out = io.StringIO()
            writer = csv.writer(out, delimiter=separator, lineterminator="\r\n" if extra == "crlf" else "\n")
            if extra != "bare":
                writer.writerow(columns[part])
            else:
                settings_ |= {"header": False, ("columns" if part == 0 else "items_columns"): columns[part]}
            writer.writerows(flat[part])
            data = out.getvalue().encode()
        data = b"\xef\xbb\xbf" + data if extra == "bom" else data
        path.write_bytes(gzip.compress(data) if base.endswith(".gz") else data)
    return settings_


KINDS = [
    *("csv", "csv.gz", "csv-bom", "csv-crlf", "csv-semicolon", "csv-pipe", "csv-tab", "csv-bare", "tsv", "tsv.gz"),
    *("jsonl", "jsonl.gz", "jsonl-bom", "jsonl-ascii", "jsonl-flat", "parquet"),
]


@pytest.mark.slow
@settings(max_examples=15)
@given(table=tables())
def test_the_same_content_gives_the_same_data_in_every_format(
    table: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("formats")
    found = {}
    for kind in KINDS:
        options = written(home / kind, kind, table)
        dataset = TableConfig(name="t", user_min=1, item_min=1, duplicates="keep", **options)
        found[kind] = content(prepare(dataset, home / "data"))
    for kind in KINDS:
        assert found[kind] == found["csv"], kind


@given(st.datetimes(datetime(1975, 1, 1), datetime(2200, 1, 1)), st.integers(-14 * 60, 14 * 60))
def test_times_are_those_of_datetime(moment: datetime, minutes: int) -> None:
    zone = timezone(timedelta(minutes=minutes))
    wanted = int((moment.replace(tzinfo=zone) - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))
    text = moment.replace(tzinfo=zone).isoformat()
    offset = text[-6:]
    writings = [text, text.replace("T", " "), f"{text[:-6]} {offset}", text[:-6] + offset.replace(":", "")]
    if offset.endswith(":00"):
        writings.append(text[:-3])  # PostgreSQL: +05
    utc = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=wanted)
    plain = utc.replace(tzinfo=None).isoformat(sep=" ")
    writings += [
        f"{plain} UTC",
        f"{plain}Z",
        plain,
        f"{plain}+00",
        str(wanted),
        f"{wanted // 10**6}.{wanted % 10**6:06d}",
    ]
    found = parse_times(polars.Series(writings)).to_list()
    if abs(wanted) < 10**14:  # small numbers of microseconds would be read as milliseconds
        writings, found = writings[:-2], found[:-2]
    assert found == [wanted] * len(writings), dict(zip(writings, found, strict=True))
    assert parse_times(polars.Series([utc.replace(tzinfo=None)])).to_list() == [wanted]
    nano = polars.Series([wanted * 1000])
    if wanted * 1000 >= 10**17:
        assert parse_times(nano).to_list() == [wanted]


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_order_within_a_second_is_kept_and_is_no_repeat(tmp_path: Path, unit: int) -> None:
    times = [1_577_853_000 * unit + step for step in ((0, 0, 0) if unit == 1 else (7, 3, 5))]
    path = tmp_path / "o.csv"
    path.write_text("user_id,item_id,timestamp\n" + "".join(f"u,i,{time}\n" for time in times))
    prepared = prepare(TableConfig(name="t", interactions=str(path), user_min=1, item_min=1), tmp_path / "data")
    # Nanoseconds are cut to microseconds: there these three are one.
    kept = {1: 1, 10**9: 1}.get(unit, 3)
    assert prepared.sequences.lengths.tolist() == [kept]
    assert (prepared.sequences.timestamps[:-1] < prepared.sequences.timestamps[1:]).all()


@pytest.mark.parametrize(
    ("orders", "products"),
    [
        (["7", "8"], ["7", "8"]),
        (["7.0", "8.0"], ["7", "8"]),
        (["7", "8"], ["7.0", "8.0"]),
        (["7", "8"], ["007", "008"]),
        (["0007", "0008"], ["7", "8"]),
        ([7, 8], [7.0, 8.0]),
        ([7.0, None, 8.0], ["7", "8", "9"]),
    ],
)
def test_ids_match_as_numbers(tmp_path: Path, orders: list[Any], products: list[Any]) -> None:
    rows = polars.DataFrame(
        {"user_id": ["u"] * len(orders), "item_id": orders, "timestamp": range(len(orders))}, strict=False
    )
    rows.write_parquet(tmp_path / "o.parquet")
    items = polars.DataFrame({"item_id": products, "title": [f"T{float(one):.0f}" for one in products]})
    items.write_parquet(tmp_path / "p.parquet")
    dataset = TableConfig(
        name="t", interactions=str(tmp_path / "o.parquet"), items=str(tmp_path / "p.parquet"), user_min=1, item_min=1
    )
    assert prepare(dataset, tmp_path / "data").items["title"].to_list() == ["T7", "T8"]


def test_a_table_of_other_items_is_an_error_that_shows_both_sides(tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("user_id,item_id,timestamp\nu,B001,1\n")
    (tmp_path / "p.csv").write_text("item_id,title\nx-1,Pan\n")
    dataset = TableConfig(
        name="t", interactions=str(tmp_path / "o.csv"), items=str(tmp_path / "p.csv"), user_min=1, item_min=1
    )
    with pytest.raises(EimfError, match=r"none of the 1 items .*'item_id' look like 'B001' .* and like 'x-1'"):
        prepare(dataset, tmp_path / "data")
    (tmp_path / "p.csv").write_text("item_id,name\nB001,Pan\n")
    with pytest.raises(EimfError, match=r"has no column 'title'; it has 'item_id', 'name'\. .*title_column"):
        prepare(dataset, tmp_path / "data")


def mangled(rng: random.Random, data: bytes) -> bytes:
    """Some bytes of a file changed, cut, doubled or spliced with what files hold when they go wrong."""
    pieces = [b'"', b"\x00", b"\r", b"\n", b",", b"\xff", b"\xef\xbb\xbf", "\u2028\u0085".encode(), b"{", b"[" * 2000]
    pieces += [b"9" * 400, b"1e999", b"NaN", b"\x1f\x8b\x08", b"'", b"\\", b"null", b'{"a":' * 300, b"\xed\xa0\x80"]
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(4)
        if how == 0:
            data = data[:at] + rng.choice(pieces) + data[at:]
        elif how == 1:
            data = data[:at]
        elif how == 2:
            end = min(len(data), at + rng.randint(1, 20))
            data = data[:at] + bytes(rng.randrange(256) for _ in range(end - at)) + data[end:]
        else:
            data = data[:at] + data[at // 2 : at] + data[at:]
    return data


def fuzz_prepare(seed: int, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prepare mangled files: status 0 or 2, one line where it is 2, and rows in = rows kept + rows counted."""
    rng = random.Random(seed)
    rows = [(f"u{rng.randrange(4)}", f"i{rng.randrange(6)}", rng.randrange(10**9)) for _ in range(30)]
    details = [(f"i{item}", f"Thing {item}", ["A", "B"][: rng.randrange(3)], "") for item in range(6)]
    kind = rng.choice(["csv", "csv.gz", "tsv", "jsonl", "jsonl.gz", "parquet"])
    options = written(home, kind, (rows, details))
    victim = Path(options[rng.choice(["interactions", "items"])])
    data = victim.read_bytes()
    if kind.endswith(".gz") and rng.random() < 0.5:
        victim.write_bytes(gzip.compress(mangled(rng, gzip.decompress(data))))
    else:
        victim.write_bytes(mangled(rng, data))
    arguments = [f"dataset.{name}={value}" for name, value in options.items() if name in ("interactions", "items")]
    arguments += ["dataset.source=table", "dataset.name=f", "dataset.user_min=1", "dataset.item_min=1"]
    status = main(["prepare", *arguments, f"data.root={home / 'data'}"])
    captured = capsys.readouterr()
    assert status in (0, 2), (seed, captured.err)
    if status == 2:
        assert captured.err.count("\n") == 1, (seed, captured.err)
        assert "Traceback" not in captured.err
        return
    dataset = TableConfig(name="f", interactions=options["interactions"], separator=options.get("separator", ","))
    repairs: dict[str, int] = {}
    kept = len(read_interactions(dataset, Path(options["interactions"]), repairs))
    if kind.startswith(("csv", "tsv")) and not kind.endswith("gz"):
        text = (
            victim.read_bytes()
            if str(victim) == options["interactions"]
            else Path(options["interactions"]).read_bytes()
        )
        # Python's csv module refuses a lone carriage return; ours takes it as a character of its cell.
        lines = text.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", " ").split("\n")
        parsed = [row for row in csv.reader(f"{line}\n" for line in lines) if any(cell.strip() for cell in row)]
        dropped = sum(count for what, count in repairs.items() if "(dropped)" in what)
        assert kept + dropped == len(parsed) - 1 or kind == "tsv", (seed, repairs)


@pytest.mark.slow
def test_mangled_files_give_one_line_or_counted_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(60):
        fuzz_prepare(seed, tmp_path / str(seed), capsys)


@pytest.mark.fuzz
def test_many_mangled_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(60, 1060):
        fuzz_prepare(seed, tmp_path / str(seed), capsys)


def test_a_compressed_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eimf.data.sources.lines.LINE_BYTES", 2**16)
    monkeypatch.setattr("eimf.data.sources.lines.BLOCK_BYTES", 2**16)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    path = tmp_path / "o.jsonl.gz"
    path.write_bytes(packer.compress(b'{"user_id": "' + b"a" * 2**20) + packer.flush())
    dataset = TableConfig(name="t", interactions=str(path))
    with pytest.raises(EimfError, match=r"has a line of more than 65,536 bytes"):
        prepare(dataset, tmp_path / "data")
