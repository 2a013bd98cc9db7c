"""Train Transformers of increasing size, and learn what the next size will buy.

From Python: `compose` and `make_plan` a run, `start` it; `open_run` and `open_study` read what is
on disk; `find_trained` opens any model; `fit_law` and `predict_from` extrapolate it. Each is loaded
at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling.api import (
        compose,
        find_trained,
        fit_law,
        make_plan,
        open_run,
        open_study,
        predict_from,
        start,
    )

__version__ = "0.1.0"
__all__ = [
    "compose",
    "find_trained",
    "fit_law",
    "make_plan",
    "open_run",
    "open_study",
    "predict_from",
    "start",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from scaling import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
