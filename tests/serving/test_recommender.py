"""Recommenders: filters, unknown items, empty histories, shares of interests, similar items."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from starlette.testclient import TestClient

from eimf.cli.main import main
from eimf.config.load import load as load_config
from eimf.core.errors import ConfigError, DataError
from eimf.data.prepared import Prepared
from eimf.data.splits import split_sequences
from eimf.serving import recommender
from eimf.serving.cache import Cache
from eimf.serving.http import Service, build_app
from eimf.serving.recommender import ListOptions, Recommender, load
from eimf.training.train import train
from tests.conftest import replace_items, tiny_config

HISTORY = ["P00003", "P00005", "P00008"]


def by_hand(model: Recommender, history: list[str], may: polars.Series) -> list[str]:
    """Ids of the allowed items that are not in the history, by best inner product."""
    scores = (model.item_vectors() @ model.encode([history])[0].T).max(axis=1)
    order = model.items["item_id"].gather(np.argsort(-scores)).to_list()
    listed = set(model.items.filter(may)["item_id"]) - set(history)
    return [item for item in order if item in listed]


def test_filters_are_exact(model: Recommender) -> None:
    category = model.items["categories"][0][-1]
    stock, kinds = model.items["stock"], model.items["categories"].list.contains(category)
    some = model.items["item_id"].gather([1, 5, 50]).to_list()
    for allow, deny, may in (
        ({"stock": {"min": 1}}, None, stock >= 1),
        ({"category": category}, None, kinds),
        ({"category": category, "stock": [2, 3]}, None, kinds & stock.is_in([2, 3])),
        (None, {"category": category, "stock": 0}, ~kinds & (stock != 0)),
        (some, None, model.items["item_id"].is_in(some)),
        (None, some, ~model.items["item_id"].is_in(some)),
        ([], None, stock < 0),
    ):
        wanted = by_hand(model, HISTORY, may)
        for n in (1, 10, 500):
            found = model.recommend(HISTORY, n, allow=allow, deny=deny)
            assert [one.item_id for one in found] == wanted[:n]
        for each in model.recommend_by_interest(HISTORY, 500, allow=allow, deny=deny):
            assert {one.item_id for one in each} == set(wanted)
        shares = model.recommend(HISTORY, 500, allow=allow, deny=deny, merge="proportional")
        assert {one.item_id for one in shares} == set(wanted)
        diverse = model.recommend(HISTORY, 500, allow=allow, deny=deny, diversity=0.2)
        assert {one.item_id for one in diverse} == set(wanted)


def test_unknown_items_are_skipped_and_counted(model: Recommender) -> None:
    found = model.recommend(["nope", *HISTORY, "gone"])
    assert found == model.recommend(HISTORY)
    assert (found.skipped, found.fallback) == (2, False)
    assert [each.skipped for each in model.recommend_by_interest(["nope", *HISTORY])] == [1] * model.n_interests
    with pytest.raises(DataError, match=r"history: 'nope' not in the catalogue .* leave unknown items out"):
        model.recommend(["nope", *HISTORY], unknown="error")
    with pytest.raises(DataError, match="history: must be a list of item ids"):
        model.recommend("P00003")


def test_an_empty_history_gets_what_is_popular_in_training(
    model: Recommender, tiny: Prepared, run_folder: Path
) -> None:
    split = split_sequences(tiny.sequences, load_config(run_folder / "config.yaml").split)
    counts = split.item_counts(tiny.sequences, tiny.n_items)[1:]
    assert model.items["count"].to_list() == counts.tolist()
    assert counts.sum() < len(tiny.sequences.items)  # what is held out does not count
    order = np.argsort(-counts, kind="stable")
    for history in ([], ["nope"]):
        found = model.recommend(history, 7)
        assert [one.item_id for one in found] == tiny.items["item_id"].gather(order[:7]).to_list()
        assert [one.score for one in found] == counts[order[:7]].tolist()
        assert {one.interest for one in found} == {None}
        assert (found.fallback, found.skipped) == (True, len(history))
        assert model.recommend_by_interest(history, 7) == [found]
    stocked = [row for row in order if model.items["stock"][int(row)] >= 3]
    found = model.recommend([], 500, allow={"stock": {"min": 3}})
    assert [one.item_id for one in found] == tiny.items["item_id"].gather(stocked).to_list()


def test_a_batch_answers_as_one_by_one(model: Recommender) -> None:
    histories = [HISTORY, [], HISTORY[:1], ["nope"], ["nope", *HISTORY * 30]]
    for options in (
        ListOptions(6),
        ListOptions(6, by_interest=True),
        ListOptions(6, merge="proportional", filter_seen=False),
        ListOptions(6, diversity=0.5, allow={"stock": {"min": 2}}),
    ):
        together = model.answer(histories, options)
        assert len(together) == len(histories)
        for history, lists in zip(histories, together, strict=True):
            (alone,) = model.answer([history], options)
            assert [[one.item_id for one in each] for each in lists] == [
                [one.item_id for one in each] for each in alone
            ]
            assert [one.skipped for one in lists] == [one.skipped for one in alone]
        assert [lists[0].fallback for lists in together] == [False, True, False, True, False]
    assert model.answer([], ListOptions()) == []


def test_a_run_without_counts_says_so(run_folder: Path, tmp_path: Path) -> None:
    import shutil

    earlier = shutil.copytree(run_folder, tmp_path / "earlier")
    replace_items(earlier, polars.read_parquet(earlier / "items.parquet").drop("count"))
    model = load(earlier)
    assert len(model.recommend(HISTORY)) == 10
    with pytest.raises(DataError, match="does not have the items' counts .* train again from its config.yaml"):
        model.recommend([])


def test_similar_items_have_the_largest_cosines(model: Recommender) -> None:
    vectors = model.item_vectors()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = model.items["item_id"]
    own = ids.index_of("P00005")
    assert own is not None
    order = np.argsort(-(unit @ unit[own]))
    found = model.similar_items("P00005", 500)
    assert [one.item_id for one in found] == [ids[int(row)] for row in order if row != own]
    assert found[0].score == pytest.approx(float(unit[own] @ unit[order[1]]), abs=1e-5)
    few = model.similar_items("P00005", 3, deny={"stock": 0})
    empty = set(model.items.filter(polars.col("stock") == 0)["item_id"])
    assert few == [one for one in found if one.item_id not in empty][:3]
    with pytest.raises(DataError, match="'nope' not in the catalogue"):
        model.similar_items("nope")


def test_masks_and_lengths_are_made_once(model: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for module, name in ((recommender, "allowed_items"), (np.linalg, "norm")):
        original = getattr(module, name)

        def counted(*given: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            made.append(name)
            return original(*given, **options)

        monkeypatch.setattr(module, name, counted)
    fresh = model.with_columns(model.items.select("item_id", "stock"))
    fresh._lengths = Cache(1)
    for _ in range(3):
        for deny in (["P00001", "P00002"], {"P00002", "P00001"}, np.array(["P00002", "P00001"])):
            assert len(fresh.recommend(HISTORY, 5, deny=deny)) == 5
            fresh.similar_items("P00005", 5, deny=deny)
    assert made == ["allowed_items", "norm"]
    for k in range(40):
        fresh.recommend(HISTORY, 1, deny=[f"P{k:05}"])
    assert len(fresh._masks) == 16


def test_a_cache_keeps_what_was_used_last_and_threads_share_it() -> None:
    cache: Cache[int] = Cache(2)
    for key, value in (("a", 1), ("b", 2), ("a", 0), ("c", 3), ("a", 0), ("b", 4)):
        assert cache.get(key, lambda value=value: value) == (value or 1)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda k: cache.get(k % 5, lambda: k % 5), range(2000)))
    assert found == [k % 5 for k in range(2000)]
    assert len(cache) == 2


def test_conditions_may_be_read_only_once(model: Recommender) -> None:
    best = [one.item_id for one in model.recommend(HISTORY, 3)]
    for kind in (iter, np.array, polars.Series, set):
        assert not {one.item_id for one in model.recommend(HISTORY, 9, deny=kind(best))} & set(best)
        assert {one.item_id for one in model.recommend(HISTORY, 9, allow=kind(best))} == set(best)
        similar = model.similar_items("P00005", 9, allow={"item_id": kind(best)})
        assert {one.item_id for one in similar} == set(best) - {"P00005"}


def test_histories_and_numbers_of_any_kind(model: Recommender) -> None:
    wanted = model.recommend(HISTORY, 5)
    for history in (tuple(HISTORY), np.array(HISTORY), polars.Series(HISTORY), iter(HISTORY)):
        assert model.recommend(history, np.int64(5)) == wanted  # pyright: ignore[reportArgumentType]
    assert model.attended(np.array(HISTORY)) == model.attended(HISTORY)
    np.testing.assert_array_equal(model.encode([np.array(HISTORY)]), model.encode([HISTORY]))
    found = model.recommend([None, "", float("nan"), *HISTORY, 7], 5)
    assert (found, found.skipped) == (wanted, 4)
    with pytest.raises(DataError, match="history: '', 'nope' not in the catalogue"):
        model.recommend([None, "nope"], unknown="error")
    bad: list[tuple[Any, str]] = [
        (None, "history: must be a list of item ids, oldest first, is None"),
        (7, "history: must be a list of item ids, oldest first, is 7"),
        ({"P00003": 1}, "history: must be a list of item ids"),
        ({"P00003"}, "history: must be a list of item ids"),  # a set has no order
        ([["P00003"]], r"history: \['P00003'\] is no id; give a text or a whole number"),
        ([True], "history: True is no id"),
        ([7.5], "history: 7.5 is no id"),
        ([b"P00003"], "history: b'P00003' is no id"),
    ]
    for history, message in bad:
        with pytest.raises(DataError, match=message):
            model.recommend(history)
    with pytest.raises(DataError, match="item_id: '' not in the catalogue"):
        model.similar_items("")


def numbered(model: Recommender) -> Recommender:
    """The same model; its items have the numbers of MovieLens as ids."""
    items = model.items.with_columns((polars.col("item_idx") * 3).cast(polars.String).alias("item_id"))
    return Recommender(model.backbone, model.config, items, model.index, model.filters_seen)


def test_whole_numbers_stand_for_their_decimal_text(model: Recommender, tmp_path: Path) -> None:
    other = numbered(model)
    wanted = other.recommend(["9", "15", "24"], 5, deny=["300"])
    assert not wanted.fallback
    for history in ([9, 15, 24], [9.0, 15.0, 24.0], np.array([9, 15, 24]), ["9", 15, np.float32(24)]):
        found = other.recommend(history, 5, deny=[300.0])
        assert (found, found.skipped) == (wanted, 0)
    assert other.similar_items(9, 3) == other.similar_items("9", 3)
    assert other.knows(9)
    assert other.title(9.0) == other.title("9") != ""  # pyright: ignore[reportArgumentType]
    client = TestClient(build_app(Service(lambda: other)), "http://127.0.0.1")
    answer = client.post("/recommend", json={"history": [9, 15.0, "24"], "n": 5, "deny": [300]}).json()
    assert [one["item_id"] for one in answer["items"]] == [one.item_id for one in wanted]
    assert answer["skipped"] == 0


def test_python_the_command_line_and_http_give_one_list(
    model: Recommender, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With conditions on numbers of every type."""
    row = polars.col("item_idx")
    table = model.items.select(
        "item_id",
        (row % 7 * 1.11).cast(polars.Float32).alias("price"),
        (row % 5).alias("stock"),
        polars.concat_list(row % 3, row % 4).alias("sizes"),
    )
    table.write_parquet(tmp_path / "own.parquet")
    own = load(run_folder, tmp_path / "own.parquet")
    allow = {"price": [2.22, 3.33, 4.44], "stock": {"min": 1, "max": 3.5}}
    deny = {"sizes": [2.0], "stock": 1}
    found = [one.item_id for one in own.recommend(HISTORY, 6, allow=allow, deny=deny)]
    met = table["price"].is_in(polars.Series([2.22, 3.33, 4.44], dtype=polars.Float32).implode())
    met &= table["stock"].is_in([2, 3]) & ~table["sizes"].list.contains(2)
    assert found == by_hand(own, HISTORY, met)[:6]
    assert found
    client = TestClient(build_app(Service(lambda: own)), "http://127.0.0.1")
    answer = client.post("/recommend", json={"history": HISTORY, "n": 6, "allow": allow, "deny": deny}).json()
    assert [one["item_id"] for one in answer["items"]] == found
    texts = [
        "--columns",
        str(tmp_path / "own.parquet"),
        "-n",
        "6",
        "--allow",
        "price=2.22,3.33",
        "--allow",
        "price=4.44",
    ]
    texts += ["--allow", "stock>=1", "--allow", "stock<=3.5", "--deny", "sizes=2.0", "--deny", "stock=1"]
    assert main(["recommend", str(run_folder), "--history", ",".join(HISTORY), *texts]) == 0
    assert printed(capsys.readouterr().out, "merged") == found
    (tmp_path / "h.jsonl").write_text(json.dumps({"user_id": "u1", "history": HISTORY}))
    to = ["--histories", str(tmp_path / "h.jsonl"), "--to", str(tmp_path / "lists.parquet")]
    assert main(["predict", str(run_folder), *to, *texts]) == 0
    assert polars.read_parquet(tmp_path / "lists.parquet")["item_id"].to_list() == found


@pytest.mark.parametrize("name", ["item_knn", "ease"])
@pytest.mark.slow
def test_models_of_item_similarities(
    name: str, data_root: Path, stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny_config(data_root, tmp_path, f"backbone={name}")).folder
    model = load(run, stock)
    rules: dict[str, Any] = {"allow": {"stock": {"min": 2}}}
    found = model.recommend(HISTORY, 5, **rules)
    assert [one.item_id for one in found] == [one.item_id for one in model.recommend(HISTORY, 500, **rules)][:5]
    assert len(model.recommend_by_interest(HISTORY, 5, **rules)) == 1
    assert model.recommend([], 5, **rules).fallback
    scores = model.interests(["P00005"])[0, 1:]
    similar = model.similar_items("P00005", 5)
    best = scores.sort(descending=True).values[:5].tolist()
    assert [one.score for one in similar] == pytest.approx(best)
    assert "P00005" not in [one.item_id for one in similar]
    (tmp_path / "h.jsonl").write_text(json.dumps({"user_id": "u1", "history": HISTORY}))
    to = tmp_path / "recs.jsonl"
    base = ["--columns", str(stock), "--allow", "stock>=2", "-n", "5"]
    assert main(["predict", str(run), "--histories", str(tmp_path / "h.jsonl"), "--to", str(to), *base]) == 0
    rows = [json.loads(line) for line in to.read_text().splitlines()]
    assert [row["item_id"] for row in rows] == [one.item_id for one in found]
    assert main(["recommend", str(run), "--history", ",".join(HISTORY), *base]) == 0
    assert main(["similar", str(run), "P00005"]) == 0
    capsys.readouterr()
    assert main(["export", str(run), "--to", str(tmp_path / "exported")]) == 2
    assert f"export: {name} has no item vectors" in capsys.readouterr().err
    assert main(["index", str(run)]) == 2
    assert "no item vectors to index" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n: must be a whole number from 1, is 0"),
        ({"n": 2.5}, "n: must be a whole number"),
        ({"filter_seen": "yes"}, "filter_seen: must be true, false or null"),
        ({"merge": "worst"}, "merge: must be best or proportional, is 'worst'"),
        ({"unknown": "keep"}, "unknown: must be skip or error"),
        ({"diversity": -1}, "diversity: must be a number from 0"),
        ({"diversity": float("nan")}, "diversity: must be a number from 0"),
        ({"diversity": 1, "merge": "proportional"}, "diversity: has an effect on lists merged by best score only"),
        ({"by_interest": True, "merge": "proportional"}, "merge: has no effect on lists by interest"),
    ],
    ids=str,
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ListOptions(**options)


def printed(text: str, title: str) -> list[str]:
    """The item ids of a printed table."""
    return re.findall(r"P\d{5}", text.split(title, 1)[1].split("\n\n")[0])


def test_the_command_line_gives_the_same(
    model: Recommender, run_folder: Path, stock: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["recommend", str(run_folder), "--columns", str(stock), "-n", "5"]
    filters = ["--allow", "stock>=2", "--deny", "item_id=P00001,P00002"]
    rules: dict[str, Any] = {"allow": {"stock": {"min": 2}}, "deny": ["P00001", "P00002"]}
    cases: list[tuple[list[str], dict[str, Any]]] = [([], {}), (["--merge", "proportional"], {"merge": "proportional"})]
    for extra, options in cases:
        assert main([*base, "--history", ",".join([*HISTORY, "nope"]), *filters, *extra]) == 0
        text = capsys.readouterr().out
        wanted = [one.item_id for one in model.recommend(HISTORY, 5, **rules, **options)]
        assert printed(text, "merged") == wanted
        assert "1 items of the history are not in the catalogue" in text
    assert main([*base, "--history", "nope", *filters]) == 0
    text = capsys.readouterr().out
    assert printed(text, "merged") == [one.item_id for one in model.recommend([], 5, **rules)]
    assert "these are popular items of the training data" in text
    assert main(["similar", str(run_folder), "P00005", "--columns", str(stock), "-n", "5", *filters]) == 0
    wanted = [one.item_id for one in model.similar_items("P00005", 5, **rules)]
    assert printed(capsys.readouterr().out, "cosine") == wanted
    for arguments, message in (
        (["--history", "nope", "--unknown", "error"], "history: 'nope' not in the catalogue"),
        (["--history", "P00003", "-n", "0"], "n: must be a whole number from 1, is 0"),
        (["--history", "P00003", "--allow", "stok>=1"], "no column 'stok' (did you mean 'stock'?)"),
    ):
        assert main([*base, *arguments]) == 2
        assert message in capsys.readouterr().err
