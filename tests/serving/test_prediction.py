"""Lists for many users into a file: the same as one by one, from every kind of file, and after an interruption."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars
import pytest

from eimf.cli.main import main
from eimf.core.errors import ArtifactError, ConfigError, DataError
from eimf.core.files import lock
from eimf.data.prepared import Prepared
from eimf.serving import histories as reading
from eimf.serving import prediction
from eimf.serving.histories import FileHistories, PreparedHistories, read_user_ids
from eimf.serving.prediction import predict
from eimf.serving.recommender import ListOptions, Recommender

HISTORIES = {
    "u1": ["P00003", "P00005", "P00008"],
    "u2": ["nope"],
    "u3": ["P00009"],
    "u4": [],
    "u5": ["P00011", "nope", "P00003"] * 9,
}


def write(path: Path, histories: dict[str, list[str]], long: bool = False) -> Path:
    """A file of histories; with a row for each interaction if `long`."""
    if long:
        rows = [(user, item) for user, items in histories.items() for item in items]
        table = polars.DataFrame(rows, {"user_id": polars.String, "item_id": polars.String}, orient="row")
    else:
        lists = [" ".join(items) if path.suffix == ".csv" else items for items in histories.values()]
        table = polars.DataFrame({"user_id": list(histories), "history": lists})
    {".csv": table.write_csv, ".parquet": table.write_parquet, ".jsonl": table.write_ndjson}[path.suffix](path)
    return path


def one_by_one(model: Recommender, histories: dict[str, list[str]], options: ListOptions) -> list[tuple[Any, ...]]:
    rows = []
    for user, history in histories.items():
        for items in model.answer([history], options)[0]:
            rows += [(user, rank, one.item_id, one.interest) for rank, one in enumerate(items, 1)]
    return rows


def rows_of(path: Path) -> list[tuple[Any, ...]]:
    table = {".csv": polars.read_csv, ".parquet": polars.read_parquet, ".jsonl": polars.read_ndjson}[path.suffix](path)
    assert table.columns == ["user_id", "rank", "item_id", "score", "interest"]
    return table.drop("score").rows()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two users, batches of three rows."""
    monkeypatch.setattr(prediction, "USERS", 2)
    monkeypatch.setattr(reading, "ROWS_AT_A_TIME", 3)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_file_of_histories(suffix: str, model: Recommender, tmp_path: Path) -> None:
    wide = write(tmp_path / f"wide{suffix}", HISTORIES)
    full = {user: items for user, items in HISTORIES.items() if items}
    long = write(tmp_path / f"long{suffix}", full, long=True)
    for options in (
        ListOptions(4),
        ListOptions(4, by_interest=True),
        ListOptions(4, merge="proportional", allow={"stock": {"min": 2}}, filter_seen=False),
    ):
        for path, histories in ((wide, HISTORIES), (long, full)):
            to = tmp_path / f"recs{suffix}"
            done = predict(model, FileHistories(path, model.items), to, options)
            assert rows_of(to) == one_by_one(model, histories, options)
            assert (done.users, done.skipped) == (len(histories), 10)
            assert done.fallbacks == sum(model.recommend(items).fallback for items in histories.values())
            assert not list(tmp_path.glob(".recs*"))  # no parts are left


def test_all_users_of_the_prepared_data(model: Recommender, tiny: Prepared, tmp_path: Path) -> None:
    options, ids, sequences = ListOptions(5, deny={"stock": 0}), tiny.items["item_id"], tiny.sequences
    whole = {
        user: ids.gather(sequences.items[sequences.offsets[row] : sequences.offsets[row + 1]] - 1).to_list()
        for row, user in enumerate(tiny.user_ids)
    }
    predict(model, PreparedHistories(tiny), tmp_path / "all.parquet", options)
    assert rows_of(tmp_path / "all.parquet") == one_by_one(model, whole, options)
    scores = polars.read_parquet(tmp_path / "all.parquet").filter(user_id=tiny.user_ids[0])["score"]
    assert scores.to_list() == pytest.approx(
        [one.score for one in model.answer([whole[tiny.user_ids[0]]], options)[0][0]]
    )
    some = polars.Series([tiny.user_ids[7], "stranger", tiny.user_ids[2]])
    done = predict(model, PreparedHistories(tiny, some), tmp_path / "some.parquet", options)
    wanted = one_by_one(model, {user: whole.get(user, []) for user in some}, options)
    assert rows_of(tmp_path / "some.parquet") == wanted
    assert (done.users, done.fallbacks) == (3, 1)


class KilledError(Exception):
    """In place of a kill."""


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_prediction_continues(
    model: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, to = write(tmp_path / "histories.parquet", HISTORIES), tmp_path / "recs.parquet"
    predict(model, FileHistories(path, model.items), tmp_path / "whole.parquet", ListOptions(4))
    rank, calls = Recommender.rank, []

    def until(last: int):
        def counted(self: Recommender, *arguments: Any) -> Any:
            if len(calls) == last:
                raise KilledError
            calls.append(1)
            return rank(self, *arguments)

        monkeypatch.setattr(Recommender, "rank", counted)

    until(2)
    with pytest.raises(KilledError):
        predict(model, FileHistories(path, model.items), to, ListOptions(4))
    assert not to.exists()
    assert len(list((tmp_path / ".recs.parquet.parts").glob("*.parquet"))) == 2
    calls.clear()
    until(9)
    predict(model, FileHistories(path, model.items), to, ListOptions(4))
    assert len(calls) == 1  # only what was missing
    assert to.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    # The parts of another prediction are not taken for this one's.
    calls.clear()
    until(2)
    with pytest.raises(KilledError):
        predict(model, FileHistories(path, model.items), to, ListOptions(4))
    calls.clear()
    until(9)
    predict(model, FileHistories(path, model.items), to, ListOptions(2))
    assert len(calls) == 3
    assert rows_of(to) == one_by_one(model, HISTORIES, ListOptions(2))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("first", ['"history": []', '"history": null', '"user": 1', '"history": ""'])
def test_json_lines_are_read_alike_whatever_the_first_ones_hold(first: str, model: Recommender, tmp_path: Path) -> None:
    known = {f"u{k}": ["P00003", "P00005"] for k in range(3)}
    lines = [f'{{"user_id": {k}, {first}}}' for k in range(120)]
    lines += [json.dumps({"user_id": user, "history": items}) for user, items in known.items()]
    path = tmp_path / "h.jsonl"
    path.write_text("\n".join([*lines, ""]), encoding="utf-8-sig")
    wanted = {str(k): [] for k in range(120)} | known
    done = predict(model, FileHistories(path, model.items), tmp_path / "recs.parquet", ListOptions(3))
    assert rows_of(tmp_path / "recs.parquet") == one_by_one(model, wanted, ListOptions(3))
    assert (done.users, done.skipped, done.fallbacks) == (123, 0, 120)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_ids_may_be_whole_numbers_in_every_file(suffix: str, model: Recommender, tmp_path: Path) -> None:
    items = model.items.with_columns((polars.col("item_idx") * 3).cast(polars.String).alias("item_id"))
    other = Recommender(model.backbone, model.config, items, model.index, model.filters_seen)
    histories = {1: [9, 15, 24], 2: [5000], 3: [27, 30]}
    wanted = one_by_one(
        other, {str(user): [str(one) for one in row] for user, row in histories.items()}, ListOptions(4)
    )
    wide = polars.DataFrame({"user_id": list(histories), "history": list(histories.values())})
    long = wide.explode("history").rename({"history": "item_id"})
    for kind in (polars.Int64, polars.Float64):
        tables = [long.with_columns(polars.col("item_id").cast(kind))]
        tables.append(wide.with_columns(polars.col("history").cast(polars.List(kind))))
        for table in tables:
            path = tmp_path / f"h{suffix}"
            if suffix == ".csv" and "history" in table.columns:
                table = table.with_columns(polars.col("history").cast(polars.List(polars.String)).list.join(" "))
            {".csv": table.write_csv, ".parquet": table.write_parquet, ".jsonl": table.write_ndjson}[suffix](path)
            done = predict(other, FileHistories(path, items), tmp_path / "recs.parquet", ListOptions(4))
            assert polars.read_parquet(tmp_path / "recs.parquet").drop("score").rows() == wanted
            assert (done.skipped, done.fallbacks) == (1, 1)


def test_missing_ids_are_unknown_items_as_in_python(model: Recommender, tmp_path: Path) -> None:
    history = ["P00003", None, "", "nope", "P00005"]
    found = model.recommend(history, 4)
    table = polars.DataFrame({"user_id": ["u1"], "history": [history]})
    table.write_parquet(tmp_path / "wide.parquet")
    table.write_ndjson(tmp_path / "wide.jsonl")
    long = table.explode("history").rename({"history": "item_id"})
    long.write_parquet(tmp_path / "long.parquet")
    long.write_csv(tmp_path / "long.csv")
    long.write_ndjson(tmp_path / "long.jsonl")
    for path in sorted(tmp_path.glob("*.*")):
        done = predict(model, FileHistories(path, model.items), tmp_path / "recs.json.parquet", ListOptions(4))
        assert done.skipped == found.skipped == 3, path
        assert polars.read_parquet(tmp_path / "recs.json.parquet")["item_id"].to_list() == [
            one.item_id for one in found
        ]


def test_other_conditions_or_users_are_another_plan(model: Recommender, tiny: Prepared, tmp_path: Path) -> None:
    ids = model.items["item_id"]
    users = tiny.user_ids.head(60)

    def plan(deny: Any, order: polars.Series = users) -> dict[str, str]:
        return prediction._plan(model, PreparedHistories(tiny, order), ListOptions(4, deny=deny), 2)

    assert plan(ids.head(50)) == plan(ids.head(50).to_numpy()) == plan(set(ids.head(50))) == plan(iter(ids.head(50)))
    other = ids.head(50).set(ids.head(50) == ids[25], "P99999")  # in the middle, which a printed series leaves out
    assert plan(ids.head(50)) != plan(other)
    assert plan(None) != plan(None, users.reverse())


def test_files_of_users_may_have_a_mark_and_numbers(tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text("7\nu8\n", encoding="utf-8-sig")
    (tmp_path / "users.csv").write_text("user_id\n7.0\n8.0\n", encoding="utf-8-sig")
    (tmp_path / "users.jsonl").write_text('{"user_id": 7}\n{"user_id": "u8"}\n', encoding="utf-8-sig")
    polars.DataFrame({"user_id": [7.0, 8.0]}).write_parquet(tmp_path / "users.parquet")
    for name, ids in (("txt", ["7", "u8"]), ("csv", ["7", "8"]), ("jsonl", ["7", "u8"]), ("parquet", ["7", "8"])):
        assert read_user_ids(tmp_path / f"users.{name}").to_list() == ids


def test_two_processes_do_not_write_one_file(model: Recommender, tmp_path: Path) -> None:
    (tmp_path / ".recs.csv.parts").mkdir()
    histories = FileHistories(write(tmp_path / "h.csv", HISTORIES), model.items)
    held = lock(tmp_path / ".recs.csv.parts" / ".lock", "")
    with held, pytest.raises(ArtifactError, match=r"another process writes .*recs.csv"):
        predict(model, histories, tmp_path / "recs.csv")


@pytest.mark.parametrize("options", [ListOptions(100_000), ListOptions(100_000, by_interest=True)])
def test_lists_longer_than_the_catalogue_go_in_small_parts(
    options: ListOptions, model: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "ROWS", 2 * len(model.items))  # one or two users at a time
    rank, widths = Recommender.rank, []

    def watched(self: Recommender, *arguments: Any) -> Any:
        found = rank(self, *arguments)
        widths.append(found.items.numel())
        return found

    monkeypatch.setattr(Recommender, "rank", watched)
    path = write(tmp_path / "h.parquet", HISTORIES)
    predict(model, FileHistories(path, model.items), tmp_path / "recs.csv", options)
    monkeypatch.undo()
    assert rows_of(tmp_path / "recs.csv") == one_by_one(model, HISTORIES, options)
    assert max(widths) <= max(2, model.n_interests) * len(model.items)


def test_a_user_of_the_whole_catalogue_and_filters_that_allow_nothing(
    model: Recommender, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = {"u1": model.items["item_id"].to_list() * 170, "u2": ["P00003"]}
    path = write(tmp_path / "h.jsonl", everything)
    done = predict(model, FileHistories(path, model.items), tmp_path / "recs.csv", ListOptions(4))
    assert (done.users, done.rows) == (2, 4)
    command = ["predict", str(run_folder), "--histories", str(path), "--to", str(tmp_path / "none.csv")]
    assert main([*command, "--allow", "item_id=nope"]) == 0
    assert "no item may be listed" in capsys.readouterr().out
    assert (tmp_path / "none.csv").read_text() == "user_id,rank,item_id,score,interest\n"
    assert main([*command, "--allow", "category="]) == 2
    assert "--allow: 'category=' has no value" in capsys.readouterr().err


def test_histories_of_fixed_length(model: Recommender, tmp_path: Path) -> None:
    table = {"user_id": ["u1"], "history": polars.Series([HISTORIES["u1"]], dtype=polars.Array(polars.String, 3))}
    polars.DataFrame(table).write_parquet(tmp_path / "h.parquet")
    predict(model, FileHistories(tmp_path / "h.parquet", model.items), tmp_path / "recs.csv", ListOptions(4))
    assert rows_of(tmp_path / "recs.csv") == one_by_one(model, {"u1": HISTORIES["u1"]}, ListOptions(4))


def test_what_must_not_be_replaced_is_refused_first(
    model: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "h.csv", HISTORIES)
    (tmp_path / "folder.csv").mkdir()
    monkeypatch.delattr(Recommender, "rank")
    for to, message in ((path, "is the file of the histories"), (tmp_path / "folder.csv", "is no regular file")):
        with pytest.raises(ConfigError, match=message):
            predict(model, FileHistories(path, model.items), to)


def test_files_that_cannot_be_used(model: Recommender, tmp_path: Path) -> None:
    def refused(name: str, content: str, message: str, options: Sequence[Any] = ()) -> None:
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(DataError, match=message):
            predict(model, FileHistories(path, model.items), tmp_path / "recs.csv", *options)

    refused("a.csv", "user,history\nu1,P00003\n", "has no column 'user_id' .*; it has user, history")
    refused("b.csv", "user_id,items\nu1,P00003\n", "has no column 'item_id'")
    refused("c.csv", "user_id,item_id\nu1,P00003\nu2,P00003\nu1,P00005\n", "2 users, but 3 groups of rows")
    refused("d.csv", "user_id,history\nu1,P00003\nu1,P00003\n", "1 users, but 2 groups of rows")
    refused("e.csv", "user_id,item_id\n,P00003\n", "a row has no user_id")
    refused("f.jsonl", '{"user_id": "u1", "history": 3}\n', "line 1: history must be a list of item ids, .*is 3")
    refused("f.jsonl", '{"user_id": "u1", "history": {"a": 1}}\n', "line 1: history must be a list of item ids")
    refused("f.jsonl", '{"user_id": "u1", "history": [true]}\n', "line 1: history: True is no id")
    refused("f.jsonl", '{"user_id": "u1", "history": [["P00003"]]}\n', "line 1: history: .* is no id")
    refused("f.jsonl", '{"user_id": "u1", "history": []}\n{"user_id": 7.5, "history": []}\n', "line 2: user_id: 7.5 is")
    refused("f.jsonl", '{"user_id": "u1", "history": []}\n["u2"]\n', "line 2: must be an object")
    refused("f.jsonl", '{"history": []}\n', "has no column 'user_id'")
    refused("f.jsonl", '{"user_id": "", "history": []}\n', "a row has no user_id")
    mixed = '{"user_id": "u1", "history": []}\n{"user_id": "u2", "item_id": "P00003"}\n'
    refused("f.jsonl", mixed, "line 2: has item_id, but earlier ones have history; use one form for all lines")
    refused("g.jsonl", '{"user_id": "u1", "history"', "cannot be read")
    refused("h.csv", "user_id,item_id\nu1,nope\n", "1 items are not in the catalogue", [ListOptions(unknown="error")])
    refused("i.txt", "u1", "must end in .csv, .parquet or .jsonl")
    with pytest.raises(DataError, match="no such file"):
        FileHistories(tmp_path / "none.csv", model.items)
    with pytest.raises(ConfigError, match="must end in .parquet, .csv, .jsonl"):
        predict(model, FileHistories(write(tmp_path / "j.csv", HISTORIES), model.items), tmp_path / "recs.txt")
    for history in (["P00003", None], ["", "P00003"]):
        bad = tmp_path / "k.parquet"
        polars.DataFrame({"user_id": ["u1"], "history": [history]}).write_parquet(bad)
        with pytest.raises(DataError, match="1 items are not in the catalogue"):
            predict(model, FileHistories(bad, model.items), tmp_path / "recs.csv", ListOptions(unknown="error"))
    polars.DataFrame({"user_id": ["u1"], "history": [[True]]}).write_parquet(tmp_path / "l.parquet")
    with pytest.raises(DataError, match="history: of type Boolean, which is no id"):
        predict(model, FileHistories(tmp_path / "l.parquet", model.items), tmp_path / "recs.csv")
    (tmp_path / "twice.txt").write_text("u1\nu2\nu1\n")
    with pytest.raises(DataError, match="user_id 'u1' is there more than once"):
        read_user_ids(tmp_path / "twice.txt")


def test_the_command_line_gives_the_same(
    model: Recommender,
    run_folder: Path,
    stock: Path,
    tiny: Prepared,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    histories = write(tmp_path / "histories.jsonl", HISTORIES)
    base = ["predict", str(run_folder), "--columns", str(stock), "--allow", "stock>=1"]
    for extra, options in (
        (["--n", "3"], ListOptions(3, allow={"stock": {"min": 1}})),
        (["--by-interest", "--include-seen"], ListOptions(50, False, {"stock": {"min": 1}}, by_interest=True)),
    ):
        assert main([*base, "--histories", str(histories), "--to", str(tmp_path / "cli.csv"), *extra]) == 0
        assert "10 items of the histories are not in the catalogue" in capsys.readouterr().out
        predict(model, FileHistories(histories, model.items), tmp_path / "python.csv", options)
        assert (tmp_path / "cli.csv").read_text() == (tmp_path / "python.csv").read_text()
    users = tmp_path / "users.csv"
    users.write_text(f"user_id\n{tiny.user_ids[5]}\nstranger\n")
    assert main([*base, "--users", str(users), "--to", str(tmp_path / "few.jsonl"), "-n", "2"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "few.jsonl").read_text().splitlines()]
    assert [row["user_id"] for row in rows] == [tiny.user_ids[5]] * 2 + ["stranger"] * 2
    assert [row["interest"] for row in rows[2:]] == [None, None]
    capsys.readouterr()
    assert main([*base, "--users", str(users), "--to", str(tmp_path / "few.jsonl"), "--unknown", "error"]) == 2
    assert "1 users of" in capsys.readouterr().err
    assert main([*base, "--to", str(tmp_path / "all.parquet"), "-n", "1"]) == 0
    assert f"({tiny.sequences.n_users:,} rows for {tiny.sequences.n_users:,} users)" in capsys.readouterr().out
