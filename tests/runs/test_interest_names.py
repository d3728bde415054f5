"""Names of interests in a run folder."""

from pathlib import Path

import pytest

from eimf.core.errors import ArtifactError
from eimf.runs.interest_names import FILE, read_interest_names, write_interest_names


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_interest_names(tmp_path, [["hair care", "shampoo"], []], [7, 0])
    assert read_interest_names(tmp_path) == [["hair care", "shampoo"], []]


def test_a_run_without_names(tmp_path: Path) -> None:
    assert read_interest_names(tmp_path) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"interests": [{}]}', '{"interests": 3}'])
def test_a_damaged_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ArtifactError, match="is damaged .* remove it"):
        read_interest_names(tmp_path)
