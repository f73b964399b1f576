"""Token pruning with attention back-tracking (STTABT, ICLR 2023): tokens that are really gone.

In one line: `sttabt.prune(model, "backtracking", keep_ratio=0.4)`; see `sttabt.api`.
"""

from typing import TYPE_CHECKING, Any

from sttabt.errors import UserError
from sttabt.version import __version__

if TYPE_CHECKING:
    from sttabt.api import Budget, calibrate, distil, export, freeze, load, prune, text

__all__ = ["Budget", "UserError", "__version__", "calibrate", "distil", "export", "freeze", "load", "prune", "text"]


def __getattr__(name: str) -> Any:
    """The functions of `sttabt.api`, imported when one is first asked for: torch takes seconds to load."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sttabt import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
