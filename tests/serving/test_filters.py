"""Conditions on columns of the items."""

from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest

from eimf.core.errors import ConfigError, DataError
from eimf.serving.filters import allowed_items, filter_key, join_columns, parse_conditions, read_columns, typed

ITEMS = polars.DataFrame(
    {
        "item_idx": [1, 2, 3, 4],
        "item_id": ["a", "b", "c", "d"],
        "title": ["A", "B", "C", "D"],
        "categories": [["Make-up", "Lipstick"], ["Make-up", "Gloss"], [], None],
        "brand": ["X", None, "Y", "X"],
        "stock": [3, 0, None, 7],
        "price": [9.5, float("nan"), 2.0, 1.0],
        "new": [True, False, None, True],
    }
)


@pytest.mark.parametrize(
    ("allow", "deny", "wanted"),
    [
        (["b", "c", "nowhere"], None, "bc"),
        (None, ["b", "c"], "ad"),
        (["a", "b"], ["b"], "a"),
        ([], None, ""),
        ({}, None, "abcd"),
        ({"category": "Make-up"}, None, "ab"),
        ({"category": ["Gloss", "Lipstick"]}, {"brand": "X"}, "b"),
        ({"categories": "Gloss"}, None, "b"),
        (None, {"category": "Make-up"}, "cd"),
        ({"stock": {"min": 1}}, None, "ad"),
        ({"stock": {"min": 1, "max": 5}}, None, "a"),
        ({"stock": [0, 7]}, None, "bd"),
        ({"stock": 7.0}, None, "d"),
        ({"price": {"max": 5}}, None, "cd"),
        (None, {"price": {"min": 0}}, "b"),  # what is not a number is in no range
        ({"new": True}, None, "ad"),
        ({"new": False}, None, "b"),
        ({"brand": "X", "stock": {"min": 5}}, None, "d"),
        (None, {"brand": "Y", "stock": {"max": 0}}, "ad"),
    ],
    ids=str,
)
def test_what_is_allowed(allow: Any, deny: Any, wanted: str) -> None:
    mask = allowed_items(ITEMS, allow, deny)
    assert listed(ITEMS, allow, deny) == wanted
    assert mask is None or not mask[0]


def listed(items: polars.DataFrame, allow: Any, deny: Any = None) -> str:
    """Ids of the allowed items, in one text."""
    mask = allowed_items(items, allow, deny)
    return "".join(items["item_id"] if mask is None else items.filter(polars.Series(mask[1:].numpy()))["item_id"])


@pytest.mark.parametrize(
    "ids",
    [
        ["b", "c"],
        {"b", "c"},
        {"b": 1, "c": 2}.keys(),
        np.array(["b", "c"]),
        polars.Series(["b", "c"]),
        ["c", np.str_("b")],
    ],
    ids=lambda ids: type(ids).__name__,
)
def test_values_may_be_in_any_collection(ids: Any) -> None:
    assert listed(ITEMS, ids) == listed(ITEMS, {"item_id": ids}) == "bc"
    assert listed(ITEMS, (one for one in ids), (one for one in ["b"])) == "c"
    assert listed(ITEMS, {"stock": np.array([0, 7]), "new": np.bool_(True)}) == "d"
    assert listed(ITEMS, {"stock": {"min": np.int64(1), "max": np.float32(5)}}) == "a"


def test_numbers_are_compared_in_the_columns_type() -> None:
    prices = [9.99, 1.1, None, 5.0]
    table = ITEMS.select("item_id").with_columns(
        polars.Series("single", prices, polars.Float32),
        polars.Series("double", prices, polars.Float64),
        polars.Series("exact", ["9.99", "1.10", None, "5.00"]).cast(polars.Decimal(10, 2)),
        polars.Series("small", [3, 100, None, 0], polars.UInt8),
        polars.Series("large", [2**63 + 1, 2**63, None, 0], polars.UInt64),
        polars.Series("sizes", [[1, 2], [2], None, []], polars.List(polars.Int16)),
        polars.Series("widths", [[9.99], [1.1, 5.0], None, []], polars.List(polars.Float32)),
        polars.Series("pairs", [[1, 2], [2, 3], None, [4, 5]], polars.Array(polars.Int64, 2)),
    )
    for name in ("single", "double", "exact"):
        assert listed(table, {name: 9.99}) == "a"
        assert listed(table, {name: {"min": 9.99}}) == listed(table, {name: {"min": 9.99, "max": 9.99}}) == "a"
        assert listed(table, {name: {"max": 1.1}}) == "b"
        assert listed(table, {name: {"min": -1e30, "max": 1e30}}) == "abd"
        assert listed(table, None, {name: [5, 1.1]}) == "ac"
        assert listed(table, typed(parse_conditions([f"{name}=9.99,5"], "allow"), table)) == "ad"
    assert listed(table, {"small": {"min": -5, "max": 2.5}}) == "d"
    assert listed(table, {"small": {"min": 2.5, "max": 1e300}}) == "ab"
    assert listed(table, {"large": 2**63 + 1}) == listed(table, {"large": {"min": 2**63 + 1}}) == "a"
    assert listed(table, {"sizes": 1}) == listed(table, {"sizes": 1.0}) == "a"
    assert listed(table, typed(parse_conditions(["sizes=1,3"], "allow"), table)) == "a"
    assert listed(table, {"widths": [1.1]}) == "b"
    assert listed(table, {"pairs": 2}) == "ab"


def test_ids_of_items_may_be_whole_numbers() -> None:
    items = polars.DataFrame({"item_id": ["50", "258", "7.0"], "title": ["", "", ""]})
    for ids in ([50, 258], [50.0, "258"], np.array([50, 258]), polars.Series([258.0, 50.0])):
        assert listed(items, ids) == listed(items, None, ["7.0"]) == "50258"
    stock = join_columns(items, polars.DataFrame({"item_id": [258.0, 50.0], "stock": [1, 2]}))["stock"]
    assert stock.to_list() == [2, 1, None]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ("a", "allow: must be a list of item ids, or conditions by column .*, is 'a'"),
        (7, "allow: must be a list of item ids"),
        ({"brnd": "X"}, r"the items have no column 'brnd' \(did you mean 'brand'\?\); they have category, item_idx"),
        ({"stock": "many"}, "allow.stock: 'many' does not fit the column's type Int64"),
        ({"stock": [True]}, "allow.stock: True does not fit"),
        ({"stock": 7.5}, "allow.stock: 7.5 does not fit the column's type Int64"),
        ({"stock": None}, "allow.stock: None does not fit"),
        ({"price": float("nan")}, "allow.price: nan does not fit"),
        ({"item_id": 7.5}, "allow.item_id: 7.5 is no id; give a text or a whole number"),
        ({"item_id": [True]}, "allow.item_id: True is no id"),
        ({"new": 1}, "allow.new: 1 does not fit"),
        ({"brand": 1}, "allow.brand: 1 does not fit"),
        ({"category": 1}, r"allow.category: 1 does not fit the column's type List\(String\)"),
        ({"brand": {"min": 1}}, "allow.brand: has a range, but the column is of type String"),
        ({"stock": {"least": 1}}, "allow.stock: a range has numbers for min, max or both"),
        ({"stock": {}}, "allow.stock: a range has numbers"),
        ({"stock": {"min": "1"}}, "allow.stock: a range has numbers"),
        ({"stock": {"min": float("nan")}}, "allow.stock: a range has numbers"),
        ({"stock": [[1]]}, r"allow.stock: \[1\] does not fit"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(conditions: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        allowed_items(ITEMS, conditions)


def test_equal_conditions_have_equal_keys() -> None:
    one = filter_key({"stock": {"min": 1, "max": 2}, "brand": ["X"]}, ["a"])
    assert one == filter_key({"brand": ["X"], "stock": {"max": 2, "min": 1}}, {"item_id": ["a"]})
    assert filter_key({"stock": 1}, None) != filter_key({"stock": True}, None)
    assert filter_key(None, None) == filter_key({}, None) != filter_key([], None)
    assert filter_key({"stock": {2, 1}}, None) == filter_key({"stock": np.array([1, 2, 1])}, None)
    long = polars.Series([f"P{k}" for k in range(100)])
    assert repr(filter_key(long, None)) != repr(filter_key(long.head(99), None))
    assert repr(filter_key(long, None)) == repr(filter_key(reversed(long.to_list()), None))


def test_the_command_line_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("a\n\nb\n")
    texts = [
        "category=Lipstick, Gloss",
        "stock>=1",
        "stock<=5",
        f"item_id=@{tmp_path / 'ids.txt'}",
        "item_id=c",
        "new=true",
    ]
    found = typed(parse_conditions(texts, "allow"), ITEMS)
    wanted = {"category": ["Lipstick", "Gloss"], "stock": {"min": 1, "max": 5}, "item_id": ["a", "b", "c"]}
    assert found == wanted | {"new": [True]}
    assert typed(parse_conditions(["stock=3", "price=9.5"], "deny"), ITEMS) == {"stock": [3], "price": [9.5]}
    assert parse_conditions([], "allow") is None
    assert parse_conditions(["title=a>=b=c"], "allow") == {"title": ["a>=b=c"]}
    for text, message in [
        ("stock", "--allow: must be COLUMN=VALUE"),
        ("stock>1", "--allow: must be COLUMN=VALUE"),
        ("stock>=many", "'many' is not a number"),
        (f"item_id=@{tmp_path}/none", "cannot be read"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse_conditions([text], "allow")
    with pytest.raises(ConfigError, match="stock has both values and a range"):
        parse_conditions(["stock=1", "stock>=1"], "allow")
    for text in ("stock=many", "new=perhaps", "stock=1.5"):
        with pytest.raises(ConfigError, match="does not fit the column's type"):
            allowed_items(ITEMS, typed(parse_conditions([text], "allow"), ITEMS))
    for text in ("stock=3.0", "stock>=3", "stock<=1e20", "stock>=-inf"):
        assert listed(ITEMS, typed(parse_conditions([text], "allow"), ITEMS)).startswith("a")
    (tmp_path / "marked.txt").write_text("a\nb\n", encoding="utf-8-sig")
    assert parse_conditions([f"item_id=@{tmp_path / 'marked.txt'}"], "allow") == {"item_id": ["a", "b"]}


def test_columns_come_from_a_table_of_ones_own(tmp_path: Path) -> None:
    table = polars.DataFrame({"item_id": ["c", "a", "z"], "stock": [1, 2, 3], "shelf": ["left", None, "right"]})
    for name, write in (
        ("t.csv", table.write_csv),
        ("t.parquet", table.write_parquet),
        ("t.jsonl", table.write_ndjson),
    ):
        write(tmp_path / name)
        joined = join_columns(ITEMS, read_columns(tmp_path / name))
        assert joined["stock"].to_list() == [2, None, 1, None]
        assert joined["shelf"].to_list() == [None, None, "left", None]
        assert joined["item_id"].equals(ITEMS["item_id"])
    (tmp_path / "marked.jsonl").write_text('{"item_id": "c", "stock": 1}\n', encoding="utf-8-sig")
    assert join_columns(ITEMS, read_columns(tmp_path / "marked.jsonl"))["stock"].to_list() == [None, None, 1, None]
    (tmp_path / "numbers.csv").write_text("item_id,stock\n007,1\n8,2\n")
    assert read_columns(tmp_path / "numbers.csv")["item_id"].to_list() == ["007", "8"]
    with pytest.raises(DataError, match="item_id 'c' is in several rows"):
        join_columns(ITEMS, polars.concat([table, table.head(1)]))
    with pytest.raises(DataError, match="'title' cannot be replaced"):
        join_columns(ITEMS, table.rename({"shelf": "title"}))
    with pytest.raises(DataError, match="has no column 'item_id'"):
        join_columns(ITEMS, table.drop("item_id"))
    (tmp_path / "bad.csv").write_text("id,stock\n1,2\n")
    with pytest.raises(DataError, match=r"bad.csv: has no column 'item_id'; it has id, stock"):
        read_columns(tmp_path / "bad.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_columns(tmp_path / "none.parquet")
