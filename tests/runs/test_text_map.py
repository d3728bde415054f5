"""The text map: what it finds, how it is kept, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from eimf.core.errors import ArtifactError, DataError
from eimf.runs.folder import BEST, TEXT_MAP
from eimf.runs.text_map import fit_text_map, read_text_map, save_text_map


def data(noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Item vectors that are a linear map of text vectors, an offset and noise."""
    rng = np.random.default_rng(seed)
    texts = rng.normal(size=(400, 12))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    items = texts @ rng.normal(size=(12, 5)) + rng.normal(size=5) + noise * rng.normal(size=(400, 5))
    return texts.astype(np.float32), items.astype(np.float32), rng.integers(1, 50, size=400)


def test_a_linear_relation_is_found() -> None:
    texts, items, counts = data(noise=0.0)
    made = fit_text_map(texts, items, counts, strengths=(1e-9,))
    np.testing.assert_allclose(made(texts), items, atol=1e-4)
    assert made.fit.explained > 0.999
    assert made.fit.items == 399


def test_it_is_weighted_ridge_regression() -> None:
    texts, items, counts = data(noise=0.5)
    made = fit_text_map(texts, items, counts, strengths=(10.0,))
    weight = np.sqrt(counts[1:])
    x = texts[1:] - np.average(texts[1:], axis=0, weights=weight)
    y = items[1:] - np.average(items[1:], axis=0, weights=weight)
    # The same by least squares on rows of the penalty.
    rows = np.concatenate([x * np.sqrt(weight)[:, None], np.sqrt(10.0) * np.eye(12)])
    expected = np.linalg.lstsq(rows, np.concatenate([y * np.sqrt(weight)[:, None], np.zeros((12, 5))]), rcond=None)[0]
    np.testing.assert_allclose(made.weights, expected, atol=1e-4)


def test_the_strength_is_chosen_on_held_out_items() -> None:
    strong = fit_text_map(*data(noise=8.0), strengths=(0.01, 1000.0))
    weak = fit_text_map(*data(noise=0.05), strengths=(0.01, 1000.0))
    assert (strong.fit.strength, weak.fit.strength) == (1000.0, 0.01)
    assert strong.fit.explained < 0.2 < 0.9 < weak.fit.explained


def test_items_without_interactions_do_not_count() -> None:
    texts, items, counts = data(noise=0.1)
    counts[100:] = 0
    one, wild = fit_text_map(texts, items, counts), items.copy()
    wild[100:] = 1e3
    np.testing.assert_array_equal(fit_text_map(texts, wild, counts).weights, one.weights)
    with pytest.raises(DataError, match="needs 20 items with training interactions, there are 5"):
        fit_text_map(texts[:6], items[:6], np.ones(6, np.int64))


def test_it_is_kept_with_its_run(tmp_path: Path) -> None:
    (tmp_path / BEST).parent.mkdir()
    (tmp_path / BEST).write_bytes(b"weights")
    assert read_text_map(tmp_path) is None
    made = fit_text_map(*data(noise=0.1), encoder="some/encoder")
    save_text_map(tmp_path, made)
    again = read_text_map(tmp_path)
    assert again is not None
    assert (again.fit, again.encoder) == (made.fit, "some/encoder")
    texts = data(noise=0.1)[0]
    np.testing.assert_array_equal(again(texts), made(texts))
    with pytest.raises(DataError, match=r"must have 12 dimensions.*\[2, 3\]"):
        again(np.zeros((2, 3), np.float32))
    (tmp_path / BEST).write_bytes(b"other weights")
    with pytest.raises(ArtifactError, match="was made of other weights; make it again with eimf map"):
        read_text_map(tmp_path)
    for damage in (b"", b"PK\x03\x04", (tmp_path / TEXT_MAP).read_bytes()[:-200]):
        (tmp_path / TEXT_MAP).write_bytes(damage)
        with pytest.raises(ArtifactError, match="damaged or unreadable"):
            read_text_map(tmp_path)
