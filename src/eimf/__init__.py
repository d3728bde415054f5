"""EIMF: multi-interest sequential recommendation, helped by an LLM at training time only.

```python
import eimf

model = eimf.load("lightning_logs/demo-comirec_sa/version_0")
model.recommend(["P0017", "P0342"], n=10)
```
"""

from importlib.metadata import version
from typing import Any

__version__ = version("eimf")


__all__ = ["Recommendation", "Recommender", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; `eimf --help` should not wait for it.
    if name in ("load", "Recommender", "Recommendation"):
        from eimf.serving import recommender

        return getattr(recommender, name)
    raise AttributeError(name)
