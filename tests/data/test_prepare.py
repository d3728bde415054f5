"""Filters, artifacts, mirrors and downloads."""

import http.server
import logging
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from eimf.config.load import load
from eimf.core.artifacts import new_artifact, read_manifest
from eimf.core.errors import ArtifactError, DataError
from eimf.core.files import sha256_file, write_text_atomic
from eimf.data.download import TABLES
from eimf.data.prepare import core_filter, prepare
from eimf.data.prepared import load_prepared, statistics
from eimf.data.sources.amazon import AmazonConfig
from eimf.data.sources.table import TableConfig


def test_core_is_iterative_or_one_pass() -> None:
    # Dropping item 2 (one row) leaves user 1 with one row, whose drop leaves item 1 with one row, and so on.
    users, items = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 0, 1])
    assert core_filter(users, items, 2, 2, "iterative").tolist() == [0, 1]
    assert core_filter(users, items, 2, 2, "one_pass").tolist() == [0, 1, 2, 4, 5]


def write_rows(path: Path, n: int = 40) -> None:
    lines = [f"u{u},i{(u * 3 + t) % 10},{t}" for u in range(n) for t in range(6)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")


@pytest.fixture
def own(tmp_path: Path) -> TableConfig:
    write_rows(tmp_path / "rows.csv")
    return TableConfig(name="own", interactions=str(tmp_path / "rows.csv"))


def test_prepared_data_are_reused_until_inputs_or_options_change(
    own: TableConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "eimf")
    first = prepare(own, tmp_path)
    assert caplog.messages == ["own: preparing"]
    assert prepare(own, tmp_path).folder == first.folder
    assert len(caplog.messages) == 1
    other = prepare(replace(own, user_min=6), tmp_path)
    assert other.folder != first.folder
    assert "files or options differ" in caplog.messages[1]
    write_rows(Path(own.interactions), n=41)
    changed = prepare(own, tmp_path)
    assert changed.folder not in (first.folder, other.folder)
    assert changed.digest != first.digest
    assert load_prepared(first.folder).sequences.n_users == 40  # artifacts are never overwritten


def test_manifest_records_inputs_and_counts(own: TableConfig, tmp_path: Path) -> None:
    manifest = prepare(own, tmp_path).manifest
    assert manifest.inputs == {"interactions: rows.csv": sha256_file(Path(own.interactions))}
    assert manifest.counts == {"users": 40, "items": 10, "interactions": 240}
    assert set(manifest.files) == {"items.parquet", "sequences.parquet"}
    found = statistics(prepare(own, tmp_path))
    assert (found.users, found.mean_length, found.density, found.tied_users) == (40, 6.0, 0.6, 0.0)


def test_changed_artifact_is_refused(own: TableConfig, tmp_path: Path) -> None:
    folder = prepare(own, tmp_path).folder
    with (folder / "items.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"items.parquet: changed since it was written .*delete the folder"):
        prepare(own, tmp_path)
    (folder / "items.parquet").unlink()
    with pytest.raises(ArtifactError, match="items.parquet: missing"):
        prepare(own, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"kind": 1}'])
def test_damaged_manifest(own: TableConfig, tmp_path: Path, text: str) -> None:
    folder = prepare(own, tmp_path).folder
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest.json: damaged"):
        prepare(own, tmp_path)
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        read_manifest(tmp_path, "prepared")


def test_failed_writes_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_artifact(tmp_path / "a") as work:
        (work / "part").write_text("x")
        _ = 1 / 0
    with pytest.raises(ArtifactError, match="Free some disk space"), new_artifact(tmp_path / "a") as work:
        Path("/dev/full").write_text("x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ArtifactError, match="could not be written"):
        write_text_atomic(tmp_path / "none" / "file", "x")


def test_race_for_an_artifact_has_one_winner(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "a") as mine:
        (mine / "f").write_text("mine")
        with new_artifact(tmp_path / "a") as theirs:
            (theirs / "f").write_text("theirs")
    assert (tmp_path / "a" / "f").read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_full_disk_while_preparing(tmp_path: Path) -> None:
    """A real refusal by the operating system, half-way through a file."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [sys.executable, "-m", "eimf", "prepare", f"data.root={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("eimf: ")
    assert done.stderr.count("\n") == 1
    assert "Free some disk space" in done.stderr
    assert list((tmp_path / "prepared").iterdir()) == []


@pytest.fixture
def official(tmp_path: Path) -> TableConfig:
    return TableConfig(name="shop", interactions="shop.csv", urls={"shop.csv": "http://127.0.0.1:9/shop.csv"})


def test_mirror_folder_with_the_official_file(official, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "mirror" / "shop" / "shop.csv")
    monkeypatch.setenv("EIMF_DATA_MIRROR", str(tmp_path / "mirror"))
    assert prepare(official, tmp_path).manifest.counts["users"] == 40


def test_mirror_folder_with_plain_tables(official, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    write_rows(tmp_path / "rows.csv")
    folder = tmp_path / "mirror" / "shop"
    folder.mkdir(parents=True)
    (folder / TABLES[0]).write_bytes(gzip.compress((tmp_path / "rows.csv").read_bytes()))
    (folder / TABLES[1]).write_bytes(gzip.compress(b'{"item_id": "i1", "title": "One"}\n'))
    monkeypatch.setenv("EIMF_DATA_MIRROR", str(tmp_path / "mirror"))
    amazon = AmazonConfig(name="shop", format="2014", interactions="shop.csv", urls=official.urls)
    assert "One" in prepare(amazon, tmp_path).items["title"].to_list()
    monkeypatch.setenv("EIMF_DATA_MIRROR", (tmp_path / "mirror").as_uri())
    assert "One" in prepare(amazon, tmp_path / "other").items["title"].to_list()


def test_mirror_that_is_not_there(official, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIMF_DATA_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="EIMF_DATA_MIRROR: .*neither a folder nor"):
        prepare(official, tmp_path)


def test_dead_address_says_which_files_to_put_where(official, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EIMF_DATA_MIRROR", raising=False)
    with pytest.raises(
        DataError, match=r"shop.csv cannot be reached .* Get shop.csv .* into .*raw/shop/ and run again"
    ):
        prepare(official, tmp_path)
    write_rows(tmp_path / "raw" / "shop" / "shop.csv")
    assert prepare(official, tmp_path).manifest.counts["users"] == 40


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files with Range support, and closes the first connection half-way."""

    cut = True
    ranges: list[str]

    def do_GET(self) -> None:
        content = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if asked:
            type(self).ranges.append(asked)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if type(self).cut:
            type(self).cut = False
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    _Handler.cut, _Handler.ranges = True, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(tmp_path / "www"))) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


def test_download_resumes_and_verifies(official, tmp_path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EIMF_DATA_MIRROR", raising=False)
    source = tmp_path / "www" / "shop.csv"
    write_rows(source)
    remote = replace(official, urls={"shop.csv": f"{server}/shop.csv"}, sha256={"shop.csv": sha256_file(source)})
    with pytest.raises(DataError, match=r"connection closed after|IncompleteRead"):
        prepare(remote, tmp_path)
    half = (tmp_path / "raw" / "shop" / "shop.csv.part").stat().st_size
    assert half == source.stat().st_size // 2
    assert prepare(remote, tmp_path).manifest.counts["users"] == 40
    assert _Handler.ranges == [f"bytes={half}-"]
    os.utime(source)
    wrong = replace(remote, sha256={"shop.csv": "0" * 64})
    with pytest.raises(DataError, match=r"SHA-256 is .*, must be 0000"):
        prepare(wrong, tmp_path)


def test_data_of_a_known_digest_are_found_without_their_raw_files(tmp_path: Path) -> None:
    table = tmp_path / "orders.csv"
    rows = [f"u{user},i{item},{item}" for user in range(8) for item in range(8)]
    table.write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    dataset = load(None, ["dataset.name=shop", "dataset.source=table", f"dataset.interactions={table}"]).dataset
    made = prepare(dataset, tmp_path / "data")
    table.unlink()
    assert prepare(dataset, tmp_path / "data", digest=made.digest).folder == made.folder
    with pytest.raises(DataError, match=r"orders\.csv"):
        prepare(dataset, tmp_path / "data", digest="0" * 64)
