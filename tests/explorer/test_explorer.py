"""The explorer: its answers, and the page in a real Chromium where one is installed."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import polars
import pytest
import uvicorn
from starlette.testclient import TestClient

from eimf.cli.main import main
from eimf.core.errors import ArtifactError, DataError
from eimf.data.prepared import Prepared
from eimf.explorer import Explorer, build_app, open_runs
from eimf.explorer.view import User
from eimf.runs.text_map import make_text_map
from eimf.training.train import train
from tests.conftest import hash_words, replace_items, tiny_config
from tests.explicit.test_supervision import labels_of

NASTY = "<img src=x onerror=\"document.title='owned'\"> Lamp"


pytestmark = pytest.mark.slow  # it trains


@pytest.fixture(scope="module")
def runs(data_root: Path, tiny: Prepared, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs with different seeds; one title is an attack."""
    logs, labels = tmp_path_factory.mktemp("logs"), tmp_path_factory.mktemp("labels") / "tiny.jsonl"
    rows = [label._asdict() | {"interests": [one._asdict() for one in label.interests]} for label in labels_of(tiny)]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    explicit = "eimf={enabled: true, prediction: none, alignment: none}"  # labels are shown, and change nothing
    settings = [explicit, f"eimf.labels={labels}", "trainer.max_epochs=1", "experiment=demo-comirec_sa"]
    made = [train(tiny_config(data_root, logs, *settings, f"seed={seed}")).folder for seed in (0, 1)]
    for folder in made:
        items = polars.read_parquet(folder / "items.parquet")
        title = polars.when(polars.col("item_idx") == 1).then(polars.lit(NASTY)).otherwise(polars.col("title"))
        replace_items(folder, items.with_columns(title.alias("title")))
    return made


@pytest.fixture(scope="module")
def explorer(runs: list[Path]) -> Explorer:
    return open_runs(runs)


@pytest.fixture(scope="module")
def client(explorer: Explorer) -> TestClient:
    return TestClient(build_app(explorer), base_url="http://127.0.0.1")


def movable(explorer: Explorer) -> User:
    """A held-out user whose merged list is another one with diversity."""
    assert explorer.prepared is not None
    for row in explorer.parts:
        user = explorer.user(explorer.prepared.user_ids[row])
        calm, wide = (explorer.look(user.history, diversity=weight)["runs"][0]["merged"] for weight in (0.0, 1.0))
        if calm != wide:
            return user
    raise AssertionError("diversity changes nobody's list")


def test_a_held_out_user_is_seen_without_what_came_next(explorer: Explorer, tiny: Prepared) -> None:
    row, (part, cut) = next(iter(explorer.parts.items()))
    user = explorer.user(tiny.user_ids[row])
    start, end = tiny.sequences.offsets[row], tiny.sequences.offsets[row + 1]
    assert part in ("validation", "test")
    assert (len(user.history), len(user.later)) == (cut - start, end - cut)
    found = explorer.look(user.history, user.later, user.user_id, n=20)
    assert [run["name"] for run in found["runs"]] == [f"demo-comirec_sa/version_{n}" for n in (0, 1)]
    for run, one in zip(explorer.runs, found["runs"], strict=True):
        assert len(one["interests"]) == run.model.n_interests
        attended = run.model.attended(user.history)
        for k, interest in enumerate(one["interests"]):
            assert interest["history"] == [place for place, which in enumerate(attended) if which == k]
        marked = {item["id"] for item in one["merged"] if item["chosen"]}
        assert marked == {item["id"] for item in one["merged"]} & set(user.later)
        assert not {item["id"] for item in one["merged"]} & set(user.history)


def test_items_before_the_last_max_len_are_attended_by_none(explorer: Explorer) -> None:
    model = explorer.runs[0].model
    history = model.items["item_id"].head(model.config.data.max_len + 3).to_list()
    assert model.attended(history)[:3] == [None] * 3
    assert None not in model.attended(history)[3:]


def test_a_labelled_users_words_are_shown_once(explorer: Explorer) -> None:
    user = explorer.user(next(iter(explorer.labels)))
    for run in explorer.look(user.history, user.later, user.user_id)["runs"]:
        shown = [words for one in run["interests"] for words in one["words"]] + run["unmatched"]
        assert sorted(shown) == sorted(one.name for one in explorer.labels[user.user_id].interests)


def test_search(explorer: Explorer) -> None:
    begin = explorer.suggest("")
    assert begin["items"] == []
    assert begin["users"][0]["id"] in explorer.labels
    exact = begin["users"][0]["id"]
    assert explorer.suggest(exact)["users"][0]["id"] == exact
    title = explorer.items["title"][5]
    words = " ".join(reversed(title.lower().split()))
    assert title in [one["title"] for one in explorer.suggest(words)["items"]]
    assert explorer.suggest("(no) [such* thing") == {"users": [], "items": []}


def test_answers_and_errors(client: TestClient, explorer: Explorer) -> None:
    about = client.get("/api/about").json()
    assert about["items"] == len(explorer.items)
    page = client.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    items = movable(explorer).history
    calm, wide = (client.get("/api/look", params={"item": items, "diversity": d}).json() for d in (0, 1))
    assert calm["runs"][0]["merged"] != wide["runs"][0]["merged"]
    for query, said in (
        ({"user": "nobody"}, "'nobody' is not among"),
        ({"item": "none"}, "not in the catalogue"),
        ({}, "history: is empty"),
        ({"item": items, "n": "x"}, "n: must be a number"),
        ({"item": items, "n": "0"}, "n: must be 1 to 100"),
        ({"item": items, "diversity": "nan"}, "diversity: must be 0 to 10"),
    ):
        reply = client.get("/api/look", params=query)
        assert reply.status_code == 400
        assert said in reply.json()["error"]
    assert client.get("/nowhere").json() == {"error": "Not Found"}
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    for reply in (client.get("/nowhere"), client.get("/api/about"), client.get("/", headers={"host": "evil.example"})):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
    reply = client.get("/api/look", params={"item": ["x" * 300] * 100})
    assert (reply.status_code, "characters, at most 20,000" in reply.json()["error"]) == (400, True)


def test_without_prepared_data_items_can_still_be_explored(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise DataError("demo: the raw file is gone")

    monkeypatch.setattr("eimf.explorer.view.prepare", gone)
    explorer = open_runs(runs[:1])
    assert "raw file is gone" in explorer.describe()["missing"]
    assert explorer.suggest("")["users"] == []
    assert explorer.look(explorer.items["item_id"].head(2).to_list())["history"]
    with pytest.raises(DataError, match="raw file is gone"):
        explorer.user("u1")


def test_runs_of_different_catalogues_are_refused(runs: list[Path], data_root: Path, tmp_path: Path) -> None:
    other = tiny_config(data_root, tmp_path, "dataset.n_items=90", "trainer.max_epochs=1")
    with pytest.raises(ArtifactError, match="another catalogue"):
        open_runs([runs[0], train(other).folder])
    parted = tiny_config(data_root, tmp_path, "split.seed=1", "trainer.max_epochs=1")
    with pytest.raises(ArtifactError, match="other data or another split"):
        open_runs([runs[0], train(parted).folder])


def test_bad_commands(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", str(tmp_path)]) == 2
    assert "no such checkpoint" in capsys.readouterr().err
    assert main(["explore", str(runs[0]), "--host", "203.0.113.7"]) == 2
    assert "cannot listen on '203.0.113.7':8411" in capsys.readouterr().err
    assert main(["explore", str(runs[0]), "--port", "70000"]) == 2
    assert "must be from 0 (any free one) to 65535, is 70000" in capsys.readouterr().err


@pytest.fixture(scope="module")
def address(explorer: Explorer) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(build_app(explorer), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_the_page_in_a_browser(address: str, explorer: Explorer) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        # It opens on the first example, with the badges of both runs; then empty; then a user, by keyboard alone.
        example = explorer.suggest("")["users"][0]["id"]
        expect(page.locator("#who")).to_contain_text(f"{example}: a ")
        expect(page.locator("#history li").first.locator(".badge")).to_have_count(2)
        expect(page.locator(".card h3").first).to_have_text("0Interest 0")
        expect(page.locator("#diversity")).to_be_enabled()
        page.get_by_role("button", name="Start again").click()
        expect(page.locator("#message")).to_contain_text("Nothing to show yet")
        expect(page.locator("#examples button").first).to_be_visible()
        page.locator("h1").click()
        found = movable(explorer)
        user, part = found.user_id, found.part
        page.locator("#query").focus()
        page.keyboard.type(user)
        expect(page.locator("#found li").first).to_contain_text(user)
        page.keyboard.press("Enter")
        expect(page.locator("#who")).to_have_text(f"{user}: a {part} user, newest first")
        expect(page.locator(".run")).to_have_count(2)
        expect(page.locator(".run").first.locator(".card")).to_have_count(explorer.runs[0].model.n_interests)
        assert f"user={user}" in page.url
        # The slider changes the merged list at once.
        before = page.locator(".merged ol").first.inner_text()
        expect(page.locator("#diversity")).to_be_visible()  # what is hidden takes no focus
        page.locator("#diversity").focus()
        expect(page.locator("#diversity")).to_be_focused()
        for _ in range(20):
            page.keyboard.press("ArrowRight")
        expect(page.locator("#weight")).to_have_text("1")
        expect(page.locator(".merged ol").first).not_to_have_text(before, use_inner_text=True)
        # A history of one's own, with a title that is an attack.
        page.get_by_role("button", name="Start again").click()
        expect(page.locator("#view")).to_be_hidden()
        page.locator("#query").fill("onerror lamp")
        expect(page.locator("#found li").first).to_contain_text("onerror")
        page.keyboard.press("Enter")
        expect(page.locator("#history li")).to_have_count(1)
        expect(page.locator("#history li")).to_contain_text(NASTY)
        assert page.locator("#history img").count() == 0
        page.get_by_role("button", name="Remove").click()
        expect(page.locator("#message")).to_contain_text("Nothing to show yet")
        # What is not there, and a bad address.
        page.locator("#query").fill("zzzz no such")
        expect(page.locator("#message")).to_contain_text("Nothing found")
        page.goto(f"{address}/?user=nobody")
        expect(page.locator("#message")).to_contain_text("'nobody' is not among")
        assert page.title() == "EIMF explorer"
        assert problems == []
        browser.close()


def test_what_a_run_does_not_know_is_said(data_root: Path, tiny: Prepared, tmp_path: Path) -> None:
    folder = train(tiny_config(data_root, tmp_path, "trainer.max_epochs=0", "backbone=comirec_dr")).folder
    explorer = open_runs([folder.parent])  # its newest version
    assert explorer.describe()["categories"]
    history = explorer.items["item_id"].head(2).to_list()
    (run,) = explorer.look(history)["runs"]
    assert run["routes"]
    items = polars.read_parquet(folder / "items.parquet")
    replace_items(folder, items.with_columns(categories=polars.lit([], polars.List(polars.String))))
    assert not open_runs([folder]).describe()["categories"]


def test_words_are_one_more_interest(
    runs: list[Path], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eimf.data.text.open_encoder", lambda name: hash_words)
    monkeypatch.setattr("eimf.serving.texts.open_encoder", lambda name: hash_words)
    shutil.copytree(runs[0], tmp_path / "run")
    make_text_map(tmp_path / "run", [f"data.root={data_root}"])
    client = TestClient(build_app(open_runs([tmp_path / "run"])), base_url="http://127.0.0.1")
    about = client.get("/api/about").json()["runs"][0]
    assert about["words"]
    for items in ([], ["P00003"]):
        reply = client.get("/api/look", params={"item": items, "words": ["Yoga Mat", "Lamp"]}).json()
        last = reply["runs"][0]["interests"][-1]
        assert (last["number"], last["asked"]) == (about["interests"] + 1, "Lamp")
        assert len(reply["runs"][0]["interests"]) == 2 + about["interests"] * bool(items)
        assert len(last["items"]) == 10
        assert {one["interest"] for one in last["items"]} == {last["number"]}


def test_words_need_a_text_map(client: TestClient) -> None:
    assert not client.get("/api/about").json()["runs"][0]["words"]
    reply = client.get("/api/look", params={"item": ["P00003"], "words": ["Lamp"]})
    assert reply.status_code == 400
    assert "eimf map" in reply.json()["error"]
