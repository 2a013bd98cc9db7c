"""Keep secrets out of what is written down: command lines, and configurations that are sent
away."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

HIDDEN = "<redacted>"

_WORDS = {
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "credentials",
    "apikey",
    "auth",
    "signature",
}
_COMPOUNDS = (
    "api_key",
    "access_key",
    "secret_key",
    "private_key",
    "account_key",
    "access_key_id",
    "key_id",
    "sig",
)
# Published shapes of keys: Hugging Face, OpenAI and Anthropic, GitHub, AWS, Google, W&B (40 or 86
# characters), JSON web tokens. Each begins a word, or follows an escape (%3D, \n): the end of
# "task" is not the beginning of a key.
_SHAPES = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2})|(?<=\\[nrt]))"
    r"(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|A[KS]IA[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,}"
    r"|wandb_v1_[A-Za-z0-9_]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#]*@")
_QUERY = re.compile(r"([?&;])([^=&;\s'\"?/]+)=([^&;\s'\",\])}]+)")


def is_secret_name(name: str) -> bool:
    """Whether a value called `name` should never be shown: logger.api_key and HF_TOKEN are,
    train.n_tokens is not."""
    words = [
        word
        for word in re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
        if word
    ]
    joined = "_".join(words)
    return not _WORDS.isdisjoint(words) or any(
        f"_{joined}_".find(f"_{compound}_") >= 0 for compound in _COMPOUNDS
    )


def redact(text: str) -> str:
    """`text` without passwords in URLs, secret query parameters and keys of a known shape."""
    return _SHAPES.sub(HIDDEN, _QUERY.sub(_redact_parameter, _USER.sub(rf"\1{HIDDEN}@", text)))


def redact_command(words: Sequence[str]) -> list[str]:
    """A command line in which the values of secret names (NAME=VALUE, --NAME VALUE) are hidden."""
    shown, hide_next = [], False
    for word in words:
        name, equals, value = word.partition("=")
        if hide_next and not word.startswith("-"):
            shown.append(HIDDEN)
        elif equals and value and is_secret_name(name) and "://" not in name:
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(redact(word))
        hide_next = word.startswith("-") and not equals and is_secret_name(word)
    return shown


def redact_tree(value: Any, name: str = "") -> Any:
    """A copy of nested dicts and lists in which secret values are hidden."""
    if isinstance(value, dict):
        return {key: redact_tree(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_tree(inner, name) for inner in value]
    if isinstance(value, str):
        return HIDDEN if value and is_secret_name(name) else redact(value)
    return value


def secret_keys(tree: Any, name: str = "") -> Iterator[str]:
    """The dotted keys of nested dicts and lists whose values hold a secret by their looks."""
    if isinstance(tree, dict | list):
        for key, inner in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from secret_keys(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, str) and redact(tree) != tree:
        yield name


def _redact_parameter(match: re.Match[str]) -> str:
    before, name, _ = match.groups()
    return f"{before}{name}={HIDDEN}" if is_secret_name(name) else match.group()
