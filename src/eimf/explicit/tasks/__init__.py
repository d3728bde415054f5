"""Auxiliary tasks, one file each. `ExplicitTasks` holds those of a run.

To add one, write a `Task` subclass; name it in `eimf.tasks` by its import path, or as an entry point of `eimf.tasks`.
"""

from eimf.explicit.tasks.base import Step, Task
from eimf.explicit.tasks.explicit_tasks import ExplicitTasks, make_adapter
from eimf.explicit.tasks.interest_assignment import AssignInterests
from eimf.explicit.tasks.modality_alignment import AlignModalities
from eimf.explicit.tasks.prototype_alignment import AlignPrototypes
from eimf.explicit.tasks.semantic_prediction import PredictInterest, PredictNextInterest, PredictNextItem

__all__ = [
    "AlignModalities",
    "AlignPrototypes",
    "AssignInterests",
    "ExplicitTasks",
    "PredictInterest",
    "PredictNextInterest",
    "PredictNextItem",
    "Step",
    "Task",
    "make_adapter",
]
