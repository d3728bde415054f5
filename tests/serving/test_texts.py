"""Interests in words and new items by title, through a run's text map."""

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch
from starlette.testclient import TestClient

from eimf.cli.main import main
from eimf.core.errors import ConfigError, DataError
from eimf.evaluation.retrieval import ItemIndex
from eimf.runs.folder import save_index
from eimf.runs.text_map import make_text_map
from eimf.serving.http import Service, build_app
from eimf.serving.new_items import load_with_tables
from eimf.serving.recommender import ListOptions, Recommender, load
from tests.conftest import hash_words, replace_items

HISTORY = ["P00003", "P00005", "P00008"]
WORDS = ["Rainbow Headlamp", "Yoga Mat, Coral"]
NEW = [
    {
        "item_id": "N1",
        "title": "Beldal Rainbow Headlamp, Teal",
        "categories": ["Outdoors", "Headlamps"],
        "brand": "Beldal",
    },
    {"item_id": "N2", "title": "Sunsto Mini Yoga Mat"},
]


@pytest.fixture(autouse=True)
def _stand_in_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eimf.data.text.open_encoder", lambda name: hash_words)
    monkeypatch.setattr("eimf.serving.texts.open_encoder", lambda name: hash_words)


@pytest.fixture
def mapped(run_folder: Path, data_root: Path, tmp_path: Path) -> Path:
    """The run, with a text map."""
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    make_text_map(folder, [f"data.root={data_root}"])
    return folder


@pytest.fixture
def speaking(mapped: Path) -> Recommender:
    return load(mapped)


def test_words_alone_are_interests(speaking: Recommender) -> None:
    assert speaking.texts is not None
    vectors = speaking.texts.interests(WORDS).numpy()
    scores = speaking.item_vectors() @ vectors.T
    found = speaking.recommend([], 5, words=WORDS)
    assert not found.fallback
    assert [one.score for one in found] == pytest.approx(np.sort(scores.max(axis=1))[::-1][:5], rel=1e-4)
    lists = speaking.recommend_by_interest([], 5, words=WORDS)
    first = speaking.n_interests
    assert [{one.interest for one in items} for items in lists] == [{first}, {first + 1}]
    for place, items in enumerate(lists):
        best = speaking.items["item_id"].gather(np.argsort(-scores[:, place])[:5]).to_list()
        assert [one.item_id for one in items] == best


def test_words_stand_beside_a_history(speaking: Recommender) -> None:
    plain = speaking.recommend_by_interest(HISTORY, 6)
    lists = speaking.recommend_by_interest(HISTORY, 6, words=WORDS)
    assert lists[: len(plain)] == plain
    assert len(lists) == len(plain) + 2
    assert {one.interest for one in lists[-1]} == {len(plain) + 1}
    assert not {one.item_id for items in lists for one in items} & set(HISTORY)
    merged = speaking.recommend(HISTORY, 50, words=WORDS)
    assert len(merged) == 50
    assert {one.interest for one in merged} & {len(plain), len(plain) + 1}
    assert speaking.recommend(HISTORY, 10) == load_plain(speaking).recommend(HISTORY, 10)
    # Scores of words and of behaviour spread equally over the catalogue.
    assert speaking.texts is not None
    behaviour = torch.from_numpy(speaking.encode([HISTORY]))
    both = speaking.texts.beside(behaviour, speaking.texts.interests(WORDS))[0]
    spread = (torch.from_numpy(speaking.item_vectors()) @ both.T).std(dim=0, correction=0)
    torch.testing.assert_close(spread[-2:], spread[:-2].mean().expand(2), rtol=1e-3, atol=1e-6)


def load_plain(model: Recommender) -> Recommender:
    """The same model without a text map."""
    return Recommender(model.backbone, model.config, model.items, model.index, model.filters_seen)


def test_histories_with_and_without_items_go_together(speaking: Recommender) -> None:
    for options in (ListOptions(7, words=WORDS), ListOptions(7, words=WORDS, by_interest=True)):
        together = speaking.answer([HISTORY, [], HISTORY[:1]], options)
        apart = [speaking.answer([one], options)[0] for one in (HISTORY, [], HISTORY[:1])]
        assert [[[one.item_id for one in items] for items in lists] for lists in together] == [
            [[one.item_id for one in items] for items in lists] for lists in apart
        ]


def test_words_over_http_are_those_of_python(speaking: Recommender) -> None:
    client = TestClient(build_app(Service(lambda: speaking)), "http://127.0.0.1")
    for history in (HISTORY, []):
        found = client.post("/recommend", json={"history": history, "words": WORDS, "n": 7}).json()
        wanted = speaking.recommend(history, 7, words=WORDS)
        assert [one["item_id"] for one in found["items"]] == [one.item_id for one in wanted]
        assert [one["interest"] for one in found["items"]] == [one.interest for one in wanted]
        lists = client.post("/recommend", json={"history": history, "words": WORDS, "n": 7, "by_interest": True}).json()
        by_interest = speaking.recommend_by_interest(history, 7, words=WORDS)
        assert [[one["item_id"] for one in items] for items in lists["lists"]] == [
            [one.item_id for one in items] for items in by_interest
        ]


def test_words_that_cannot_be_used(speaking: Recommender, run_folder: Path) -> None:
    for words in ("sunscreen", [""], [" "], [3], None, 3):
        with pytest.raises(DataError, match="words: must be a list of phrases"):
            speaking.recommend(HISTORY, words=words)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"words: need the run's text map.*eimf map"):
        load(run_folder).recommend(HISTORY, words=WORDS)


def test_new_items_are_recommended_and_may_be_in_histories(speaking: Recommender) -> None:
    before, n = speaking.recommend(HISTORY, 120), len(speaking.items)
    speaking.add_items(NEW)
    assert len(speaking.items) == n + 2
    assert (speaking.title("N1"), speaking.knows("N2")) == ("Beldal Rainbow Headlamp, Teal", True)
    after = speaking.recommend(HISTORY, 122)
    assert [one for one in after if not one.item_id.startswith("N")] == before
    assert {"N1", "N2"} <= {one.item_id for one in after}
    assert speaking.recommend(["N1"], 5)
    assert "N1" not in {one.item_id for one in speaking.recommend(["N1"], 122)}
    # N1 has the text of a known item, so that it has the vector that the map gives to it.
    assert speaking.texts is not None
    vector = speaking.texts.items(speaking.items.filter(polars.col("title") == NEW[0]["title"]), None)[0]
    np.testing.assert_allclose(speaking.item_vectors()[n], vector, rtol=1e-5)
    assert {one.item_id for one in speaking.recommend(HISTORY, 5, allow=["N1", "N2"])} == {"N1", "N2"}
    assert speaking.similar_items("N1", 3)
    speaking.add_items(polars.DataFrame({"item_id": ["N3"], "title": ["Belvik Saucepan"]}))
    speaking.add_items([])
    speaking.add_items([{"item_id": 7, "title": "Mat", "categories": "Outdoors | Mats"}])
    assert speaking.items["item_id"][-1] == "7"
    assert speaking.items["categories"][-1].to_list() == ["Outdoors", "Mats"]
    assert "7" in {one.item_id for one in speaking.recommend(HISTORY, 5, allow={"category": "Mats"})}
    assert speaking.items["item_idx"].to_list() == list(range(1, n + 5))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"title": "x"}], "'item_id'"),
        ([{"item_id": "N1"}], "'N1': needs a title"),
        ([{"item_id": "N1", "title": " "}], "'N1': needs a title"),
        ([{"item_id": "P00003", "title": "x"}], "'P00003' is in the catalogue already"),
        ([NEW[0], NEW[0]], "'N1' is in the catalogue already"),
        ([{"item_id": "N1", "title": "x", "colour": "red"}], "has the field 'colour'"),
        ([{"item_id": "N1", "title": "x", "vector": [1.0]}], "text map is of titles"),
        (
            [{"item_id": "N1", "title": "x", "categories": 3}],
            "'N1': categories must be a list of texts, or a text with",
        ),
        ([{"item_id": "N1", "title": "x", "categories": ["a", 3]}], "'N1': categories must be a list of texts"),
        ([{"item_id": "N1", "title": 7}], "'N1': title must be a text, is 7"),
        ([{"item_id": "N1", "title": "x", "brand": ["Acme"]}], r"'N1': brand must be a text, is \['Acme'\]"),
        ([{"item_id": 7.5, "title": "x"}], "item_id: 7.5 is no id"),
        ([{"item_id": "", "title": "x"}], "'item_id'"),
        (["N1"], "must be a mapping"),
    ],
)
@pytest.mark.slow
def test_new_items_that_cannot_be_used(speaking: Recommender, items: Any, message: str) -> None:
    n = len(speaking.items)
    with pytest.raises(DataError, match=message):
        speaking.add_items(items)
    assert len(speaking.items) == n


def test_a_map_of_own_vectors(run_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    ids = load(folder).items["item_id"].to_list()
    np.savez(tmp_path / "own.npz", ids=ids, vectors=np.random.default_rng(0).normal(size=(len(ids), 6)))
    assert main(["map", str(folder), f"text.vectors={tmp_path / 'own.npz'}"]) == 0
    model = load(folder)
    model.add_items([{"item_id": "N1", "title": "x", "vector": [1.0, 0, 0, 0, 0, 0]}])
    assert model.knows("N1")
    with pytest.raises(DataError, match="'N2': needs a vector"):
        model.add_items([NEW[1]])
    with pytest.raises(DataError, match="must have 6 dimensions"):
        model.add_items([{"item_id": "N2", "vector": [1.0, 0]}])
    with pytest.raises(ConfigError, match="words: need a sentence encoder"):
        model.recommend(HISTORY, words=WORDS)


def test_requests_see_all_new_items_or_none(speaking: Recommender) -> None:
    stop, failures = threading.Event(), []

    def ask(request: Callable[[], Any]) -> None:
        while not stop.is_set():
            try:
                request()
            except Exception as error:
                failures.append(error)
                return

    requests = [
        lambda: speaking.recommend(HISTORY, 20, words=WORDS, deny=["P00001"]),
        lambda: speaking.similar_items("P00003", 5, deny=["P00001"]),
    ]
    threads = [threading.Thread(target=ask, args=(one,)) for one in requests]
    adders = [
        threading.Thread(
            target=lambda part=part: [
                speaking.add_items([{"item_id": f"N{part}-{k}", "title": "Mat"}]) for k in range(15)
            ]
        )
        for part in range(2)
    ]
    for thread in (*threads, *adders):
        thread.start()
    for thread in adders:
        thread.join()
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert sum(item.startswith("N") for item in speaking.items["item_id"]) == 30


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "ivfpq"])
@pytest.mark.slow
def test_every_index_grows(kind: str, tmp_path: Path, mapped: Path) -> None:
    vectors = load(mapped).item_vectors()
    save_index(mapped, np.concatenate([np.zeros_like(vectors[:1]), vectors]), kind)
    model = load(mapped)  # the index is mapped from its file
    size = model.index.n_items
    before = ItemIndex.load(mapped / "index.faiss", np.concatenate([np.zeros_like(vectors[:1]), vectors]))
    model.add_items(NEW)
    assert (model.index.n_items, before.n_items) == (size + 2, size)
    assert {one.item_id for one in model.recommend(HISTORY, 3, allow=["N1", "N2"])} == {"N1", "N2"}


def test_the_command_line_takes_words(mapped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", str(mapped), "--words", WORDS[0], "--words", WORDS[1], "-n", "3"]) == 0
    out = capsys.readouterr().out
    assert "Yoga Mat, Coral" in out
    assert main(["recommend", str(mapped), "--history", HISTORY[0], "--words", WORDS[0], "-n", "3"]) == 0
    assert main(["recommend", str(mapped), "-n", "3"]) == 2
    assert "give --history, --user or --words" in capsys.readouterr().err
    assert main(["map", str(mapped), "optim.lr=1"]) == 2
    assert "only text.encoder, text.vectors and data.root" in capsys.readouterr().err


def test_new_items_are_as_long_as_trained_ones(speaking: Recommender) -> None:
    known = np.linalg.norm(speaking.item_vectors(), axis=1).mean()
    speaking.add_items(NEW)
    np.testing.assert_allclose(np.linalg.norm(speaking.item_vectors()[-2:], axis=1), known, rtol=1e-4)


def service_of(*runs: Path) -> tuple[Service, TestClient]:
    """A service of the first run; each reload takes the next one."""
    left = iter(runs)
    service = Service(lambda: load(next(left)))
    return service, TestClient(build_app(service), "http://127.0.0.1", raise_server_exceptions=False)


def test_new_items_over_http_are_those_of_python(speaking: Recommender, mapped: Path) -> None:
    _, client = service_of(mapped)
    size = len(speaking.items)
    assert client.post("/items", json={"items": NEW}).json() == {"added": 2, "items": size + 2}
    speaking.add_items(NEW)
    bodies: list[dict[str, Any]] = [
        {"history": ["N1", "P00003"], "n": 20},
        {"history": HISTORY, "allow": ["N1", "N2", "P00009"]},
    ]
    for body in bodies:
        found = client.post("/recommend", json=body).json()
        assert [one["item_id"] for one in found["items"]] == [one.item_id for one in speaking.recommend(**body)]
        assert found["skipped"] == 0
    about = client.get("/about").json()
    assert (about["items"], about["added"]) == (size + 2, 2)
    for items, message in (
        (NEW, "items: 'N1' is in the catalogue already"),
        ([{"item_id": "N3", "title": "Mat"}, {"item_id": "N4"}], "items: 'N4': needs a title"),
        ([{"item_id": "N3", "title": "Mat", "colour": "red"}], "items: 'N3': has the field 'colour'"),
        *(
            ([{"item_id": "N3", "title": "Mat"} | {name: "half \ud800"}], "a text has half a character ('\\ud800')")
            for name in ("item_id", "title", "brand", "\ud800")
        ),
    ):
        reply = client.post("/items", content=json.dumps({"items": items}))
        assert reply.status_code == 400
        assert message in reply.json()["error"]
    assert client.get("/about").json()["items"] == size + 2  # all items of a call are added, or none


def test_added_items_survive_a_reload_where_the_run_does_not_have_them(
    mapped: Path, run_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "eimf")
    knows_one = tmp_path / "knows_one"
    shutil.copytree(mapped, knows_one)
    items = polars.read_parquet(knows_one / "items.parquet")
    first = polars.col("item_id").replace("P00001", "N1")
    replace_items(knows_one, items.with_columns(first))
    service, client = service_of(mapped, knows_one, run_folder, mapped)
    assert client.post("/items", json={"items": NEW}).status_code == 200
    asyncio.run(service.reload())
    assert "added over HTTP, and are carried over: 1" in caplog.text
    model = service.model
    known = items.filter(polars.col("item_id") == "P00001")["title"][0]
    assert [model.title(one) for one in ("N1", "N2")] == [known, NEW[1]["title"]]
    asyncio.run(service.reload())  # to a run without a text map: it is served, and the log says what is lost
    assert "cannot be carried over: 2 (items: need the run's text map" in caplog.text
    assert not service.model.knows("N2")
    assert service.added == 2  # for a run that can have them
    asyncio.run(service.reload())
    assert service.model.knows("N1")
    assert service.model.knows("N2")


def test_the_service_keeps_at_most_so_many_new_items(mapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eimf.serving.http.ADDED", 1)
    _, client = service_of(mapped)
    reply = client.post("/items", json={"items": NEW})
    assert reply.json() == {"error": "items: the service has 0 new ones and keeps at most 1; train again with them."}


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_the_command_line_takes_new_items_of_a_table(
    kind: str, mapped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"new.{kind}"
    rows = [{"item_id": "N1", "title": "Rainbow Headlamp", "brand": None}, {"item_id": "N2", "title": "Mat"}]
    rows += [{"item_id": "P00003", "title": "known", "brand": "Beldal"}]
    table = polars.DataFrame(rows)
    {"csv": table.write_csv, "parquet": table.write_parquet, "jsonl": table.write_ndjson}[kind](path)
    arguments = ["--history", "N1,P00003", "-n", "2", "--allow", "item_id=N1,N2", "--items", str(path)]
    assert main(["recommend", str(mapped), *arguments, "--include-seen"]) == 0
    out = capsys.readouterr().out
    assert f"new items: 2 of {path} (1 are in the catalogue already)" in out
    assert "history (2 items" in out
    assert "Mat" in out
    to, histories = tmp_path / "lists.csv", tmp_path / "histories.csv"
    histories.write_text("user_id,history\nu1,N1\n")
    arguments = ["--histories", str(histories), "--to", str(to), "--items", str(path), "--allow", "item_id=N2"]
    assert main(["predict", str(mapped), *arguments]) == 0
    assert polars.read_csv(to)["item_id"].to_list() == ["N2"]
    assert load_with_tables(mapped, None, path).knows("N2")  # what `eimf serve --items` loads


def test_bad_tables_of_new_items(
    mapped: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new.csv"
    for text, run, message in (
        ("item_id,title\nN1,\n", mapped, "items: 'N1': needs a title"),
        ("item_id,title,colour\nN1,Mat,red\n", mapped, "'N1': has the field 'colour'"),
        ("id,title\nN1,Mat\n", mapped, "has no column 'item_id'"),
        ("item_id,title\nN1,Mat\n", run_folder, "eimf map"),
    ):
        path.write_text(text)
        assert main(["similar", str(run), "N1", "--items", str(path)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
