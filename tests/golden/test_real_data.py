"""Known facts of the real data sets, through the whole preparation."""

import numpy as np
import pytest

from eimf.config.load import load
from eimf.config.schema import SplitConfig
from eimf.data.prepare import prepare
from eimf.data.prepared import Prepared, statistics
from eimf.data.splits import split_sequences
from tests.conftest import real_data


@pytest.fixture
def prepared(request: pytest.FixtureRequest, data_root, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setenv("EIMF_DATA_MIRROR", str(real_data()))
    return prepare(load(None, [f"dataset={request.param}"]).dataset, data_root)


@pytest.mark.parametrize(
    ("prepared", "counts"),
    [
        ("beauty", (22_363, 12_101, 198_502)),
        ("toys", (19_412, 11_924, 167_597)),
        # 100,000 ratings by 943 users of 1,682 films; 333 films have fewer than 5.
        ("ml-100k", (943, 1_349, 99_287)),
    ],
    indirect=["prepared"],
)
def test_sizes(prepared: Prepared, counts: tuple[int, int, int]) -> None:
    found = statistics(prepared)
    assert (found.users, found.items, found.interactions) == counts


@pytest.mark.parametrize("prepared", ["beauty"], indirect=True)
def test_beauty(prepared: Prepared) -> None:
    assert statistics(prepared).tied_users == pytest.approx(0.435, abs=0.0005)
    assert prepared.manifest.repairs == {"items without a title": 7}
    parts = split_sequences(prepared.sequences, SplitConfig(kind="user"))
    assert len(parts.validation) == len(parts.test) == 2236
    loo = split_sequences(prepared.sequences, SplitConfig(kind="loo"))
    assert loo.test.tied.mean() == pytest.approx(0.435, abs=0.0005)
    # Inside a day the published order is by item id, so it must survive the sort by time.
    data, ids = prepared.sequences, np.array(prepared.items["item_id"].to_list())
    same_user = np.ones(len(data.items), dtype=bool)
    same_user[data.offsets[:-1]] = False
    tie = np.flatnonzero(same_user[1:] & (np.diff(data.timestamps) == 0))
    assert (ids[data.items[tie] - 1] < ids[data.items[tie + 1] - 1]).all()
