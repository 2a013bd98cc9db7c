"""Options of the drill: its own keys, and those of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from scaling.config.paths import split_words as split_list
from scaling.config.section import Section
from scaling.errors import ConfigError
from scaling.rehearsal.processes import KINDS

RUN_DEFAULTS = (
    "train.log_every=1",
    "train.sample_tokens=0",
    "logger=none",
    "cluster.max_failures=1000",
)
"""A record of every step is what is compared. The run may fail as often as the drill wants."""


class DrillOptions(Section):
    """Keys of the drill itself."""

    kills: int = Field(10, ge=0, description="processes to kill, at random steps")
    victims: str = Field(
        ",".join(KINDS),
        description="kinds of processes to draw from; the driver is killed where none of them "
        "is there",
    )
    resizes: int = Field(
        2,
        ge=0,
        description="times to stop it (SIGTERM) and start it with another number of workers, "
        "where there is room for several",
    )
    nodes: int = Field(
        0,
        ge=0,
        description="machines of one worker, imitated by Ray nodes of the drill's own, that die "
        "and come back; 0: none",
    )
    seed: int | None = Field(
        None,
        ge=0,
        description="seed that fixes which processes die and when; null: a new one, printed",
    )
    directory: str = Field(
        "rehearsal", description="of both runs and the report; must not exist yet"
    )
    timeout_s: float = Field(
        600.0, gt=0, description="longest wait for a run to continue after a kill"
    )

    @property
    def kinds(self) -> set[str]:
        return set(split_list(self.victims))

    @model_validator(mode="after")
    def _known(self) -> Self:
        unknown = sorted(self.kinds - set(KINDS))
        if unknown:
            raise ValueError(
                f"victims={self.victims}: {unknown[0]!r} is none of {', '.join(KINDS)}"
            )
        return self

    @model_validator(mode="after")
    def _nodes(self) -> Self:
        if self.nodes == 1:
            raise ValueError(
                "nodes=1 leaves nothing when it is killed: use 2 or more, or 0 for none"
            )
        return self


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(words of the drill, words of the run)."""
    own = [word for word in words if word.partition("=")[0] in DrillOptions.model_fields]
    return own, [word for word in words if word not in own]


def new_directory(options: DrillOptions) -> Path:
    """The drill's directory, made. Raises ConfigError where it exists."""
    path = Path(options.directory).expanduser().absolute()
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(
            f"{path} exists already",
            f"directory={options.directory}",
            "Give another with directory=DIR, or remove it.",
        ) from None
    return path
