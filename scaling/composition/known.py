"""The keys and options that exist, and the errors for those that do not.

Nothing here imports Hydra, which takes a third of a second: `refuse_mistyped` answers the common
mistakes before it is loaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from scaling.composition.flags import FLAGS
from scaling.config.recorded import new_name
from scaling.config.run_config import RunConfig, conf_dir, options_of
from scaling.config.spelling import TYPED, did_you_mean, near_keys, no_flag
from scaling.errors import ConfigError

HYDRA_FLAGS = (
    "--help",
    "--hydra-help",
    "--version",
    "--cfg",
    "--resolve",
    "--package",
    "--run",
    "--multirun",
    "--shell-completion",
    "--config-path",
    "--config-name",
    "--config-dir",
    "--experimental-rerun",
    "--info",
)
"""Hydra's long options, which may be abbreviated. A test compares them with Hydra's parser."""
_SHORT_FLAG = re.compile(r"-[^-]")
_PLAIN_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)
_PLAIN_GROUP = re.compile(r"[A-Za-z_]\w*(/\w+)*", re.ASCII)
_PLAIN_VALUE = re.compile(r"[\w.-]+", re.ASCII)


def refuse_mistyped(words: Sequence[str]) -> None:
    """Raises ConfigError for a flag, a key or an option that does not exist.

    Words that only Hydra understands (~ before a key, sweeps, quotes, its own section) are left
    to it.
    """
    flags = [number for number, word in enumerate(words) if word.startswith("-")]
    for number in flags:
        stem = words[number].partition("=")[0]
        if not _SHORT_FLAG.match(stem) and not any(flag.startswith(stem) for flag in HYDRA_FLAGS):
            raise unknown_flag(words, number)
    # the value of a flag, as in --config-dir DIR, is no word of its own, and may bring other files
    values_of_flags = any(words[number] not in ("-m", "--multirun") for number in flags)
    elsewhere = values_of_flags or any("hydra.searchpath" in word for word in words)
    known = None
    for word in words:
        key, equals, value = word.lstrip("+").partition("=")
        if word.startswith("-") or key.split(".")[0] == "hydra":
            continue
        if not equals:
            if _PLAIN_KEY.fullmatch(word) and not values_of_flags:
                raise no_value(word)
            continue
        if _PLAIN_KEY.fullmatch(key):
            known = known or frozenset(keys())
            if not _exists(key, known):
                raise unknown_key(key, where_set(key, words))
        if not elsewhere and _PLAIN_GROUP.fullmatch(key) and _PLAIN_VALUE.fullmatch(value):
            options = options_of(key)
            if options and value != "null" and value.removesuffix(".yaml") not in options:
                raise unknown_option(f"{key}/{value}", list(options))


def _exists(key: str, known: frozenset[str]) -> bool:
    """Whether a composed configuration may have this key: below a value, such as a list's elements,
    anything may stand."""
    if key in known or (conf_dir() / key).is_dir():
        return True
    parts = key.split(".")
    return any(
        ".".join(parts[:n]) in known
        and not any(one.startswith(".".join(parts[:n]) + ".") for one in known)
        for n in range(1, len(parts))
    )


def unknown_flag(words: Sequence[str], number: int) -> ConfigError:
    """The error for words[number], which is none of the flags of a command that composes."""
    return no_flag(words, number, list(keys()), ("-m for a study", *FLAGS, "--hydra-help"))


def no_value(word: str) -> ConfigError:
    """The error for a word that is neither GROUP=OPTION nor KEY=VALUE."""
    options = [f"{group}={word}" for group in groups() if word in options_of(group)]
    near = options or [f"{name}=VALUE" for name in near_keys(word, list(keys()))]
    fix = "Write GROUP=OPTION or KEY=VALUE" + (
        f", as {' or '.join(near)}." if near else "; --help lists them."
    )
    return ConfigError(f"{word!r} cannot be read", TYPED, fix)


def keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every group and key of a configuration model, dotted."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")


def unknown_key(key: str, where: str | None) -> ConfigError:
    """The error for a key that no section has."""
    known = list(keys())
    section = key.split(".")[0]
    inside = [name for name in known if name.startswith(section + ".")]
    fix = new_name(key) or did_you_mean(key, known)
    fix += f"{section} has: {', '.join(inside)}." if inside else "--help lists every group and key."
    return ConfigError(f"there is no key {key!r}", where, fix)


def unknown_option(missing: str, available: Sequence[str]) -> ConfigError:
    """The error for a file that is not there. missing: group/option, as Hydra names it."""
    group, option = _group_and_option(missing.removesuffix(".yaml"))
    options = sorted(name for name in available if not name.startswith("_"))
    nearest = difflib.get_close_matches(option, options, n=3, cutoff=0.5)
    fix = (
        f"Did you mean {' or '.join(nearest)}? " if nearest else ""
    ) + f"There are: {', '.join(options)}."
    if group == "tokenizer" and "/" in option:
        fix = f"A tokenizer.json, its folder or a name of the hub: tokenizer=hf:{option}. {fix}"
    return ConfigError(
        f"{group}={option} is not an option of {group}", "from the command line", fix
    )


def _group_and_option(missing: str) -> tuple[str, str]:
    """Split group/option where the group ends: an option may be a path that contains a slash."""
    parts = missing.split("/")
    n = next(
        (
            n
            for n in range(len(parts) - 1, 0, -1)
            if (conf_dir() / "/".join(parts[:n])).is_dir() and all(parts[:n])
        ),
        1,
    )
    return "/".join(parts[:n]), "/".join(parts[n:])


def groups() -> list[str]:
    """Every group of conf/, nested ones too."""
    return sorted(
        str(path.relative_to(conf_dir())) for path in conf_dir().rglob("*") if path.is_dir()
    )


def meaning(key: str) -> str | None:
    """A sentence with the description of a key, or of the section that it is in."""
    model: Any = RunConfig
    field = None
    for part in key.split("."):
        if (
            not (isinstance(model, type) and issubclass(model, BaseModel))
            or part not in model.model_fields
        ):
            break
        field = model.model_fields[part]
        model = field.annotation
    return f"{key} is: {field.description}." if field is not None and field.description else None


def where_set(key: str, overrides: Sequence[str]) -> str | None:
    """What set `key`: the command line, or the chosen file of its group."""
    section = key.split(".")[0]
    given = [(override.lstrip("+~").partition("=")[0], override) for override in overrides]
    own = [override for name, override in given if name == key or name.startswith(key + ".")]
    if own:
        return f"from the command line: {' '.join(own)}"
    # an element of a list or a mapping: set by the word that gave the nearest container
    around = [
        (name, override) for name, override in given if key.startswith(name.replace("/", ".") + ".")
    ]
    if around:
        longest = max(len(name) for name, _ in around)
        name, override = [pair for pair in around if len(pair[0]) == longest][-1]
        if (conf_dir() / name).is_dir():
            option = override.partition("=")[2]
            return f"from conf/{name}/{option}.yaml, chosen on the command line"
        return f"from the command line: {override}"
    return f"from conf/{section}/ or conf/config.yaml" if section else None
