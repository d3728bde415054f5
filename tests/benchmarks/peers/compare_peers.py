"""Trains and ranks side by side with torch-rechub and RecBole; prints ratios and a Markdown table.

python -m tests.benchmarks.peers.compare_peers [--only comirec_sa] [--epochs 5]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from eimf.config.components import METRICS
from eimf.config.load import load
from eimf.config.schema import Config
from eimf.data.batch import Ragged, TrainingBatches, gather_history, gather_slices
from eimf.data.prepare import prepare
from eimf.data.splits import split_sequences
from eimf.evaluation.metrics import find_hits
from eimf.evaluation.retrieval import ItemIndex, retrieve
from tests.benchmarks.peers import protocol
from tests.conftest import ROOT, real_data

HERE = Path(__file__).parent
ENVIRONMENTS = {
    "rechub": ["torch==2.13.0", "torch-rechub==0.9.0"],
    "recbole": ["torch==2.13.0", "setuptools<81", "numpy<2", "pandas<3", "recbole==1.2.1"],
}
REPEATS, STEPS = 5, 60
PAIRS = {  # model -> peer, its script
    "comirec_sa": "rechub",
    "mind": "rechub",
    "sasrec": "recbole",
    "sasrec_sequence": "recbole",
}


def environment(name: str) -> Path:
    """The peer's Python, installed once."""
    folder = ROOT / ".venv-peers" / name
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        print(f"setting up {folder} (some minutes, once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for wanted in ENVIRONMENTS[name]:  # torch first, so that nothing asks for another build of it
            rest = [one for one in ENVIRONMENTS[name] if "<" in one]
            subprocess.run([str(python), "-m", "pip", "install", "-q", wanted, *rest], check=True)
        (folder / ".ready").touch()
    return python


def export(config: Config, to: Path) -> Ragged:
    """Write the training samples, all interactions and the held-out histories; returns the held-out targets."""
    prepared = prepare(config.dataset, config.data.root)
    sequences, parts = prepared.sequences, split_sequences(prepared.sequences, config.split)
    flat = torch.tensor(sequences.items, dtype=torch.long)
    batches = TrainingBatches(
        flat, parts.train, max_len=protocol.LENGTH, batch_size=2**16, sampling="every_position", min_history=1
    )
    history, target, user = (
        torch.cat(one).numpy() for one in zip(*((b.history, b.target, b.user_idx) for b in batches), strict=True)
    )
    held = parts.test
    before = gather_history(flat, torch.tensor(held.start), torch.tensor(held.cut), protocol.LENGTH).numpy()
    np.savez(
        to,
        n_users=sequences.n_users,
        n_items=prepared.n_items,
        user=user.astype(np.int64),
        history=history,
        target=target,
        held_history=before,
        flat_user=sequences.owners,
        flat_item=sequences.items,
    )
    return gather_slices(flat, torch.tensor(held.cut), torch.tensor(held.end))


class Process:
    """A side that stays alive between measurements."""

    def __init__(self, command: list[str], log: Path, **environ: str) -> None:
        settings = os.environ | {"OMP_NUM_THREADS": str(protocol.THREADS), "OMP_WAIT_POLICY": "PASSIVE"} | environ
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=settings,
            cwd=ROOT,
        )
        self.log = log
        self._read()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a side ended early; its last words are in {self.log}")
        return json.loads(line)

    def ask(self, text: str) -> float:
        """Seconds that the side took for a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self._read()["seconds"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def ratio(theirs: list[float], ours: list[float]) -> str:
    """Median and range of how many times longer the peer takes."""
    found = [a / b for a, b in zip(theirs, ours, strict=True)]
    return f"{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})"


def judge(path: Path, wanted: Ragged, cutoff: int) -> dict[str, float]:
    """Our evaluator on the vectors of a side."""
    found = np.load(path)
    index = ItemIndex(found["items"])
    users = torch.from_numpy(found["users"])
    hits, counts = find_hits(retrieve(index, users, cutoff).items, wanted)
    return {name: float(METRICS[name](hits, counts, cutoff).mean()) for name in ("recall", "ndcg")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(PAIRS), action="append")
    parser.add_argument("--epochs", type=int, default=5, help="epochs before the metrics are compared (0: none)")
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help="0: only the metrics, for which no machine is too busy"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of a measurement")
    parser.add_argument("--precision", default="32-true", help="ours only; the peers have no other on a CPU")
    options = parser.parse_args()
    os.environ["EIMF_DATA_MIRROR"] = str(real_data())
    work = ROOT / "build" / "peers"
    work.mkdir(parents=True, exist_ok=True)
    rows = []
    for model in options.only or PAIRS:
        peer, kind = PAIRS[model], "loo" if model.startswith("sasrec") else "user"
        config = load(None, ["dataset=beauty", f"split.kind={kind}", f"data.root={ROOT / 'data'}"])
        data = work / f"{kind}.npz"
        wanted = export(config, data)
        theirs_python = environment(peer)
        ours = Process(
            [sys.executable, "-m", "tests.benchmarks.peers.side_ours", str(data), model],
            work / f"{model}-ours.log",
            DATA_ROOT=str(ROOT / "data"),
            PRECISION=options.precision,
        )
        theirs = Process(
            [str(theirs_python), str(HERE / f"side_{peer}.py"), str(data), model],
            work / f"{model}-{peer}.log",
            TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",
        )
        # Steps of whole sequences and of prefixes hold different samples: compare epochs there.
        steps = 0 if model == "sasrec_sequence" else options.steps
        for side in (ours, theirs):
            side.ask("train 10")
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(options.repeats):
            times["theirs"].append(theirs.ask(f"train {steps}"))
            times["ours"].append(ours.ask(f"train {steps}"))
        row = {"model": model, "peer": peer}
        if options.repeats:
            row["train"] = ratio(times["theirs"], times["ours"])
            row["seconds"] = f"{statistics.median(times['theirs']):.2f} / {statistics.median(times['ours']):.2f}"
        if options.repeats and model == "sasrec":
            ranks = [(theirs.ask("rank"), ours.ask("rank")) for _ in range(options.repeats)]
            row["rank"] = ratio([a for a, _ in ranks], [b for _, b in ranks])
        if options.epochs:
            for side, name in ((ours, "ours"), (theirs, peer)):
                side.ask("reset")
                for _ in range(options.epochs):
                    side.ask("train 0")
                path = work / f"{model}-{name}.npz"
                side.ask(f"vectors {path}")
                found = judge(path, wanted, 20 if kind == "loo" else 50)
                row[name] = ", ".join(f"{key} {value:.4f}" for key, value in found.items())
        for side in (ours, theirs):
            side.close()
        rows.append(row)
        print(json.dumps(row), flush=True)
    print("\n| model | peer | training, peer / ours | full ranking, peer / ours |")
    print("| --- | --- | ---: | ---: |")
    for row in rows:
        print(f"| {row['model']} | {row['peer']} | {row.get('train', '')} | {row.get('rank', '')} |")


if __name__ == "__main__":
    main()
