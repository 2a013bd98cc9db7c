"""KEY=VALUE words -> checked options, for every command that composes no configuration.

Everything behind the first = is the value as it stands, so that a prompt needs no quotes but the
shell's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from scaling.composition.flags import FLAGS
from scaling.config.section import Section
from scaling.config.spelling import TYPED, did_you_mean, no_flag, no_key, plain_message
from scaling.errors import ConfigError

Options = TypeVar("Options", bound=Section)


RENAMED = {
    "run": "What is opened is from=RUN now. ",
    "step": "An earlier checkpoint is from=RUN@STEP now. ",
    "names": "The format is format=safetensors or format=hf now. ",
}
"""Options of an earlier version of the commands that open something trained."""


def read_options(
    kind: type[Options], words: Sequence[str], unnamed: Collection[str] = ()
) -> Options:
    """The options that these words set. Raises ConfigError.

    unnamed: options that no error offers, because the caller sets or refuses them.
    """
    given: dict[str, str] = {}
    known = list(_descriptions(kind))
    offered = [key for key in known if key not in unnamed]
    for number, word in enumerate(words):
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            raise no_flag(words, number, known, FLAGS)
        if not equals:
            raise no_key(word, known)
        if key not in known:
            hint = RENAMED.get(key, "") if "from" in known else ""
            raise ConfigError(
                f"there is no option {key!r}",
                TYPED,
                f"{hint or did_you_mean(key, offered)}There are: {', '.join(offered)}.",
            )
        if key in given:
            raise ConfigError(
                f"{key} is given twice, as {given[key]!r} and {value!r}", TYPED, "Give it once."
            )
        given[key] = value
    try:
        return kind.model_validate(given, context="words")
    except ValidationError as error:
        raise _explain(kind, error) from error


def option_lines(kind: type[Section]) -> Iterator[str]:
    """The help of these options, a line each."""
    for name, field in kind.model_fields.items():
        nothing = field.is_required() or field.default in (None, ())
        yield option_line(field.alias or name, "" if nothing else field.default, field.description)


def option_line(key: str, default: Any, meaning: str | None, width: int = 20) -> str:
    """`key=default`, and behind it or below it, where it is long, what it means."""
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return f"  {f'{key}={shown}':<{width}}  {meaning or ''}".rstrip()


def _descriptions(kind: type[Section]) -> dict[str, str]:
    return {
        field.alias or name: field.description or "" for name, field in kind.model_fields.items()
    }


def _explain(kind: type[Section], error: ValidationError) -> ConfigError:
    problem = error.errors()[0]
    message = plain_message(problem["msg"])
    if not problem["loc"]:  # several options together
        return ConfigError(message, TYPED)
    key = str(problem["loc"][0])
    meaning = f"{key} is: {_descriptions(kind)[key]}."
    if problem["type"] == "missing":
        return ConfigError(f"{key} is not given", "it has no default", meaning)
    return ConfigError(f"{key}={problem['input']}: {message}", TYPED, meaning)
