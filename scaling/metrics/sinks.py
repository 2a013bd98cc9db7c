"""Make the sinks that a configuration asks for, and give them what they lack of a run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.metrics.record import METRICS, MetricLog
from scaling.metrics.replay import replay
from scaling.metrics.sink import Sink
from scaling.metrics.tensorboard_sink import TensorBoardSink, last_step_of
from scaling.metrics.wandb_sink import back_fill_wandb, open_wandb_sink
from scaling.units import counted

if TYPE_CHECKING:
    from scaling.config.run_config import RunConfig


def make_sinks(
    config: RunConfig, run_dir: Path, resumed_step: int | None, notice: Callable[[str], None]
) -> list[Sink]:
    """The sinks of `config.logger`, with their files under `run_dir`; call it on one rank only.

    `resumed_step` is the checkpoint's step, None where there is none. Records up to it that a sink
    lacks are filled in from metrics.jsonl. `notice` is called with what the user should know.
    Raises RunDirError for a directory that cannot be written.
    """
    match config.logger.kind:
        case "wandb":
            sink = open_wandb_sink(config, run_dir, resumed_step, notice)
            return [] if sink is None else [sink]
        case "tensorboard":
            directory = run_dir / "tensorboard"
            known_step = last_step_of(directory)
            board = TensorBoardSink(
                directory, first_step=0 if resumed_step is None else resumed_step + 1
            )
            if resumed_step is not None:
                _fill_in(run_dir, board, known_step, resumed_step, notice)
            return [board]
        case "none":
            return []


def back_fill(config: RunConfig, run_dir: Path, notice: Callable[[str], None]) -> None:
    """Give the logger of `config` the records of a finished run that it lacks, and report it.
    Raises RunDirError."""
    last_step = MetricLog(run_dir / METRICS).last_step()
    match config.logger.kind:
        case "wandb":
            back_fill_wandb(config, run_dir, last_step, notice)
        case "tensorboard":
            directory = run_dir / "tensorboard"
            known_step = last_step_of(directory)
            if known_step >= last_step:
                notice("TensorBoard: has the whole run already.")
                return
            with closing(TensorBoardSink(directory, first_step=known_step + 1)) as board:
                _fill_in(run_dir, board, known_step, last_step, notice)


def _fill_in(
    run_dir: Path, sink: Sink, known_step: int, last_step: int, notice: Callable[[str], None]
) -> None:
    n_filled = replay(run_dir, sink, known_step, last_step)
    if n_filled:
        notice(f"TensorBoard: {counted(n_filled, 'earlier record')} filled in from metrics.jsonl.")
