"""What `import eimf` gives, and what it costs."""

import subprocess
import sys
from importlib import import_module

import pytest

import eimf


@pytest.mark.parametrize(
    "module", ["eimf", "eimf.config", "eimf.config.load", "eimf.config.reference", "eimf.cli.main"]
)
def test_no_torch_is_loaded(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'pytorch_lightning', 'faiss'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_every_public_name_can_be_imported() -> None:
    assert dir(eimf) == sorted(eimf.__all__)
    assert len(set(eimf.__all__)) == len(eimf.__all__)
    for name in eimf.__all__:
        assert getattr(eimf, name) is not None
    space: dict[str, object] = {}
    exec("from eimf import *", space)
    assert set(space) - {"__builtins__"} == set(eimf.__all__)


def test_the_names_are_those_of_the_table_of_places() -> None:
    places = {name: module for module, names in eimf._PLACES.items() for name in names}
    assert set(places) | {"load_config", "__version__"} == set(eimf.__all__)
    for name, module in places.items():
        assert hasattr(import_module(module), name)


def test_names_are_what_they_say() -> None:
    import eimf.evaluation.metrics
    from eimf.backbones.comirec_sa import ComiRecSA
    from eimf.config.load import load
    from eimf.serving import recommender

    assert eimf.ComiRecSA is ComiRecSA
    assert eimf.load_config is load
    assert eimf.load is recommender.load
    assert eimf.metrics is sys.modules["eimf.evaluation.metrics"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = eimf.Nothing  # pyright: ignore[reportAttributeAccessIssue]
