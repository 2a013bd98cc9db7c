"""What a mistyped word was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from scaling.errors import ConfigError

TYPED = "from the command line"
_MOST = 6
"""Most keys that are offered of those that end alike, such as name and kind."""


def plain_message(message: str) -> str:
    """A message of pydantic's as the end of a sentence."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def near_keys(key: str, known: Sequence[str]) -> list[str]:
    """The full keys that `key` may stand for: those that end in it, else those that are spelt
    alike."""
    same = [name for name in known if name == key or name.endswith(f".{key}")]
    if same:
        return same[:_MOST]
    alike = [name for name in known if ("." in name) == ("." in key)]
    near = difflib.get_close_matches(key, alike, n=3, cutoff=0.6)
    if near:
        return near
    last = {name: name.rpartition(".")[2] for name in known}
    wanted = key.rpartition(".")[2]
    close = difflib.get_close_matches(wanted, list(dict.fromkeys(last.values())), n=3, cutoff=0.7)
    close += [
        part for part in last.values() if len(wanted) > 3 and wanted in part and part not in close
    ]
    return [name for name, part in last.items() if part in close][:_MOST]


def did_you_mean(key: str, known: Sequence[str]) -> str:
    """A sentence and a blank, or nothing."""
    near = near_keys(key, known)
    return f"Did you mean {' or '.join(near)}? " if near else ""


def no_flag(
    words: Sequence[str], number: int, known: Sequence[str], flags: Sequence[str]
) -> ConfigError:
    """The error for words[number], which begins with a dash and is no flag of the command: it was
    meant for a key."""
    key, equals, value = words[number].lstrip("-").partition("=")
    key = key.replace("-", "_")
    after = words[number + 1] if number + 1 < len(words) else ""
    if not equals:
        value = after if after and not after.startswith("-") and "=" not in after else "VALUE"
    near = near_keys(key, known) if key else []
    written = (
        f"Keys have no dashes: write {' or '.join(f'{name}={value}' for name in near)}. "
        if near
        else ""
    )
    return ConfigError(
        f"there is no flag {words[number].partition('=')[0]}",
        TYPED,
        f"{written}The flags are {', '.join(flags)}.",
    )


def no_key(word: str, known: Sequence[str]) -> ConfigError:
    """The error for a word that is not KEY=VALUE."""
    near = near_keys(word, known)
    example = f"Write {near[0]}=..." if near else "Write KEY=VALUE"
    return ConfigError(
        f"{word!r} is not KEY=VALUE",
        TYPED,
        f'{example}, and a value with blanks in quotes: KEY="a b c".',
    )
