"""Hydra's composition -> a validated RunConfig; every mistake becomes a ConfigError with the key,
its origin and a way out."""

from __future__ import annotations

import contextlib
import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scaling.composition.code_refusal import inert_configurations
from scaling.composition.hydra_parts import GlobalHydra, OverridesParser, Quote, QuotedString
from scaling.config.cluster_names import with_named_clusters
from scaling.config.data_path import names_a_path, with_chosen_kind
from scaling.config.recorded import new_name
from scaling.config.run_config import RunConfig, conf_dir, options_of
from scaling.config.spelling import TYPED, did_you_mean, near_keys, plain_message
from scaling.errors import ConfigError
from scaling.planner.budget import token_budget
from scaling.planner.cost.lengths import lengths

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, ValidationError)


def compose(overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that these Hydra overrides make. Raises ConfigError."""
    overrides = in_full(overrides)
    try:
        return validate(composed_of(overrides), overrides)
    except (*COMPOSITION_ERRORS, ValueError) as error:  # Hydra raises ValueError for optim=3
        raise explain(error, overrides) from error


_AT_HOME = re.compile(r"~[\w.-]*(/[^\s,'\"\[\]{}()$\\]*)?$")
"""A path of somebody's home, which the shell leaves as it is behind an equals sign, and for which
Hydra has no word."""


def in_full(overrides: Sequence[str]) -> list[str]:
    """What Hydra has no file or no word for, as what it stands for.

    These are cluster=NxMxGPU, tokenizer=hf:NAME, data=PATH and KEY=~/PATH.

    Raises ConfigError.
    """
    out: list[str] = []
    for override in with_named_clusters(overrides):
        key, _, value = override.partition("=")
        _refuse_list(override)
        if key == "tokenizer" and value.startswith("hf:"):
            out += ["tokenizer=hf", f"tokenizer.name={quoted(value.removeprefix('hf:'))}"]
        elif key == "data" and names_a_path(value):
            out.append(f"data.path={quoted(value)}")
        elif _AT_HOME.match(value):
            out.append(f"{key}={quoted(value)}")
        else:
            out.append(override)
    return out


def _refuse_list(override: str) -> None:
    """Raises ConfigError for several options of one group: Hydra would merge them, the last one
    first."""
    group, _, value = override.partition("=")
    if value.startswith("[") and group and (conf_dir() / group).is_dir():
        fix = f"Give one option. A sweep tries several: --multirun {group}=A,B."
        raise ConfigError(f"{group}={value} is a list of options", "from the command line", fix)


def validate(composed: DictConfig, overrides: Sequence[str]) -> RunConfig:
    """Check a composed configuration and resolve its token budget. Raises ConfigError."""
    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        assert isinstance(values, dict)
        values.pop("hydra", None)
        chosen = with_chosen_kind({str(name): value for name, value in values.items()}, overrides)
        config = RunConfig.model_validate(chosen)
    except COMPOSITION_ERRORS as error:
        raise explain(error, overrides) from error
    lengths(config)  # refuses a length for which the objective or the tokenizer has no room
    train = config.train.model_copy(update={"n_tokens": token_budget(config)})
    return config.model_copy(update={"train": train})


_NOT_WORDS = ("cluster", "layout", "plan", "scaling", "study", "dry_run", "logger")
"""Sections of the place and manner of a run, which a command chooses anew."""


def words_for(config: RunConfig, *start: str) -> tuple[str, ...]:
    """Words that compose to `config`, but for its cluster, layout, logger and study: `start`, and
    what differs from it."""
    base = validate(composed_of(start), start)
    ours, theirs = (dict(_leaves(c.model_dump(mode="json"))) for c in (config, base))
    known = dict(_leaves(OmegaConf.to_container(composed_of(start), resolve=False)))
    changed = [
        key for key in ours if key.split(".")[0] not in _NOT_WORDS and ours[key] != theirs[key]
    ]
    return (
        *start,
        *(f"{'' if key in known else '++'}{key}={_as_word(ours[key])}" for key in changed),
    )


def composed_of(words: Sequence[str]) -> DictConfig:
    with (
        inert_configurations(),
        _own_hydra(),
        initialize_config_dir(str(conf_dir()), version_base="1.3"),
    ):
        return hydra_compose("config", overrides=list(words))


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """Set aside the Hydra of the command that is at work: there is one a process, and a study
    composes within it."""
    theirs = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = theirs  # not that of before: Hydra puts another in its place


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, inner in tree.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, tree


def _as_word(value: Any) -> str:
    """In Hydra's grammar: null, true, numbers and lists as they are, text in quotes where it needs
    them."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(_as_word(item) for item in value)}]"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][\w./-]*", value):
        return quoted(value)
    return str(value)


def quoted(text: str) -> str:
    """A word of Hydra's grammar that stands for this text and refers to nothing, whatever is in
    it."""
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # as OmegaConf unescapes a reference
    return QuotedString(literal, Quote.single).with_quotes()


def explain(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """The ConfigError that says what an error of composition means to the person who typed the
    overrides."""
    if isinstance(error, ValidationError):
        return _explain_values(error, overrides)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_option(str(error.missing_cfg_file), error.options or [])
    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", None) or "a key"
        return ConfigError(
            f"{key} has no value",
            "it has no default",
            f"Give one: {key}=... {_meaning(key) or ''}".rstrip(),
        )
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return ConfigError(
            f"{error.full_key}: {str(error).splitlines()[0]}", _where(error.full_key, overrides)
        )
    text = str(error)
    swept = [
        override for override in overrides if f"Ambiguous value for argument '{override}'" in text
    ]
    if swept:
        return _several(swept[0])
    match = re.search(r"Could not (?:override|append|delete)[^'\"]*['\"]([^'\"]+)['\"]", text)
    if match:
        key = match.group(1).lstrip("+~").split("=")[0].split("@")[0]
        return _unknown_key(key, _where(key, overrides))
    if isinstance(error, ValueError) and (option_error := _not_a_name(overrides)):
        return option_error
    lines = text.strip().splitlines() or [type(error).__name__]
    return ConfigError(
        " ".join(line.strip() for line in lines), "while composing the configuration", "See --help"
    )


_QUOTED = (
    "So must commas, brackets, braces, quotes, blanks at an end, letters beyond ASCII and any of "
    "= # ~ ! & ; < > ^ `."
)
"""What Hydra's grammar does not take within a word."""


def _unreadable(override: str) -> ConfigError:
    """For what Hydra's grammar does not take: their own value in quotes, where that would do."""
    key, equals, _ = override.partition("=")
    what = f"{override!r} cannot be read"
    if not equals:
        options = [f"{group}={key}" for group in _groups() if key in options_of(group)]
        near = options or [f"{name}=VALUE" for name in near_keys(key, list(keys()))]
        fix = "Write GROUP=OPTION or KEY=VALUE" + (
            f", as {' or '.join(near)}." if near else "; --help lists them."
        )
        return ConfigError(what, TYPED, fix)
    in_quotes = _in_quotes(override)
    if not _reads(in_quotes):
        return ConfigError(
            what,
            TYPED,
            "Write GROUP=OPTION or KEY=VALUE; a KEY is made of letters, digits, _ and dots.",
        )
    fix = f"Put the value in quotes, and all of it in the shell's: {shlex.quote(in_quotes)}. {_QUOTED}"
    return ConfigError(what, TYPED, fix)


def _groups() -> list[str]:
    return sorted(
        str(path.relative_to(conf_dir())) for path in conf_dir().rglob("*") if path.is_dir()
    )


def _several(override: str) -> ConfigError:
    """For a value with commas, which Hydra takes for a sweep."""
    fix = f"As one value, put it in quotes: {shlex.quote(_in_quotes(override))}. As several runs, add -m."
    return ConfigError(f"{override!r} gives several values to one run", TYPED, fix)


def _in_quotes(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{key}={QuotedString(value, Quote.single if chr(34) in value else Quote.double).with_quotes()}"


def _reads(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _explain_option(missing: str, available: Sequence[str]) -> ConfigError:
    """missing: group/option, as Hydra names a file that is not there."""
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
    """group/option taken apart where the group ends, for an option may be a path with / in it."""
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


def _not_a_name(overrides: Sequence[str]) -> ConfigError | None:
    """For an option of a group that is a number or a structure where its name belongs."""
    for override in overrides:
        group, _, option = override.partition("=")
        options = list(options_of(group)) if group else []
        if options and option not in options:
            return _explain_option(f"{group}/{option}", options)
    return None


def _explain_values(error: ValidationError, overrides: Sequence[str]) -> ConfigError:
    problems = [_describe(problem, overrides) for problem in error.errors()]
    first = problems[0]
    more = (
        f" ({len(problems) - 1} more: {'; '.join(p.what for p in problems[1:])})"
        if len(problems) > 1
        else ""
    )
    return ConfigError(first.what + more, first.where, first.fix)


def _describe(problem: ErrorDetails, overrides: Sequence[str]) -> ConfigError:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _unknown_key(key, _where(key, overrides))
    if problem["type"] == "missing":
        return ConfigError(f"{key} has no value", None, f"Give one: {key}=...")
    message = plain_message(problem["msg"])
    # of a section, or of all
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
        return ConfigError(
            message, _where(key, overrides) if key else _mentioned(message, overrides)
        )
    return ConfigError(
        f"{key}={problem['input']}: {message}", _where(key, overrides), _meaning(key)
    )


def _unknown_key(key: str, where: str | None) -> ConfigError:
    known = list(keys())
    section = key.split(".")[0]
    inside = [name for name in known if name.startswith(section + ".")]
    fix = new_name(key) or did_you_mean(key, known)
    fix += f"{section} has: {', '.join(inside)}." if inside else "--help lists every group and key."
    return ConfigError(f"there is no key {key!r}", where, fix)


def keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every group and key of a configuration model, dotted."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")


def _meaning(key: str) -> str | None:
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


def _mentioned(message: str, overrides: Sequence[str]) -> str | None:
    """The overrides whose keys a message about several sections names."""
    own = [override for override in overrides if override.lstrip("+~").partition("=")[0] in message]
    return f"from the command line: {' '.join(own)}" if own else None


def _where(key: str, overrides: Sequence[str]) -> str | None:
    """Who set `key`: the command line, or the file of its group that was chosen."""
    section = key.split(".")[0]
    given = [(override.lstrip("+~").partition("=")[0], override) for override in overrides]
    own = [override for name, override in given if name == key or name.startswith(key + ".")]
    if own:
        return f"from the command line: {' '.join(own)}"
    # of an element of a list or a mapping: whoever gave the nearest thing that holds it
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
