"""A task that processes of the preparation can import."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def sleep(directory: Path, name: str, seconds: float) -> dict[str, Any]:
    (directory / f"{os.getpid()}.pid").touch()
    time.sleep(seconds)
    return {}
