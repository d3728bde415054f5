"""Latency of the HTTP service under 64 clients, for catalogues of random items; run with `make bench`."""

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars
import pytest
import torch
import uvicorn

from eimf.backbones.comirec_sa import ComiRecSA
from eimf.config.load import load
from eimf.evaluation.retrieval import ItemIndex
from eimf.serving import http as module
from eimf.serving.http import Service, build_app
from eimf.serving.recommender import Recommender

CLIENTS, SECONDS = 64, 4
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
    return Recommender(backbone, load(None, ["dataset=demo", "backbone=comirec_sa"]), items, index)


def work(port: int, seed: int, n_items: int, end: float) -> tuple[list[float], int]:
    """Milliseconds of the calls of one client until a time, at least of one call; and how many failed."""
    rng, times, errors = np.random.default_rng(seed), [], 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while not times or time.perf_counter() < end:
        body = json.dumps({"history": [f"i{number}" for number in rng.integers(1, n_items + 1, 10)], "n": 50})
        start = time.perf_counter()
        connection.request("POST", "/recommend", body)
        reply = connection.getresponse()
        errors += reply.status != 200 or len(json.loads(reply.read())["items"]) != 50
        times.append(1000 * (time.perf_counter() - start))
    connection.close()
    return times, errors


@pytest.mark.parametrize("kind", ["flat", "ivf"])
@pytest.mark.parametrize("n_items", [12_000, 100_000, 1_000_000])
def test_latency(n_items: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(n_items, kind)
    server = uvicorn.Server(uvicorn.Config(build_app(Service(lambda: model)), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    for together in (1, module.TOGETHER):
        monkeypatch.setattr(module, "TOGETHER", together)
        work(port, 0, n_items, 0)
        start = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as clients:
            calls = [clients.submit(work, port, seed, n_items, start + SECONDS) for seed in range(CLIENTS)]
            found = [call.result() for call in calls]
        seconds = time.perf_counter() - start
        times = np.concatenate([one for one, _ in found])
        p50, p99 = np.percentile(times, [50, 99])
        print(
            f"\n{n_items:,} items, {kind}, {CLIENTS} clients, at most {together} together: p50 {p50:.0f} ms, "
            f"p99 {p99:.0f} ms, {len(times) / seconds:.0f} requests/s, {sum(bad for _, bad in found)} errors"
        )
        assert sum(bad for _, bad in found) == 0
    server.should_exit = True
    thread.join()
