"""Evaluation: retrieval by FAISS, ranking metrics, and the evaluator that puts them together. Needs no Lightning.

To add a ranking metric, write a function in `metrics`, and add a line to `eimf.config.components`.
"""

from eimf.evaluation.evaluator import Evaluation, Evaluator, evaluate
from eimf.evaluation.retrieval import ItemIndex

__all__ = ["Evaluation", "Evaluator", "ItemIndex", "evaluate"]
