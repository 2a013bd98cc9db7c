"""Views of the record: what a sink is, and the ones that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from scaling.metrics.tensorboard_sink import TensorBoardSink
from scaling.metrics.wandb_sink import open_wandb_sink

if TYPE_CHECKING:
    from scaling.config import RunConfig


class Sink(Protocol):
    """A view of metrics.jsonl. `log` is given every record as it was written; `close` loses none of them.

    `rewind`: the records after `step` do not count, and others of these steps will come.
    """

    def log(self, record: Mapping[str, float]) -> None: ...

    def rewind(self, step: int) -> None: ...

    def close(self) -> None: ...


def make_sinks(config: RunConfig, run_dir: Path, resumed_step: int | None, notice: Callable[[str], None]) -> list[Sink]:
    """The sinks of `config.logger`, with their files under `run_dir`; call it on one rank only.

    `resumed_step` is the checkpoint's step, None where there is no checkpoint. What the user should know is said once through
    `notice`. Raises RunDirError when `run_dir` cannot be written to.
    """
    match config.logger.kind:
        case "wandb":
            sink = open_wandb_sink(config, run_dir, resumed_step, notice)
            return [] if sink is None else [sink]
        case "tensorboard":
            return [TensorBoardSink(run_dir / "tensorboard", first_step=0 if resumed_step is None else resumed_step + 1)]
        case "none":
            return []
