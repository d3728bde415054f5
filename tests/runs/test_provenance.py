"""What makes a finished run out of date, and what does not."""

import ast
import shutil
from pathlib import Path

import pytest

from eimf.config.load import load
from eimf.runs import provenance
from eimf.runs.provenance import code_digest, computing_modules, run_key


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that the digest is taken of."""
    package = tmp_path / "eimf"
    shutil.copytree(provenance.PACKAGE, package)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    return package


def digest() -> str:
    code_digest.cache_clear()
    found = code_digest()
    code_digest.cache_clear()
    return found


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_words_make_nothing_stale(copied: Path) -> None:
    before = digest()
    module = copied / "training" / "module.py"
    module.write_text("# A comment.\n" + module.read_text())
    change(module, '"""Interest vectors of histories', '"""Other words: vectors of histories')
    change(copied / "losses" / "negatives.py", "this loss needs the frequencies", "other words for an error")
    change(copied / "explicit" / "load.py", "explicit interests: ", "other words of a log line: ")
    for name in ("report/page.py", "cli/main.py", "studies/tables.py", "serving/recommender.py", "explorer/view.py"):
        (copied / name).write_text((copied / name).read_text() + "\nADDED = 1\n")
    assert digest() == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("backbones/mind.py", "manual_seed(0)", "manual_seed(1)"),
        ("losses/kernels.py", "LEAST_ROWS = 64", "LEAST_ROWS = 65"),
        ("evaluation/metrics.py", "1 / torch.log2", "2 / torch.log2"),
        ("data/splits.py", "enough = end - start >= 3", "enough = end - start >= 4"),
        ("explicit/tasks/modality_alignment.py", "/ 2", "/ 3"),
        ("labels/typical.py", "np.linalg.norm(means", "2 * np.linalg.norm(means"),
    ],
)
@pytest.mark.slow
def test_what_computes_counts(copied: Path, name: str, old: str, new: str) -> None:
    before = digest()
    change(copied / name, old, new)
    assert digest() != before


def test_the_modules_are_found_by_their_imports() -> None:
    modules = computing_modules()
    assert {"eimf.training.module", "eimf.backbones.remi", "eimf.data.sources.amazon", "eimf.losses.ihn"} <= modules
    assert not [name for name in modules if name.split(".")[1] in ("cli", "report", "explorer", "studies", "serving")]
    for name in modules:
        path = provenance._path_of(name)
        assert path is not None
        ast.parse(path.read_text())


def test_a_key_knows_settings_by_value() -> None:
    base = load(None, [])
    same = load(None, ["experiment=x", "logger.root=elsewhere", "trainer.progress=false", "data.root=there"])
    assert run_key(base, "d", "") == run_key(same, "d", "")
    for other in ("seed=1", "optim.lr=0.002", "eval.filter_seen=false", "backbone.n_interests=3", "loss=gbce"):
        assert run_key(load(None, [other]), "d", "") != run_key(base, "d", "")
    assert run_key(base, "e", "") != run_key(base, "d", "")
