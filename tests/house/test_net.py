"""The last net of the command line: whatever happens is one line."""

import stat
import sys
from pathlib import Path

import pytest

from eimf.cli import main as module
from eimf.cli.main import main
from tests.conftest import TINY


def test_an_unexpected_error_is_one_line_and_can_be_looked_into(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("nobody\nforesaw this")

    monkeypatch.setattr(sys.modules["eimf.config.load"], "resolve", broken)
    assert main(["config"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("eimf: unexpected KeyError: ")
    assert error.count("\n") == 1
    assert f"--debug or {module.DEBUG}=1 shows where" in error
    assert main(["--debug", "config"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_file_system_that_refuses_is_one_line(
    tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    common = [*TINY, f"data.root={data_root}"]
    for arguments in (
        ["prepare", *TINY, f"data.root={blocked}/data"],
        ["train", *common, f"logger.root={blocked}/logs"],
        ["train", *common, f"logger.root={tmp_path}", f"experiment={'x' * 149}", f"data.root={blocked}"],
        ["simulate", str(blocked / "shop"), "--users", "20", "--items", "60"],
        ["compare", "interests", *common, f"logger.root={blocked}/logs", "seeds=[0]"],
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert error.startswith("eimf: ")
    assert blocked.read_text() == "no folder"
    assert stat.S_ISREG(blocked.stat().st_mode)


@pytest.mark.parametrize("name", ["a/b", "..", "-x", "a\nb", "x" * 200, " x"])
def test_names_are_single_parts_of_a_path(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("experiment", "dataset.name"):
        assert main(["config", "dataset.source=demo", f"{key}={name}"]) == 2
        error = capsys.readouterr().err
        assert f"eimf: {key}: must be a plain name" in error
        assert error.count("\n") == 1


@pytest.mark.slow
def test_signs_in_paths_and_names_work_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "a=b [c] {d} #e 'f'"
    home.mkdir()
    rows = [f"u{user},i{(user * 7 + place) % 30},{place}" for user in range(40) for place in range(8)]
    (home / "o[1]=x.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows))
    experiment = home / "my=exp [1].yaml"
    experiment.write_text("dataset: {name: 'a=b [c]', source: table, user_min: 1, item_min: 1}\n")
    settings = [f"dataset.interactions={home}/o[1]=x.csv", f"data.root={home}/data", f"logger.root={home}/logs"]
    plain = [one for one in TINY if not one.startswith("dataset.")]
    assert main(["train", str(experiment), *plain, *settings, "experiment=r=[1] x", "trainer.max_epochs=1"]) == 0
    run = home / "logs" / "r=[1] x" / "version_0"
    for command in (["evaluate", str(run)], ["report", str(run)], ["recommend", str(run), "--user", "u1", "-n", "2"]):
        assert main(command) == 0, capsys.readouterr().err
