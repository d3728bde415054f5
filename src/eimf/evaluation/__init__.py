"""Evaluation: retrieval by FAISS, ranking metrics, and the evaluator that puts them together. Needs no Lightning.

To add a ranking metric, write a function in `metrics`, and add a line to `eimf.config.components`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eimf.evaluation.evaluator import Evaluation, Evaluator, evaluate
    from eimf.evaluation.retrieval import ItemIndex

__all__ = ["Evaluation", "Evaluator", "ItemIndex", "evaluate"]


def __getattr__(name: str) -> Any:
    """Import a name when it is used: serving needs no evaluator, whose torchmetrics takes seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module 'eimf.evaluation' has no attribute {name!r}")
    return getattr(import_module(f"eimf.evaluation.{'retrieval' if name == 'ItemIndex' else 'evaluator'}"), name)
