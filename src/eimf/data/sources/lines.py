"""Reads the lines of large, possibly gzipped text files in bounded memory."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from tqdm import tqdm

from eimf.core.errors import DataError

BLOCK_BYTES = 32 * 2**20
LINE_BYTES = 64 * 2**20
"""Longest line. A longer one means a damaged or malicious file."""
MARK = b"\xef\xbb\xbf"
"""UTF-8 byte order mark."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into a DataError of one line.

    Raises:
        DataError: the file is missing, damaged or unreadable.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; name a file.") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); download or export it again.") from None


def read_blocks(path: Path) -> Iterator[bytes]:
    """Blocks of whole lines in UTF-8, without a byte order mark; UTF-16 is recognised by its byte order mark.

    Raises:
        DataError: the file is missing, damaged or unreadable, or has a line that is too long.
    """
    with reading(path), path.open("rb") as raw:
        stream = cast(IO[bytes], gzip.open(raw)) if path.suffix == ".gz" else raw  # noqa: SIM115 (closes with raw)
        size = path.stat().st_size
        with tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=size < BLOCK_BYTES) as progress:
            first = True
            while block := stream.read(BLOCK_BYTES):
                if first and block.startswith((b"\xff\xfe", b"\xfe\xff")):
                    yield (block + stream.read(LINE_BYTES)).decode("utf-16", errors="replace").encode()
                    if stream.read(1):
                        raise DataError(f"{path}: is a large file in UTF-16; convert it to UTF-8.")
                    return
                block = block.removeprefix(MARK) if first else block
                first = False
                rest = stream.readline(LINE_BYTES)
                if len(rest) == LINE_BYTES and not rest.endswith(b"\n"):
                    raise DataError(f"{path}: has a line of more than {LINE_BYTES:,} bytes; export it again.")
                yield block + rest
                progress.update(raw.tell() - progress.n)  # compressed bytes, as the total


def read_lines(path: Path) -> Iterator[str]:
    """Lines with their line ends (`\\n`; a `\\r` before it is kept); bytes that are not UTF-8 become U+FFFD.

    Raises:
        DataError: see `read_blocks`.
    """
    for block in read_blocks(path):
        for line in block.decode("utf-8", errors="replace").split("\n")[:-1] if block.endswith(b"\n") else _cut(block):
            yield f"{line}\n"


def _cut(block: bytes) -> list[str]:
    return block.decode("utf-8", errors="replace").split("\n")
