"""What every group of the configuration is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of the configuration: frozen, and closed to keys that it does not know, and to infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
