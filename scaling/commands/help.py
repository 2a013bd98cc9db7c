"""--help in plain words: every group with its options, every key with its meaning and default."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from scaling.composition.compose import compose
from scaling.composition.words import option_line
from scaling.config.run_config import RunConfig, conf_dir, options_of

_INTRO = """\
python -m scaling.run [GROUP=OPTION] [KEY=VALUE] ...

Trains one configuration, or with -m a study of many; the same command again continues. Nothing
given: a small GPT here.

  python -m scaling.run dry_run=true                              the plan, and nothing else
  python -m scaling.run train.n_tokens=20M optim.lr=1e-3          other values
  python -m scaling.run model=gpt_1b cluster=8xA100 dry_run=true  the plan of another machine
  python -m scaling.run -m optim.lr=1e-3,3e-3 train.seed=0,1      four runs on one cluster
  python -m scaling.run -m +experiment=isoflop_cpu dry_run=true   the trials of an experiment

Exit codes: 0 finished; 2 configuration or plan wrong; 75 stopped, the same command continues;
1 anything else.
Of a study: 0 all trials finished; 1 some failed too often, and the others are finished.
"""


def help_text() -> str:
    return "\n".join(
        [
            _INTRO,
            "Groups (GROUP=OPTION)",
            *_groups(),
            "",
            "Keys (KEY=VALUE) and their defaults",
            *_sections(),
        ]
    )


def _groups() -> Iterator[str]:
    for group in sorted(path.name for path in conf_dir().iterdir() if path.is_dir()):
        options = sorted(name for name in options_of(group) if not name.startswith("_"))
        if options:
            yield f"  {group:<12} {' '.join(options)}"


def _sections() -> Iterator[str]:
    defaults = compose().model_dump()
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield ""
            yield from _keys(field.annotation, defaults[name], f"{name}.")
        else:
            yield _line(name, defaults[name], field.description)


def _keys(model: type[BaseModel], defaults: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, defaults[name], f"{prefix}{name}.")
        else:
            yield _line(prefix + name, defaults[name], field.description)


def _line(key: str, default: Any, meaning: str | None) -> str:
    return option_line(key, "null" if default is None else default, meaning, width=43)
