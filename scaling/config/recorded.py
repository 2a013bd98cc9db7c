"""What earlier versions wrote into run directories, and how it is read today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECORDED = {"recorded": True}
"""pydantic's context for a configuration that an earlier version accepted and wrote down: keys that
nothing read pass, and keys that were renamed keep their value."""

RENAMED = {"layout.sp": "layout.cp", "layout.sp_attention": "layout.cp_attention"}
"""Key of an earlier version -> its name today. A file of the past is read by it; a person who types
the earlier name gets an error with the new one."""


def renamed(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recorded section under today's names."""
    prefix = f"{section}."
    return {
        RENAMED.get(prefix + name, prefix + name).removeprefix(prefix): value
        for name, value in values.items()
    }


def new_name(key: str) -> str:
    """A sentence for an error about an unknown key; empty where the key was never renamed."""
    return f"{key} is called {RENAMED[key]} now. " if key in RENAMED else ""
