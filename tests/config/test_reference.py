"""The reference of settings is complete and up to date."""

from dataclasses import fields, is_dataclass
from typing import get_type_hints

from eimf.config.components import BACKBONES, BACKENDS, LOSSES, SOURCES
from eimf.config.load import CHOSEN
from eimf.config.reference import meanings, reference
from eimf.config.schema import Config
from tests.conftest import ROOT


def test_the_page_is_what_the_schema_says() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    assert page == reference(), "run: python -m eimf.config.reference > docs/reference/settings.md"


def test_every_setting_has_a_meaning() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 120
    assert not [row for row in rows if not row.rstrip(" |").split("| ")[-1].strip() or row.endswith("|  |")]


def test_every_field_of_every_component_is_explained() -> None:
    sections = {name: kind for name, kind in get_type_hints(Config).items() if is_dataclass(kind)}
    kinds = {kind for name, kind in sections.items() if name not in CHOSEN}
    kinds |= {one.Config for registry in (BACKBONES, LOSSES, SOURCES, BACKENDS) for one in registry.values()}
    for kind in kinds:
        assert isinstance(kind, type)
        assert {item.name for item in fields(kind)} == set(meanings(kind)), kind
