"""What every group of the configuration is, and the kinds of value that several hold."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from scaling.units import parse_count, parse_share

Count = Annotated[int, BeforeValidator(parse_count)]


def _check_share(value: Any) -> Any:
    parse_share(value, 10**9)
    return value


Share = Annotated[int | float | str, BeforeValidator(_check_share)]
"""A count of tokens, or a percentage of the run's tokens such as "2%"."""


class Section(BaseModel):
    """A group of the configuration: frozen, and closed to keys that it does not know, and to infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
