"""Reads times of any kind as microseconds since 1970 in UTC.

Numbers are seconds, milliseconds, microseconds or nanoseconds, by their size: below 1e11, 1e14 and 1e17 (seconds until
the year 5138, milliseconds from 1973 on). Texts are such numbers, or ISO 8601 with a date, with or without a time, and
with any offset, also as PostgreSQL, BigQuery and pandas write it. Without an offset a time is UTC. Digits beyond
microseconds are cut off.
"""

import re
from datetime import UTC, datetime

import numpy as np
import polars

from eimf.core.errors import DataError

MICRO = 1_000_000
_NUMBER = r"^[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?$"
_PLAIN = r"^([+-]?)(\d{1,19})(?:\.(\d*))?$"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_times(values: polars.Series, subject: str = "times") -> polars.Series:
    """i64 microseconds since 1970 in UTC; null where unreadable.

    Args:
        subject: name of the column in messages.

    Raises:
        DataError: values of this type are no times.
    """
    kind = values.dtype
    if kind in (polars.Datetime, polars.Date):
        return values.cast(polars.Datetime("us")).dt.epoch("us")
    if kind.is_integer():
        return _of_integers(values.cast(polars.Int64, strict=False))
    if kind.is_float():
        return _of_floats(values.cast(polars.Float64))
    if kind in (polars.String, polars.Categorical, polars.Enum) or kind.is_decimal():
        return _of_texts(values.cast(polars.String).str.strip_chars())
    if kind == polars.Null:
        return polars.Series(values.name, [None] * len(values), dtype=polars.Int64)
    raise DataError(f"{subject}: of type {kind}, which holds no times; give numbers, ISO 8601 texts or date-times.")


def _of_integers(values: polars.Series) -> polars.Series:
    number = values.fill_null(0).to_numpy()
    size = np.abs(number.astype(np.float64))
    micros = np.select(
        [size < 1e11, size < 1e14, size < 1e17],
        [np.where(size < 1e11, number, 0) * MICRO, np.where(size < 1e14, number, 0) * 1000, number],
        number // 1000,
    )
    return polars.Series(values.name, micros).set(values.is_null(), None)


def _of_floats(values: polars.Series) -> polars.Series:
    number = values.to_numpy().astype(np.float64)
    usable = np.isfinite(number) & (np.abs(number) < 9e18)
    number = np.where(usable, number, 0.0)
    size = np.abs(number)
    scale = np.select([size < 1e11, size < 1e14, size < 1e17], [1e6, 1e3, 1.0], 1e-3)
    micros = np.rint(number * scale).astype(np.int64)
    return polars.Series(values.name, micros).set(polars.Series(~usable), None)


def _of_texts(values: polars.Series) -> polars.Series:
    frame = polars.DataFrame({"text": values})
    plain = frame.select(
        polars.col("text").str.extract(_PLAIN, 1).alias("sign"),
        polars.col("text").str.extract(_PLAIN, 2).cast(polars.Int64, strict=False).alias("whole"),
        polars.col("text").str.extract(_PLAIN, 3).fill_null("").alias("rest"),
    )
    # Exact whole numbers, since a float would round: at most six digits of the fraction count.
    whole = plain["whole"].fill_null(0).to_numpy()
    size = whole.astype(np.float64)
    digits = np.select([size < 1e11, size < 1e14, size < 1e17], [6, 3, 0], -3)
    fraction = plain["rest"].str.pad_end(6, "0").str.slice(0, 6).str.replace("^$", "000000")
    fraction = fraction.cast(polars.Int64, strict=False).fill_null(0).to_numpy()
    power = 10 ** np.abs(digits)
    micros = np.where(digits >= 0, np.where(digits >= 0, whole, 0) * power, whole // 1000)
    micros = micros + np.where(digits > 0, fraction // 10 ** (6 - np.clip(digits, 0, 6)), 0)
    micros = np.where((plain["sign"] == "-").fill_null(False).to_numpy(), -micros, micros)
    times = polars.Series(values.name, micros).set(plain["whole"].is_null(), None)
    unread = times.is_null() & values.is_not_null() & (values != "")
    if not unread.any():
        return times
    texts = values.filter(unread)
    time_of = {text: _of_text(text) for text in texts.unique()}
    return times.scatter(unread.arg_true(), texts.replace_strict(time_of, return_dtype=polars.Int64))


def _of_text(text: str) -> int | None:
    """Microseconds of one text; None where unreadable.

    >>> _of_text("2020-01-01 04:30:00+05:30"), _of_text("2020-01-01T00:00:00.5 UTC"), _of_text("soon")
    (1577833200000000, 1577836800500000, None)
    """
    if re.match(_NUMBER, text):
        value = polars.Series([float(text)])
        return _of_floats(value)[0]
    text = re.sub(r"\s*(?:UTC|GMT|Z|z)$", "+00:00", text)
    text = re.sub(r"\s+([+-]\d)", r"\1", text)
    text = re.sub(r"(\.\d{6})\d+", r"\1", text)
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        span = moment - _EPOCH
    except (ValueError, OverflowError):
        return None
    return (span.days * 86_400 + span.seconds) * MICRO + span.microseconds
