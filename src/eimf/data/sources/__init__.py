"""Readers of raw data, one file each: a `Config` of options, and a function that returns cleaned `RawData`.

To add one, write a file with a `SOURCE` here, and add a line to `eimf.config.components`.
"""

from eimf.config.components import SOURCES
from eimf.data.sources.base import Interactions, RawData, Source

__all__ = ["SOURCES", "Interactions", "RawData", "Source"]
