"""Latency of the HTTP service for one client and for 64, for catalogues of random items; run with `make bench`."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import polars
import pytest
import torch
import uvicorn

from eimf.backbones.comirec_sa import ComiRecSA
from eimf.config.load import load as load_config
from eimf.evaluation.retrieval import ItemIndex
from eimf.runs.provenance import machine
from eimf.serving import http as module
from eimf.serving.http import Service, build_app
from eimf.serving.recommender import Recommender
from tests.conftest import ROOT

CLIENTS, SECONDS = 64, 4
RESULT = ROOT / "build" / "serving.json"
KINDS = {"flat": "flat", "ivf": "IVF1024,Flat"}
"""1,024 lists, 16 of which are visited: the default's 4,000 lists of a million items take minutes to train."""


def random_model(n_items: int, kind: str) -> Recommender:
    torch.manual_seed(0)
    backbone = ComiRecSA(n_items, embed_dim=64)
    with torch.no_grad():
        backbone.item_embedding.weight.normal_()
    ids = polars.Series("item_id", [f"i{number}" for number in range(1, n_items + 1)])
    items = ids.to_frame().select(
        polars.int_range(1, n_items + 1).cast(polars.Int32).alias("item_idx"),
        "item_id",
        polars.col("item_id").alias("title"),
        polars.lit([], polars.List(polars.String)).alias("categories"),
        polars.lit(1).alias("count"),
    )
    index = ItemIndex(backbone.item_vectors().detach().numpy(), KINDS[kind])
    return Recommender(backbone, load_config(None, ["dataset=demo", "backbone=comirec_sa"]), items, index)


def work(port: int, seed: int, n_items: int, end: float) -> tuple[list[float], int]:
    """Milliseconds of the calls of one client until a time, at least of one call; and how many failed."""
    rng, times, errors = np.random.default_rng(seed), [], 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while not times or time.time() < end:
        body = json.dumps({"history": [f"i{number}" for number in rng.integers(1, n_items + 1, 10)], "n": 50})
        start = time.perf_counter()
        connection.request("POST", "/recommend", body)
        reply = connection.getresponse()
        errors += reply.status != 200 or len(json.loads(reply.read())["items"]) != 50
        times.append(1000 * (time.perf_counter() - start))
    connection.close()
    return times, errors


def load(port: int, clients: int, n_items: int) -> dict[str, float]:
    """What some clients see that ask at the same time for some seconds."""
    work(port, 0, n_items, 0)
    start = time.time()
    with ThreadPoolExecutor(clients) as pool:
        calls = [pool.submit(work, port, seed, n_items, start + SECONDS) for seed in range(clients)]
        answers = [call.result() for call in calls]
    seconds = time.time() - start
    times = np.concatenate([one for one, _ in answers])
    p50, p99 = np.percentile(times, [50, 99])
    return {"p50": p50, "p99": p99, "rate": len(times) / seconds, "errors": sum(bad for _, bad in answers)}


@pytest.fixture(scope="module")
def rows() -> Iterator[list[dict[str, Any]]]:
    """The measured cases, written to a file for `docs/make_tables.py`."""
    cases: list[dict[str, Any]] = []
    yield cases
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"machine": machine(), "cases": cases}, indent=1) + "\n", encoding="utf-8")


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("n_items", [12_000, 100_000, 1_000_000])
def test_latency(n_items: int, kind: str, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> None:
    model = random_model(n_items, kind)
    server = uvicorn.Server(uvicorn.Config(build_app(Service(lambda: model)), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    with ProcessPoolExecutor(1, get_context("spawn")) as process:  # the clients' work is not the service's
        for clients, together in ((1, module.TOGETHER), (CLIENTS, 1), (CLIENTS, module.TOGETHER)):
            monkeypatch.setattr(module, "TOGETHER", together)
            case = {"items": n_items, "index": kind, "clients": clients, "together": together}
            rows.append(case | process.submit(load, port, clients, n_items).result())
            shown = {name: value if isinstance(value, str) else f"{value:,.1f}" for name, value in rows[-1].items()}
            print("\n" + ", ".join(f"{name} {value}" for name, value in shown.items()))
            assert rows[-1]["errors"] == 0
    server.should_exit = True
    thread.join()
