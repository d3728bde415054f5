"""TODO"""

from collections.abc import Callable

Say = Callable[[str], None]
