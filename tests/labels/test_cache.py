"""The label cache: nothing is lost, nothing asked twice, bad files are named."""

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from eimf.core.errors import ArtifactError, LabelError
from eimf.labels.cache import LabelCache
from eimf.labels.label import Label, LabelRequest, Record, make_record, newest_labels, request_key
from eimf.labels.prompts import Interest, build_prompt
from eimf.labels.source import has_label, read_labels

PARAMS = {"temperature": 0.0}
TEXT = '{"interests": [{"name": "soaps and creams", "items": [2, 1]}]}'


def request(user: str, *titles: str) -> LabelRequest:
    titles = titles or (f"soap of {user}", "cream")
    return LabelRequest(user, tuple(f"item-{title}" for title in titles), build_prompt(titles))


def record(user: str, text: str = TEXT, failure: str = "") -> Record:
    return make_record(request(user), "model", PARAMS, text=text, failure=failure, tokens_in=7, seconds=0.5)


def line(user: str = "u", history: object = ("a", "b"), interests: object = None, **more: object) -> str:
    interests = [{"name": "soaps", "items": [1]}] if interests is None else interests
    values = {"user_id": user, "interests": interests, "history": history, "model": "m", "prompt_version": "v1"}
    return json.dumps(values | more)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    made = record("u1")
    with LabelCache(tmp_path / "new" / "cache.db") as cache:
        cache.put(made)
        cache.put(made)
        assert cache.get(made.key) == made
        assert cache.get(made.key, "u1") == made
        assert cache.get(made.key, "u2") is None
        assert cache.get("other") is None
    with LabelCache(tmp_path / "new" / "cache.db") as cache:
        assert cache.records() == [made]
        assert cache.counts() == {"ok": 1, "invalid": 0, "refused": 0, "failed": 0}
    assert (made.status, made.interests) == ("ok", (Interest("soaps and creams", (2, 1)),))


def test_the_key_is_of_prompt_model_and_parameters() -> None:
    prompt = build_prompt(["a"])
    keys = {
        request_key(prompt, "m", PARAMS),
        request_key(build_prompt(["b"]), "m", PARAMS),
        request_key(prompt, "n", PARAMS),
        request_key(prompt, "m", {"temperature": 1.0}),
    }
    assert len(keys) == 4


def test_a_reply_is_never_replaced_by_worse(tmp_path: Path) -> None:
    good, invalid, failed = record("u"), record("u", "{}"), record("u", failure="500")
    with LabelCache(tmp_path / "c.db") as cache:
        for put, status in (
            (failed, "failed"),
            (invalid, "invalid"),
            (failed, "invalid"),
            (good, "ok"),
            (invalid, "ok"),
        ):
            cache.put(put)
            assert [one.status for one in cache.records()] == [status]


def test_what_is_pending(tmp_path: Path) -> None:
    ok, invalid, failed = record("1"), record("2", "{}"), record("3", failure="no")
    keys = [failed.key, ok.key, "new", invalid.key, "new"]
    with LabelCache(tmp_path / "c.db") as cache:
        cache.put(ok, invalid, failed)
        assert cache.pending(keys) == [failed.key, "new"]
        assert cache.pending(keys, again=frozenset()) == ["new"]
        assert cache.pending(keys, again={"failed", "invalid"}) == [failed.key, "new", invalid.key]


def test_half_a_surrogate_pair_and_nul_can_be_stored(tmp_path: Path) -> None:
    with LabelCache(tmp_path / "c.db") as cache:
        cache.put(record("u", "\ud83d \x00" + TEXT), record("v", failure="\ud83d"))
        assert cache.counts()["ok"] == 1
        cache.export_jsonl(tmp_path / "out.jsonl")


def test_claims(tmp_path: Path) -> None:
    with LabelCache(tmp_path / "c.db") as one, LabelCache(tmp_path / "c.db") as two:
        made = record("u")
        assert one.claim(made.key) == "mine"
        assert (one.claim(made.key), two.claim(made.key)) == ("mine", "busy")
        two.release()
        assert two.claim(made.key) == "busy"
        one.release(made.key)
        assert (two.claim(made.key), one.claim(made.key)) == ("mine", "busy")
        two.put(made)
        assert (one.claim(made.key), two.claim(made.key)) == ("done", "done")
        one.put(record("f", failure="x"))
        assert one.claim(record("f").key) == "mine"


def test_a_claim_ends_with_its_lease_unless_renewed(tmp_path: Path) -> None:
    with LabelCache(tmp_path / "c.db", lease=0.3) as one, LabelCache(tmp_path / "c.db", lease=0.3) as two:
        assert one.claim("k") == "mine"
        time.sleep(0.2)
        one.renew()
        time.sleep(0.2)
        assert two.claim("k") == "busy"
        time.sleep(0.2)
        assert two.claim("k") == "mine"


_CHILD = """
import sys, time
from eimf.labels.cache import LabelCache
cache = LabelCache(sys.argv[1])
print(cache.claim("k"), flush=True)
time.sleep(60)
"""


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", _CHILD, str(tmp_path / "c.db")], stdout=subprocess.PIPE, text=True)
    with child, LabelCache(tmp_path / "c.db") as cache:
        assert child.stdout is not None
        assert child.stdout.readline() == "mine\n"
        assert cache.claim("k") == "busy"
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert cache.claim("k") == "mine"


def test_a_claim_does_not_pass_to_another_process_of_the_same_id(tmp_path: Path) -> None:
    with LabelCache(tmp_path / "c.db") as one, LabelCache(tmp_path / "c.db") as two:
        assert one.claim("k") == "mine"
        assert two.claim("k") == "busy"
        one._db.execute("UPDATE claims SET started = '1.0'")  # this process began later
        assert two.claim("k") == "mine"


def test_a_process_that_cannot_be_looked_at_keeps_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LabelCache(tmp_path / "c.db") as one, LabelCache(tmp_path / "c.db") as two:
        assert one.claim("k") == "mine"

        def denied(pid: int) -> psutil.Process:
            raise psutil.AccessDenied(pid)

        monkeypatch.setattr("eimf.labels.cache.psutil.Process", denied)
        assert two.claim("k") == "busy"


_WRITER = """
import sys
from tests.labels.test_cache import LabelCache, record
with LabelCache(sys.argv[1]) as cache:
    for n in range(int(sys.argv[3])):
        cache.put(record(f"{sys.argv[2]}-{n}"))
        print(n, flush=True)
"""


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITER, str(tmp_path / "c.db")]
    writers = [subprocess.Popen([*command, str(n), "40"], stdout=subprocess.DEVNULL) for n in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    with LabelCache(tmp_path / "c.db") as cache:
        assert cache.counts()["ok"] == 120


def test_sigkill_loses_no_record_that_was_put(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITER, str(tmp_path / "c.db"), "u", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(25):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        written = 25 + len(writer.stdout.read().split())
    with LabelCache(tmp_path / "c.db") as cache:
        assert cache.counts()["ok"] in (written, written + 1)  # killed between commit and print


def test_a_full_disk_is_one_line_and_keeps_what_was_there(tmp_path: Path) -> None:
    with LabelCache(tmp_path / "c.db") as cache:
        pages = cache._pragma("page_count")
        cache._db.execute(f"PRAGMA max_page_count = {pages + 6}")
        with pytest.raises(
            LabelError, match=r"c\.db: the disk is full or refuses .* finished replies are kept"
        ) as error:
            for n in range(100):
                cache.put(record(f"u{n}", TEXT + " " * 5000))
        assert "\n" not in str(error.value)
        before = cache.counts()["ok"]
        assert before > 0
    with LabelCache(tmp_path / "c.db") as cache:
        assert cache.counts()["ok"] == before
        cache.put(record("more"))


_FULL = """
import resource, sys
from eimf.core.errors import LabelError
from tests.labels.test_cache import LabelCache, TEXT, record
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
n = 0
try:
    with LabelCache(sys.argv[1]) as cache:
        for n in range(1000):
            cache.put(record(f"u{n}", TEXT + " " * 5000))
except LabelError as error:
    print(n, error)
"""


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    assert resource.RLIM_INFINITY is not None
    done = subprocess.run([sys.executable, "-c", _FULL, str(tmp_path / "c.db")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, _, text = done.stdout.partition(" ")
    assert "the disk is full or refuses" in text
    with LabelCache(tmp_path / "c.db") as cache:
        assert cache.counts()["ok"] == int(count) > 0


def test_files_that_are_no_cache(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("user,interest\n" * 50)
    with pytest.raises(LabelError, match="is not a label cache"):
        LabelCache(text)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE shop (x)")
    database.close()
    before = other.read_bytes()
    with pytest.raises(LabelError, match="no label cache"):
        LabelCache(other)
    assert other.read_bytes() == before
    LabelCache(tmp_path / "old.db").close()
    with sqlite3.connect(tmp_path / "old.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(LabelError, match="of version 99, this program reads version 1"):
        LabelCache(tmp_path / "old.db")
    with pytest.raises(LabelError, match="cannot be opened"):
        LabelCache(tmp_path)
    with pytest.raises(LabelError, match="folder cannot be made"):
        LabelCache(text / "c.db")
    with pytest.raises(LabelError, match="no such label cache"):
        LabelCache(tmp_path / "none.db", read_only=True)


def test_a_read_only_cache_refuses_writes(tmp_path: Path) -> None:
    LabelCache(tmp_path / "c.db").close()
    with LabelCache(tmp_path / "c.db", read_only=True) as cache:
        assert cache.counts()["ok"] == 0
        with pytest.raises(LabelError, match="is read-only"):
            cache.put(record("u"))


def test_a_folder_that_cannot_be_written_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LabelCache(tmp_path / "c.db") as cache:
        cache.put(record("u"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert len(read_labels(tmp_path / "c.db")) == 1
    # Nor is what lies beside the file, since its writer is at work or died, left out.
    with LabelCache(tmp_path / "c.db") as cache:
        cache.put(record("another"))
        assert len(read_labels(tmp_path / "c.db")) == 2


def test_an_empty_file_is_no_label(tmp_path: Path) -> None:
    """A full disk leaves one; it must not hide the labels that come with a data set."""
    (tmp_path / "c.db").touch()
    assert not has_label(tmp_path / "c.db")
    with LabelCache(tmp_path / "c.db") as cache:
        assert not has_label(tmp_path / "c.db")
        cache.put(record("u"))
        assert has_label(tmp_path / "c.db")


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    with LabelCache(tmp_path / "c.db") as cache:
        cache.put(record("u"))
        cache._db.execute("UPDATE labels SET interests = 'oops'")
        with pytest.raises(LabelError, match="is damaged"):
            cache.records()


def test_export_and_import(tmp_path: Path) -> None:
    old = record("u1")
    newer = replace(old, key="x", interests=(Interest("now creams", (1,)),), created_at=old.created_at + 1)
    with LabelCache(tmp_path / "c.db") as cache:
        cache.put(newer, old, record("u2"), record("u3", "{}"))
        assert cache.export_jsonl(tmp_path / "out.jsonl") == 2  # one line a user
        assert cache.import_jsonl(tmp_path / "out.jsonl").repeated == 2
        labels = cache.labels()
    assert [label.user_id for label in labels] == ["u1", "u2", "u1"]
    labels = newest_labels(labels)
    assert {label.user_id: label.interests[0].name for label in labels} == {
        "u1": "now creams",
        "u2": "soaps and creams",
    }
    assert read_labels(tmp_path / "out.jsonl") == newest_labels(read_labels(tmp_path / "c.db")) == labels
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0]) == {
        "user_id": labels[0].user_id,
        "interests": [{"name": labels[0].interests[0].name, "items": list(labels[0].interests[0].items)}],
        "history": list(labels[0].history),
        "model": "model",
        "prompt_version": "v1",
    }
    with LabelCache(tmp_path / "d.db") as cache:
        assert cache.import_jsonl(tmp_path / "out.jsonl").imported == 2
        assert cache.import_jsonl(tmp_path / "out.jsonl").repeated == 2
        assert cache.labels() == labels
        with pytest.raises(ArtifactError, match="could not be written"):
            cache.export_jsonl(tmp_path / "none" / "out.jsonl")


def test_lines_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lines = [
        *("\ufeff" + line("u1"), line("u1"), "", line("stranger"), line("u2", ["a", "z"]), "{", "[]"),
        *(line("u3", []), line("u4", [1]), line("u5", interests=[]), line("u6", interests=[{"name": "x"}])),
        *(
            line("u7", interests=[{"name": "soap", "items": [2, 3, 0]}]),
            line("u8", interests=[{"name": "s", "items": [9]}]),
        ),
        *(
            line("u9", interests=[{"name": "x" * 5000, "items": [1]}]),
            line(""),
            line("u1", user_id=5),
            line("u", model=3),
        ),
    ]
    path.write_bytes("\n".join(lines).encode() + b'\n{"user_id": "\xff\xfe", ' + line("x")[17:].encode())
    users = {"u1", "u2", *(f"u{n}" for n in range(3, 10))}
    with LabelCache(tmp_path / "c.db") as cache:
        report = cache.import_jsonl(path, users, {"a", "b"})
        labels = cache.labels()
    assert (report.imported, report.repeated, report.unknown_user, report.unknown_item) == (2, 1, 1, 1)
    assert report.broken_lines == 12
    assert report.out_of_range == 2
    assert report.first["unknown_user"] == "line 4: user 'stranger'"
    assert report.first["unknown_item"] == "line 5: item 'z' of user 'u2'"
    assert report.first["broken_lines"] == "line 6: is not JSON"
    assert labels[1] == Label("u7", (Interest("soap", (2,)),), ("a", "b"), "m", "v1")


def test_a_file_in_which_nothing_fits(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    with LabelCache(tmp_path / "c.db") as cache:
        path.write_text(line("u1") + "\n" + line("u2"))
        with pytest.raises(LabelError, match=r"no line fits this data set: 2 unknown users \(line 1: user 'u1'\)"):
            cache.import_jsonl(path, set(), None)
        path.write_text("")
        with pytest.raises(LabelError, match="the file is empty"):
            cache.import_jsonl(path)
        with pytest.raises(LabelError, match="cannot be read"):
            cache.import_jsonl(tmp_path / "none.jsonl")
        assert cache.records() == []


def test_reading_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(
        "\n".join([line("u1"), "broken", line("u2"), line("u1", interests=[{"name": "new", "items": [2]}])])
    )
    labels = read_labels(path)
    assert len(labels) == 3
    assert [(one.user_id, one.interests[0].name) for one in newest_labels(labels)] == [("u2", "soaps"), ("u1", "new")]
    path.write_text("broken")
    with pytest.raises(LabelError, match="no usable label"):
        read_labels(path)
    with pytest.raises(LabelError, match="no labels yet"):
        read_labels(tmp_path / "none")
    with pytest.raises(LabelError, match="cannot be read"):
        read_labels(tmp_path)
    LabelCache(tmp_path / "c.db").close()
    with pytest.raises(LabelError, match="no valid label yet"):
        read_labels(tmp_path / "c.db")


def test_the_shared_labels_are_read(tmp_path: Path) -> None:
    path = Path(__file__).resolve().parents[3] / "shared" / "labels" / "beauty.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    lines = len(path.read_text().splitlines())
    with LabelCache(tmp_path / "c.db") as cache:
        report = cache.import_jsonl(path)
        assert report.imported + report.repeated + report.broken_lines == lines
        assert report.imported >= 0.99 * lines
    assert len(read_labels(path)) == len(read_labels(tmp_path / "c.db"))
