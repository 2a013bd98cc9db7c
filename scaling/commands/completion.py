"""Tab completion: a command line up to the cursor -> the words that may stand there.

Complete words end in a blank, keys in `=` and sections in `.`, since the shell adds no blank
itself.
"""

from __future__ import annotations

import importlib
import shlex
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from scaling.commands.verbs import VERBS
from scaling.composition.flags import FLAGS
from scaling.errors import ScalingError

OPTIONS = {
    "prepare": "scaling.data.prepare.options:PrepareOptions",
    "generate": "scaling.inference.options:GenerateOptions",
    "fill": "scaling.inference.options:FillOptions",
    "export": "scaling.export:ExportOptions",
    "fit": "scaling.laws.options:FitOptions",
    "predict": "scaling.laws.options:PredictOptions",
    "rehearse": "scaling.rehearsal.options:DrillOptions",
}
"""Verb -> the model of its KEY=VALUE options. It is imported only when that verb is completed."""
COMPOSING = ("run", "plan", "rehearse")
"""Verbs that take the groups and keys of a configuration."""
VERB_FLAGS = {"run": ("-m",), "plan": ("--json", "--refused"), "status": ("--json",)}
SHELLS = ("bash",)

BASH = """\
_scaling_complete() {
    local IFS=$'\\n' line="${COMP_LINE:0:$COMP_POINT}" word cut=""
    COMPREPLY=( $("$1" completion words "$line" 2>/dev/null) )
    # Readline splits words at = and :, and wants only what follows the last of them.
    word="${line##*[[:space:]]}"
    [[ $COMP_WORDBREAKS == *=* ]] && cut="${word%"${word##*[=:]}"}"
    COMPREPLY=( "${COMPREPLY[@]#"$cut"}" )
}
complete -o nospace -o bashdefault -o default -F _scaling_complete scaling
"""
"""Completion for bash, and for zsh after `bashcompinit`. Where nothing is offered, the shell offers
files."""


def candidates(line: str) -> list[str]:
    """Whole words that may replace the last word of `line`; nothing where the shell knows
    better."""
    words = _split(line)
    current = words.pop() if words and not line[-1:].isspace() else ""
    if len(words) <= 1:
        return [f"{verb} " for verb in ("help", *VERBS) if verb.startswith(current)]
    verb = words[1]
    if verb == "help":
        return [f"{name} " for name in VERBS if name.startswith(current)]
    if verb not in VERBS:
        return []
    if current.startswith("-"):
        flags = (*VERB_FLAGS.get(verb, ()), *FLAGS)
        return [f"{flag} " for flag in flags if flag.startswith(current)]
    return list(dict.fromkeys(_words_of(verb, words[2:], current)))


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a quote that is still open
        return line.split()


def _words_of(verb: str, given: Sequence[str], current: str) -> Iterator[str]:
    if verb == "completion":
        yield from (f"{shell} " for shell in SHELLS if shell.startswith(current))
    elif verb in COMPOSING:
        if verb in OPTIONS:
            yield from _options(verb, given, current)
        yield from _overrides(current)
    elif verb == "status":
        yield from _keys(["run.root"], current)
        yield from (f"{name} " for name in _runs(given) if current and name.startswith(current))
    else:
        yield from _options(verb, given, current)


def _options(verb: str, given: Sequence[str], current: str) -> Iterator[str]:
    module, _, name = OPTIONS[verb].partition(":")
    kind: type[BaseModel] = getattr(importlib.import_module(module), name)
    fields = {field.alias or key: field for key, field in kind.model_fields.items()}
    key, equals, value = current.partition("=")
    if not equals:
        taken = {word.partition("=")[0] for word in given}
        yield from (
            f"{other}=" for other in fields if other.startswith(current) and other not in taken
        )
    elif key == "from":
        yield from (f"{key}={run} " for run in _runs(given) if run.startswith(value))
    elif key in fields:
        yield from (f"{key}={word} " for word in _values(fields[key]) if word.startswith(value))


def _runs(given: Sequence[str]) -> list[str]:
    """Names of the runs under the given run.root."""
    from scaling.runs.by_name import find_runs

    roots = [word.partition("=")[2] for word in given if word.startswith("run.root=")]
    root = Path(roots[-1] if roots else "runs").expanduser()
    try:
        return [str(path.relative_to(root)) for path in find_runs(root) if path != root]
    except ScalingError:
        return []


def _overrides(current: str) -> Iterator[str]:
    """GROUP=OPTION and KEY=VALUE with Hydra's signs before them; after a comma, the next of a
    sweep."""
    from scaling.config.run_config import RunConfig, conf_dir

    name, equals, value = current.partition("=")
    sign = name[: len(name) - len(name.lstrip("+~"))]
    name = name[len(sign) :]
    fields = dict(_fields(RunConfig))
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    if not equals:
        yield from (f"{sign}{group}=" for group in sorted(groups) if group.startswith(name))
        yield from (sign + word for word in _keys([*fields, "+experiment"], name))
        return
    known = _group_options(conf_dir() / name) if name in groups else []
    if name in fields:
        known += _values(fields[name])
    before, comma, last = value.rpartition(",")
    for word in known:
        if word.startswith(last):
            yield f"{sign}{name}={before}{comma}{word}" + ("" if comma else " ")


def _group_options(group: Path) -> list[str]:
    return sorted(path.stem for path in group.glob("*.yaml") if not path.stem.startswith("_"))


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key that takes a value, dotted."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _keys(keys: Iterable[str], current: str) -> Iterator[str]:
    """Keys that begin with `current`, each up to its next dot."""
    for key in keys:
        if key.startswith(current):
            rest, dot, _ = key[len(current) :].partition(".")
            yield current + rest + (dot or "=")


def _values(field: FieldInfo) -> list[str]:
    """Values that can be listed: those of a Literal and of a flag."""
    return [
        str(value).lower() if isinstance(value, bool) else str(value)
        for value in _listed(field.annotation)
    ]


def _listed(kind: Any) -> Iterator[Any]:
    if kind is bool:
        yield from (True, False)
    elif get_origin(kind) is Literal:
        yield from get_args(kind)
    elif get_origin(kind) in (Union, types.UnionType):
        for part in get_args(kind):
            yield from _listed(part)
