"""What makes a finished run out of date, and what does not."""

import ast
import json
import shutil
import textwrap
from pathlib import Path

import pytest

from eimf.config.load import load
from eimf.runs import provenance
from eimf.runs.provenance import code_digest, computing_modules, input_digests, run_key
from eimf.studies.suite import find_runs
from eimf.training.train import train
from tests.conftest import tiny_config


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that the digest is taken of."""
    package = tmp_path / "eimf"
    shutil.copytree(provenance.PACKAGE, package)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    return package


@pytest.fixture
def tiny_run(data_root: Path, tmp_path: Path) -> Path:
    return train(tiny_config(data_root, tmp_path, "trainer.max_epochs=1")).folder


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
    change(copied / "runs" / "results.py", "peak_memory_gib", "other_name")
    schema = copied / "config" / "schema.py"
    change(schema, "class TrainerConfig:", "class TrainerConfig:\n    new_one: int = 3")  # counts by its value
    assert digest() == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("backbones/mind.py", "manual_seed(0)", "manual_seed(1)"),
        ("losses/kernels.py", "LEAST_ROWS = 64", "LEAST_ROWS = 65"),
        ("evaluation/metrics.py", "1 / torch.log2", "2 / torch.log2"),
        ("data/splits.py", "enough = end - start >= 3", "enough = end - start >= 4"),
        ("explicit/tasks/modality_alignment.py", "/ 2", "/ 3"),
        ("training/train.py", 'mode="max"', 'mode="min"'),
        ("training/warm_start.py", "import torch", "import torch as other"),  # under another name
        ("config/schema.py", 'or f"recall@', 'or f"ndcg@'),
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


def test_a_component_from_outside_counts_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "shop_models.py"
    source = """
        \"\"\"Our models.\"\"\"
        from eimf.backbones.comirec_sa import ComiRecSA

        class Ours(ComiRecSA):
            scale = 1
    """
    module.write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    config = load(None, ["backbone=shop_models:Ours"])
    before = input_digests(config)
    assert set(before) == {"backbone.name"}
    module.write_text(module.read_text().replace("Our models.", "Other words."))
    assert input_digests(config) == before
    module.write_text(module.read_text().replace("scale = 1", "scale = 2"))
    assert input_digests(config) != before
    assert input_digests(load(None, [])) == {}


def test_a_run_that_lacks_a_newer_setting_is_still_found(tiny_run: Path) -> None:
    record = json.loads((tiny_run / "run.json").read_text())
    record["key"] = "made by a version without that setting"
    (tiny_run / "run.json").write_text(json.dumps(record))
    (found,) = find_runs(tiny_run.parent)
    config = load(tiny_run / "config.yaml")
    assert found.this_code
    assert found.key == run_key(config, record["data_digest"], record["label_digest"], record["inputs"])
