"""A checkpoint is the earlier one or the new one, never a part: after a kill, and on a full disk."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from eimf.core.errors import ArtifactError
from eimf.training.callbacks import WholeCheckpointIO


def test_an_earlier_checkpoint_survives_an_error_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer, path = WholeCheckpointIO(), tmp_path / "last.ckpt"
    writer.save_checkpoint({"step": 1}, path)

    def half(value: object, to: Path) -> None:
        Path(to).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(ArtifactError, match=r"last.ckpt: could not be written \(No space left on device\)"):
        writer.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["last.ckpt"]  # nothing temporary is left


@pytest.mark.slow
def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    code = (
        "import sys, torch; from eimf.training.callbacks import WholeCheckpointIO\n"
        "value = {'weights': torch.zeros(2_000_000)}; print('ready', flush=True)\n"
        "while True: WholeCheckpointIO().save_checkpoint(value, sys.argv[1])\n"
    )
    for wait in (0.03, 0.05, 0.08, 0.13):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 30
        while not path.is_file() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert len(torch.load(path, weights_only=True)["weights"]) == 2_000_000


def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("a small file system can be mounted by root only")
    try:
        writer, path = WholeCheckpointIO(), disk / "checkpoints" / "last.ckpt"
        writer.save_checkpoint({"weights": torch.zeros(100_000)}, path)
        with pytest.raises(ArtifactError, match=r"last.ckpt: could not be written"):
            writer.save_checkpoint({"weights": torch.ones(200_000)}, path)
        assert torch.load(path, weights_only=True)["weights"].sum() == 0
        assert [one.name for one in path.parent.iterdir()] == ["last.ckpt"]
    finally:
        subprocess.run(["umount", disk], check=True)
