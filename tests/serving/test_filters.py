"""Conditions on columns of the items."""

from pathlib import Path
from typing import Any

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
        ({"stock": 7.5}, None, ""),
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
    listed = ITEMS["item_id"] if mask is None else ITEMS.filter(polars.Series(mask[1:].numpy()))["item_id"]
    assert "".join(listed) == wanted
    assert mask is None or not mask[0]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ("a", "allow: must be a list of item ids, or conditions by column .*, is 'a'"),
        (7, "allow: must be a list of item ids"),
        ({"brnd": "X"}, r"the items have no column 'brnd' \(did you mean 'brand'\?\); they have category, item_idx"),
        ({"stock": "many"}, "allow.stock: 'many' does not fit the column's type Int64"),
        ({"stock": [True]}, "allow.stock: True does not fit"),
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
    wanted = {"category": ["Lipstick", "Gloss"], "stock": {"min": 1.0, "max": 5.0}, "item_id": ["a", "b", "c"]}
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
            typed(parse_conditions([text], "allow"), ITEMS)


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
