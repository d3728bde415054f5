import json
from pathlib import Path

import pytest

from eimf.errors import LabelError
from eimf.semantics.labels import Interest, read_labels
from tests.conftest import ROOT

GOOD = {
    "user_id": "u",
    "interests": [{"name": "nail art  tools\n", "items": [1, 2, 2, 9, 0, "1"]}, {"name": "x", "items": [7]}],
    "history": ["a", "b"],
    "model": "m",
    "prompt_version": "v1",
}


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_fields_are_checked_and_tidied(tmp_path: Path) -> None:
    found = read_labels(written(tmp_path / "l.jsonl", GOOD))
    (label,) = found.labels
    assert label.interests == (Interest("nail art tools", (1, 2)),)
    assert (label.user_id, label.history, label.model, label.prompt_version) == ("u", ("a", "b"), "m", "v1")
    assert sum(found.repairs.values()) == 1


@pytest.mark.parametrize(
    "row",
    [
        "{half",
        "[]",
        "null",
        {**GOOD, "user_id": None},
        {**GOOD, "history": []},
        {**GOOD, "history": "abc"},
        {**GOOD, "interests": []},
        {**GOOD, "interests": [{"name": "n", "items": [1]}] * 40},
        {**GOOD, "interests": [{"name": "n" * 5000, "items": [1]}]},
        {**GOOD, "interests": [{"name": "n", "items": [3]}]},
        {**GOOD, "interests": ["nail art"]},
        {**GOOD, "interests": {"name": "n"}},
        "[" * 100_000,
    ],
    ids=str,
)
def test_unusable_lines_are_counted(tmp_path: Path, row: object) -> None:
    path = written(tmp_path / "l.jsonl", row, GOOD, "")
    found = read_labels(path)
    assert [label.user_id for label in found.labels] == ["u"]
    assert found.repairs["lines that are no label (dropped)"] == 1
    with pytest.raises(LabelError, match=r"holds no usable label \(line 1: ") as error:
        read_labels(written(path, row))
    assert "\n" not in str(error.value)


def test_last_line_of_a_user_wins(tmp_path: Path) -> None:
    found = read_labels(written(tmp_path / "l.jsonl", GOOD, {**GOOD, "model": "other"}))
    assert [label.model for label in found.labels] == ["other"]
    assert found.repairs["lines that repeat a user (last one kept)"] == 1


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="no such label file"):
        read_labels(tmp_path / "none.jsonl")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(LabelError, match="cannot be read as UTF-8"):
        read_labels(tmp_path / "bytes")
    (tmp_path / "empty").touch()
    with pytest.raises(LabelError, match="it is empty"):
        read_labels(tmp_path / "empty")


def test_labels_of_beauty() -> None:
    path = ROOT.parent / "shared" / "labels" / "beauty.jsonl"
    if not path.is_file():
        pytest.skip(f"no shared labels: {path} is missing")
    found = read_labels(path)
    assert len(found.labels) >= 400
    assert not found.repairs
