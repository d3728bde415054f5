"""Tells which of several processes this is."""

from pytorch_lightning.utilities import rank_zero_only


def is_first_process() -> bool:
    """Whether this is the process that prints and writes."""
    return (getattr(rank_zero_only, "rank", 0) or 0) == 0
