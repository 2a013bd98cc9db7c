"""Views of the record: the sinks that a configuration asks for, and what they lack of a run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.metrics import names
from scaling.metrics.record import METRICS, MetricLog, Sink, iter_metrics
from scaling.metrics.tensorboard_sink import TensorBoardSink, last_step_of
from scaling.metrics.wandb_sink import back_fill_wandb, open_wandb_sink
from scaling.units import counted

if TYPE_CHECKING:
    from scaling.config.run_config import RunConfig


def make_sinks(
    config: RunConfig, run_dir: Path, resumed_step: int | None, notice: Callable[[str], None]
) -> list[Sink]:
    """The sinks of `config.logger`, with their files under `run_dir`; call it on one rank only.

    `resumed_step` is the checkpoint's step, None where there is none: what a sink lacks up to
    there, it is given from metrics.jsonl. What the user should know is said once through `notice`.
    Raises RunDirError for a directory not writable.
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
                _replay(run_dir, board, known_step, resumed_step, notice)
            return [board]
        case "none":
            return []


def back_fill(config: RunConfig, run_dir: Path, notice: Callable[[str], None]) -> None:
    """Give the logger of `config` what it lacks of a finished run, and say so. Raises
    RunDirError."""
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
                _replay(run_dir, board, known_step, last_step, notice)


def _replay(
    run_dir: Path, sink: Sink, known_step: int, last_step: int, notice: Callable[[str], None]
) -> None:
    """Log what `sink` lacks: the records after `known_step`, up to `last_step`."""
    if known_step >= last_step or not (run_dir / METRICS).exists():
        return
    n_filled = 0
    for record in iter_metrics(run_dir / METRICS):
        if known_step < record[names.STEP] <= last_step:
            sink.log(record)
            n_filled += 1
    if n_filled:
        notice(f"TensorBoard: {counted(n_filled, 'earlier record')} filled in from metrics.jsonl.")
