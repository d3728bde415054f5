"""The steps of the Dockerfile, in a clean environment: its copies, its `pip install`, its start command."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from eimf.training.train import train
from tests.conftest import ROOT, tiny_config


def read_dockerfile() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def arguments_of(name: str) -> list[str]:
    """All arguments of an instruction, in order."""
    return [rest for instruction, rest in read_dockerfile() if instruction == name]


def test_the_python_of_the_image_is_one_that_the_package_allows() -> None:
    (image,) = arguments_of("FROM")
    minor = int(image.removeprefix("python:3.").split("-")[0])
    assert 'requires-python = ">=3.11,<3.14"' in (ROOT / "pyproject.toml").read_text()
    assert 11 <= minor < 14


def test_what_is_copied_is_sent_to_the_builder() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {source for copy in arguments_of("COPY") for source in copy.split()[:-1]}
    assert sources == kept
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.image
def test_the_steps_build_a_service_that_answers(data_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    for copy in arguments_of("COPY"):
        *sources, to = copy.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, folder / to)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    path = f"{tmp_path / 'env' / 'bin'}:{os.environ['PATH']}"
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= {"PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONNOUSERSITE": "1"}
    (install,) = [step for step in arguments_of("RUN") if step.startswith("pip ")]
    done = subprocess.run(install, shell=True, cwd=folder, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = train(tiny_config(data_root, tmp_path, "trainer.max_epochs=1")).folder
    (start,) = arguments_of("ENTRYPOINT")
    places: dict[str, str] = {"/served": str(run), "8412": "0", "0.0.0.0": "127.0.0.1"}  # not in a container here
    program, *rest = (places.get(part) or part for part in map(str, json.loads(start)))
    server = subprocess.Popen(
        [str(tmp_path / "env" / "bin" / program), *rest],
        cwd=tmp_path,
        env=clean,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split("127.0.0.1:")[1].split("/")[0]
        (health,) = arguments_of("HEALTHCHECK")
        check = [part.replace("8412", port) for part in json.loads(health.removeprefix("CMD "))]
        assert subprocess.run(check, env=clean, check=False, timeout=60).returncode == 0
        body = json.dumps({"history": ["P00003"], "n": 3}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/recommend", body, timeout=60) as reply:
            assert len(json.load(reply)["items"]) == 3
    finally:
        server.terminate()
        server.wait(60)
        if server.stdout is not None:
            server.stdout.close()
