"""Words that Hydra does not know, and what they stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from scaling.config.cluster_names import with_named_clusters
from scaling.config.data_path import names_a_path
from scaling.config.run_config import conf_dir
from scaling.errors import ConfigError

_AT_HOME = re.compile(r"~[\w.-]*(/[^\s,'\"\[\]{}()$\\]*)?$")
"""A path of somebody's home, which the shell leaves as it is behind an equals sign, and for which
Hydra has no word."""


def in_full(overrides: Sequence[str]) -> list[str]:
    """What Hydra has no file or no word for, as what it stands for.

    These are cluster=NxMxGPU, tokenizer=hf:NAME, init_from=SOURCE, data=PATH and KEY=~/PATH.

    Raises ConfigError.
    """
    out: list[str] = []
    for override in with_named_clusters(overrides):
        key, _, value = override.partition("=")
        _refuse_list(override)
        if key == "init_from" and value not in ("", "null"):
            out.append(f"init_from.source={quoted(value)}")
        elif key == "tokenizer" and value.startswith("hf:"):
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


def quoted(text: str) -> str:
    """A word of Hydra's grammar that stands for this text and refers to nothing, whatever is in
    it."""
    # here: Hydra takes a third of a second, and few words need quotes
    from scaling.composition.hydra_parts import Quote, QuotedString

    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # as OmegaConf unescapes a reference
    return QuotedString(literal, Quote.single).with_quotes()
