"""What every group of the configuration is, and the kinds of value that several hold."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationInfo,
    field_validator,
)

from scaling.config.recorded import RECORDED
from scaling.units import parse_count, parse_share

MOST = 2**63 - 1
"""No whole number of a configuration is larger: what files and tensors hold."""
LONGEST_S = 1e8
"""Longest time to wait, in seconds: three years, which every clock of the system can count."""
# characters: with the run's id and what is written beside it, below the 255 bytes of a file's name
_LONGEST_NAME = 100
_PROSE = ("sample_prompt", "prompt")
"""Texts that may have several lines."""

Count = Annotated[int, BeforeValidator(parse_count)]


def _check_share(value: Any) -> Any:
    if parse_share(value, 10**9) < 0:
        raise ValueError(f"{value!r} is below 0")
    return value


Share = Annotated[int | float | str, BeforeValidator(_check_share)]
"""A count of tokens, or a percentage of the run's tokens such as "2%"."""


def _check_name(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not value.strip():
        raise ValueError("a name has a letter or a digit; null takes the one by default")
    if len(value) > _LONGEST_NAME or len(value.encode()) > 2 * _LONGEST_NAME:
        raise ValueError(
            f"a name has at most {_LONGEST_NAME} characters, and this has {len(value)}"
        )
    if value != value.strip() or value[0] in "-." or set(value) & set("/\\"):
        raise ValueError(
            f"{value!r} cannot be part of a directory's name: "
            "it begins with '-', '.' or a blank, ends in one, or has a slash"
        )
    return value


Name = Annotated[str, BeforeValidator(_check_name)]
"""A part of a directory's name."""


def at_most(most: float, why: str) -> AfterValidator:
    """A validator: a number above `most` is a slip of the keyboard, for the reason `why`.

    The bounds are generous assumptions. A recorded configuration is read whatever it holds.
    """

    def check(value: float, info: ValidationInfo) -> float:
        if info.context != RECORDED and value > most:
            raise ValueError(f"it is over {most:g}, {why}")
        return value

    return AfterValidator(check)


def unread(section: BaseModel, group: str, key: str, kinds: Sequence[str]) -> str | None:
    """The message for a key that is set and that the chosen kind does not read, else None.

    group: also the word that chooses the kind. kinds: those that read the key. A value that equals
    the default counts as not set.
    """
    kind, value = section.kind, getattr(section, key)  # type: ignore[attr-defined]
    if kind in kinds or value == type(section).model_fields[key].default:
        return None
    choice = "cluster.kind" if group == "cluster" else group
    *others, last = [f"{choice}={name}" for name in kinds]
    only = f"{', '.join(others)} and {last} read" if others else f"{last} reads"
    return f"{group}.{key}={value} is set, but only {only} it, and this is {choice}={kind}"


class Section(BaseModel):
    """A group of the configuration: frozen, and closed to keys that it does not know, and to
    infinities.

    A value is of the kind that its field has: true and text in quotes are no numbers, and a line's
    end is no part of a text. Words of a command line (`context="words"`) are all text, of which
    numbers are made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        kinds, parsed = _kinds(cls, name)
        for item in value if isinstance(value, list | tuple) else [value]:
            _check_kind(
                item, kinds, is_text=parsed or info.context == "words", several_lines=name in _PROSE
            )
        return value


def _check_kind(value: Any, kinds: frozenset[Any], *, is_text: bool, several_lines: bool) -> None:
    """Raises ValueError for a value that pydantic would make another of."""
    numeric = bool(kinds & {int, float})
    if isinstance(value, bool) and numeric and bool not in kinds:
        raise ValueError(f"{str(value).lower()} is no number")
    if isinstance(value, str):
        if numeric and str not in kinds and not is_text:
            wanted = f"input should be a valid {'number' if float in kinds else 'integer'}"
            raise ValueError(
                wanted + (", and this is text: leave out the quotes" if _is_number(value) else "")
            )
        if not several_lines and any(
            ord(character) < 32 or 127 <= ord(character) < 160 for character in value
        ):
            raise ValueError("it has a line's end, a tab or another control character")
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and int in kinds
        and abs(value) > MOST
    ):
        raise ValueError(f"it is over {MOST}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@cache
def _kinds(section: type[BaseModel], name: str) -> tuple[frozenset[Any], bool]:
    """The plain types that a field may hold, in a list too; and whether it reads text itself, as a
    Count does."""
    field = section.model_fields[name]
    found = list(_leaves(field.annotation)) + list(field.metadata)
    return frozenset(kind for kind in found if isinstance(kind, type)), any(
        isinstance(x, BeforeValidator) for x in found
    )


def _leaves(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _leaves(annotation.__origin__)
        yield from annotation.__metadata__
    elif origin is Literal:
        yield from {type(value) for value in get_args(annotation)}
    elif origin in (Union, types.UnionType, tuple, list):
        for part in get_args(annotation):
            yield from _leaves(part)
    elif annotation is not Ellipsis:
        yield annotation
