"""What a run's small records must hold to be read: each check says what is wrong, or None. Whoever
wrote it may be anybody."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_seconds(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(seconds) for seconds in value.values())


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_whole(one) for one in value)


def _are_attempts(value: Any) -> bool:
    return isinstance(value, list)


def _maybe(check: Check) -> Check:
    return lambda value: value is None or check(value)


_EVENT: dict[str, Check] = {
    **dict.fromkeys(("kind", "time", "workers"), _is_text),
    **dict.fromkeys(("time_s", "wall_s"), _is_number),
    "command_s": _maybe(_is_number),
    **dict.fromkeys(("step", "world_size"), _maybe(_is_whole)),
    **dict.fromkeys(("first_step", "last_step"), _is_whole),
    "seconds": _are_seconds,
    "sequences": _is_range,
}
"""Fields of events that something is computed from."""
_NEEDED = {
    **dict.fromkeys(("start", "resume", "preempted", "failed", "finished"), ("time_s",)),
    "account": ("workers", "seconds"),
    "rolled_back": ("sequences",),
    "branched": ("step", "wall_s"),
    "record_gap": ("first_step", "last_step"),
}
_PROGRESS: dict[str, Check] = {"workers": _is_text, "step": _is_whole, "seconds": _are_seconds}
_SUMMARY: dict[str, Check] = {
    **dict.fromkeys(("steps", "n_tokens", "restarts"), _is_whole),
    **dict.fromkeys(("flops", "wall_s", "device_s"), _is_number),
    **dict.fromkeys(("train_loss", "val_loss", "best_val_loss", "val_ppl"), _maybe(_is_number)),
    **dict.fromkeys(("val_bits_per_byte", "tokens_per_s"), _maybe(_is_number)),
    **dict.fromkeys(("seconds", "baselines"), _are_seconds),
}


def event_problem(event: Any) -> str | None:
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
        return "it is no event"
    return _problem(
        event,
        {key: _EVENT[key] for key in event.keys() & _EVENT.keys()},
        _NEEDED.get(event["kind"], ()),
    )


def progress_problem(found: Mapping[str, Any]) -> str | None:
    return _problem(found, _PROGRESS)


def summary_problem(found: Mapping[str, Any]) -> str | None:
    return _problem(found, _SUMMARY)


def provenance_problem(found: Mapping[str, Any]) -> str | None:
    return _problem(found, {"attempts": _are_attempts})


def plan_problem(found: Mapping[str, Any]) -> str | None:
    return _problem(found, {"n_steps": _is_whole, "n_tokens": _is_whole})


def _problem(
    found: Mapping[str, Any], checks: Mapping[str, Check], needed: tuple[str, ...] = ()
) -> str | None:
    """The first key that is missing or holds what it cannot."""
    for key in [*needed, *checks]:
        if key not in found:
            return f"{key} is missing"
        if key in checks and not checks[key](found[key]):
            return f"{key} is {reprlib.repr(found[key])}"
    return None
