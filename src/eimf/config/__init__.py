"""Configuration: the schema of all settings, and reading, merging and checking them. Imports no torch."""

from eimf.config.load import from_dict, load, load_for, to_dict, to_yaml
from eimf.config.schema import Config

__all__ = ["Config", "from_dict", "load", "load_for", "to_dict", "to_yaml"]
