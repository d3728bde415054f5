"""Our metrics against an independent implementation (ir_measures over trec_eval and its own providers)."""

import ir_measures
import pytest
import torch
from ir_measures import RR, R, Success, nDCG

from eimf.config.components import METRICS
from eimf.data.batch import Ragged
from eimf.evaluation.metrics import find_hits


@pytest.mark.parametrize("k", [1, 5, 20, 50])
@pytest.mark.parametrize("n_targets", [1, 3, 30])
def test_equal_to_ir_measures(k: int, n_targets: int) -> None:
    generator = torch.Generator().manual_seed(100 * k + n_targets)
    ranked = torch.stack([torch.randperm(120, generator=generator)[:50] + 1 for _ in range(40)])
    targets = torch.stack([torch.randperm(120, generator=generator)[:n_targets] + 1 for _ in range(40)])
    hits, count = find_hits(ranked, Ragged.of(targets.tolist()))
    qrels = {f"u{u}": {f"i{item}": 1 for item in row} for u, row in enumerate(targets.tolist())}
    run = {f"u{u}": {f"i{item}": 1000.0 - r for r, item in enumerate(row)} for u, row in enumerate(ranked.tolist())}
    reference = {"recall": R @ k, "hr": Success @ k, "ndcg": nDCG @ k, "mrr": RR @ k}
    for name, measure in reference.items():
        expected = {one.query_id: one.value for one in ir_measures.iter_calc([measure], qrels, run)}
        found = METRICS[name](hits, count, k)
        assert [float(v) for v in found] == pytest.approx([expected[f"u{u}"] for u in range(40)], abs=1e-9), name
