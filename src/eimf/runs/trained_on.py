"""What a run was trained on, kept in its folder: a run that starts from it must hold out none of that.

For `split.kind=time` this is the time of the last training interaction, for `loo` a hash of each training interaction
(8 bytes). What an earlier run was trained on belongs to it, if the run started from one. `split.kind=user` needs no
record: such runs start from runs on the same data only.
"""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars

from eimf.core.errors import ArtifactError, ConfigError
from eimf.core.files import replacing, sha256_file
from eimf.data.prepared import Prepared
from eimf.data.splits import Split, inside
from eimf.runs.folder import read_run

TRAINED_ON = "trained_on.npz"
DIGEST = "trained_on_sha256"
"""Key of `run.json` under which the digest of the file is kept."""
MICRO = 1_000_000
_SECONDS = 10**11
"""Times below this are seconds, see `eimf.data.sources.times`."""


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """The training interactions of a run, and of those that it started from."""

    until: int
    """Time of the last one, in microseconds since 1970."""
    hashes: np.ndarray
    """u64, sorted: a hash of each of them; empty for `split.kind=time`."""

    def and_those_of(self, earlier: "TrainedOn") -> "TrainedOn":
        """Those of two runs."""
        return TrainedOn(max(self.until, earlier.until), np.union1d(self.hashes, earlier.hashes))


def trained_on(prepared: Prepared, split: Split, kind: str) -> TrainedOn | None:
    """What a run on these data is trained on; None for `split.kind=user`."""
    if kind == "user":
        return None
    trained = inside(len(prepared.sequences.items), split.train.start, split.train.end)
    hashes = np.sort(_hashes(prepared)[trained]) if kind == "loo" else np.zeros(0, np.uint64)
    return TrainedOn(int(_times(prepared)[trained].max()), hashes)


def check_held_out(start: str, before: TrainedOn, prepared: Prepared, split: Split, kind: str) -> None:
    """Refuse data of which a part is held out that an earlier run was trained on.

    Args:
        start: the folder of the earlier run, for the message.

    Raises:
        ConfigError: see above.
    """
    held = np.zeros(len(prepared.sequences.items), bool)
    for part in (split.validation, split.test):
        held |= inside(len(held), part.cut, part.end)
    if kind == "time":
        since = int(_times(prepared)[held].min())
        if since <= before.until:
            raise ConfigError(
                f"start: {start} was trained on interactions until {_date(before.until)}, but they are held out here "
                f"from {_date(since)} on; give newer data, or start from an earlier run."
            )
        return
    seen = held & np.isin(_hashes(prepared), before.hashes)
    if seen.any():
        owner = int(np.searchsorted(prepared.sequences.offsets, np.flatnonzero(seen)[0], side="right")) - 1
        raise ConfigError(
            f"start: {start} was trained on {int(seen.sum()):,} of the {int(held.sum()):,} interactions that are held "
            f"out here, such as one of user {prepared.user_ids[owner]!r}; give newer data with the interactions of "
            "then, or use split.kind=time for both runs."
        )


def write_trained_on(folder: Path, record: TrainedOn) -> str:
    """Keep a record in a run folder; returns its digest, for `run.json`.

    Raises:
        ArtifactError: the disk refuses.
    """
    with replacing(folder / TRAINED_ON) as work, work.open("wb") as file:
        np.savez(file, until=np.int64(record.until), hashes=record.hashes)
    return sha256_file(folder / TRAINED_ON)


def read_trained_on(folder: Path) -> TrainedOn | None:
    """The record of a run; None for runs of earlier versions and of `split.kind=user`, which have none.

    Raises:
        ArtifactError: it is missing, damaged or changed.
    """
    wanted, path = read_run(folder).get(DIGEST), folder / TRAINED_ON
    if wanted is None:
        return None
    try:
        if sha256_file(path) != wanted:
            raise ArtifactError(f"{path}: changed since it was written; restore it, or train again.")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return TrainedOn(int(arrays["until"]), arrays["hashes"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:100]
        raise ArtifactError(f"{path}: missing or unreadable ({reason}); restore it, or train again.") from None


def _times(prepared: Prepared) -> np.ndarray:
    """i64[T] in microseconds: prepared data have seconds where that is enough."""
    times = prepared.sequences.timestamps.astype(np.int64)
    return times * MICRO if np.abs(times).max(initial=0) < _SECONDS else times


def _date(micros: int) -> str:
    return str(np.datetime64(micros, "us").astype("datetime64[s]"))


def _hashes(prepared: Prepared) -> np.ndarray:
    """u64[T]: a hash of each interaction's user, item and time, by raw ids. Of equal ones, the second has another hash
    than the first, and so on."""
    sequences = prepared.sequences
    values = _mixed(_of_ids(prepared.user_ids)[sequences.owners])
    values = _mixed(values + _of_ids(prepared.items["item_id"])[sequences.items - 1])
    values = _mixed(values + _times(prepared).astype(np.uint64))
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    places = np.arange(len(values))
    repeats = np.empty(len(values), np.uint64)
    repeats[order] = places - np.maximum.accumulate(np.where(first, places, 0))
    return _mixed(values + repeats)


def _of_ids(ids: polars.Series) -> np.ndarray:
    """u64: a hash of each id, the same on every machine."""
    digests = b"".join(hashlib.blake2b(one.encode(), digest_size=8).digest() for one in ids)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Spread 64-bit numbers (the finaliser of SplitMix64, Steele et al., OOPSLA 2014); sums wrap around."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
