"""W&B's view. metrics.jsonl stays the record: what W&B lost to a crash is replayed from it when the
run resumes.

Only this module imports wandb, and only when a W&B sink is opened. wandb 0.31 keeps up to its flush
interval in memory and its service ends with our process, so after a SIGKILL W&B holds fewer steps
than metrics.jsonl (measured: none of seven steps at the default of 15 s).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scaling.metrics import names
from scaling.metrics.reachable import CONNECT_TIMEOUT_S, reachable
from scaling.metrics.replay import replay
from scaling.metrics.wandb_files import (
    FILLED_FILE,
    ID_FILE,
    filled_to,
    last_step_on_disk,
    wandb_id,
)
from scaling.redaction import redact, redact_tree
from scaling.runs.files import disk_error, write_atomic
from scaling.units import counted

if TYPE_CHECKING:
    from scaling.config.run_config import RunConfig

Mode = Literal["online", "offline", "disabled"]

_INIT_TIMEOUT_S = 30.0  # assumption
_FINISH_TIMEOUT_S = 60.0  # assumption; what is not uploaded by then stays on disk for `wandb sync`
_FLUSH_INTERVAL_S = 2.0  # assumption; wandb's own 15 s make `wandb leet` and crashes see an old run


class WandbSink:
    """Logs to an open W&B run. A step up to `last_step`, which W&B has already, is passed over.

    Trouble with W&B ends the view, said once through `notice`, and never the run.
    """

    def __init__(self, run: Any, last_step: int, notice: Callable[[str], None]) -> None:
        self._run: Any | None = run
        self._last_step = self._newest_step = last_step
        self._notice = notice
        self.sound = True

    @property
    def newest_step(self) -> int:
        return self._newest_step

    def log(self, record: Mapping[str, float]) -> None:
        """Log the record at its step; W&B merges the records of one step, and plots all against
        train/tokens."""
        step = int(record[names.STEP])
        if self._run is None or step <= self._last_step:
            return
        values = {
            name: value
            for name, value in record.items()
            if name not in (names.STEP, names.N_TOKENS)
        }
        with self._ending_on_trouble():
            self._run.log(values | {names.TRAIN_TOKENS: record[names.N_TOKENS]}, step=step)
        self._newest_step = step

    def rewind(self, step: int) -> None:
        """W&B takes no step twice: of those that come again it keeps what it has."""
        self._last_step = max(self._last_step, self._newest_step)

    def close(self) -> None:
        """Finish the W&B run, waiting a bounded time for its upload; more than once does no
        harm."""
        run, self._run = self._run, None
        if run is not None:
            with self._ending_on_trouble():
                run.finish()

    @contextlib.contextmanager
    def _ending_on_trouble(self) -> Iterator[None]:
        import wandb

        try:
            yield
        except (wandb.Error, OSError) as error:
            self._run, self.sound = None, False
            self._notice(
                f"W&B: stopped ({redact(str(error))}); metrics.jsonl continues, "
                "and a resumed run tries again"
            )


def open_wandb_sink(
    config: RunConfig, run_dir: Path, resumed_step: int | None, notice: Callable[[str], None]
) -> WandbSink | None:
    """Start, or continue under the same id, the W&B run of `run_dir`; None when
    WANDB_MODE=disabled.

    Offline, said once, when WANDB_MODE says so and where there is no key or no network. Replays
    from metrics.jsonl the steps up to `resumed_step` that W&B lacks. Raises RunDirError when
    `run_dir` cannot be written to.
    """
    with _environment(run_dir):
        import wandb

        return _open(wandb, config, run_dir, resumed_step, notice)


@contextlib.contextmanager
def _environment(run_dir: Path) -> Iterator[None]:
    """What wandb and its service read when they start, unless the user has set it: no error reports
    of a training job to their maker, and no logs in the home directory."""
    wanted = {"WANDB_ERROR_REPORTING": "false", "WANDB_CACHE_DIR": str(run_dir / "wandb" / "cache")}
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _open(
    wandb: Any,
    config: RunConfig,
    run_dir: Path,
    resumed_step: int | None,
    notice: Callable[[str], None],
) -> WandbSink | None:
    mode, reason = _choose_mode(wandb)
    if mode == "disabled":
        notice("W&B: not used, since WANDB_MODE=disabled")
        return None
    run_id = wandb_id(config, run_dir)
    last_step = last_step_on_disk(
        run_dir, run_id, unknown=-1 if resumed_step is None else resumed_step
    )
    arguments = _init_arguments(wandb, config, run_dir, run_id)
    run = None
    if mode == "online":
        run, reason = _try_init(wandb, run_dir, mode="online", **arguments)
        if run is None:
            # its service keeps the id of a run that failed to start, and refuses it again
            wandb.teardown()
    if run is not None:
        last_step = run.step - 1 if run.resumed else -1
        notice(f"W&B: {run.url}")
    else:
        run, trouble = _try_init(wandb, run_dir, mode="offline", **arguments)
        if run is None:
            notice(f"W&B: not used, since {trouble}")
            return None
        notice(
            f"W&B: offline, since {reason}; "
            f"send it later with: wandb sync {run_dir / 'wandb'}/*run-*-{run_id}"
        )
    run.define_metric("*", step_metric=names.TRAIN_TOKENS)
    sink = WandbSink(run, last_step, notice)
    if resumed_step is not None:
        n_filled = replay(run_dir, sink, sink.newest_step, resumed_step)
        if n_filled:
            notice(f"W&B: {counted(n_filled, 'earlier record')} filled in from metrics.jsonl.")
    return sink


def back_fill_wandb(
    config: RunConfig, run_dir: Path, last_step: int, notice: Callable[[str], None]
) -> None:
    """Give W&B the records of a finished run that it lacks.

    A file beside those of W&B holds the step up to which this was done.
    """
    if filled_to(run_dir) >= last_step:
        notice("W&B: has the whole run already.")
        return
    if (run_dir / ID_FILE).exists() and last_step_on_disk(
        run_dir, wandb_id(config, run_dir), unknown=-1
    ) >= last_step:
        notice("W&B: has the whole run already.")
    else:
        sink = open_wandb_sink(config, run_dir, last_step, notice)
        if sink is None:
            return
        sink.close()
        if not sink.sound:
            return
    write_atomic(run_dir / FILLED_FILE, f"{last_step}\n".encode())


def _init_arguments(wandb: Any, config: RunConfig, run_dir: Path, run_id: str) -> dict[str, Any]:
    logger = config.logger
    return {
        "dir": str(run_dir),
        "id": run_id,
        "resume": "allow",
        "name": run_dir.name,
        "project": logger.project,
        "entity": logger.entity,
        "group": logger.group,
        "config": redact_tree(config.semantic()),
        "settings": _settings(wandb),
    }


def _try_init(wandb: Any, run_dir: Path, **arguments: Any) -> tuple[Any | None, str]:
    """A W&B run; or None, and why W&B refused. Raises RunDirError when its files cannot be
    written."""
    try:
        return wandb.init(**arguments), ""
    except (wandb.Error, ConnectionError, TimeoutError) as error:
        return None, f"it cannot be used ({redact(str(error))})"
    except OSError as error:
        raise disk_error("start W&B in", run_dir, error) from error


def _settings(wandb: Any) -> Any:
    """Nothing printed, captured, sampled or collected but what is logged; nothing that waits
    without a bound."""
    return wandb.Settings(
        silent=True,
        console="off",
        symlink=False,
        reinit="create_new",
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        disable_git=True,
        disable_code=True,
        save_code=False,
        init_timeout=_INIT_TIMEOUT_S,
        finish_timeout=_FINISH_TIMEOUT_S,
        x_transaction_log_flush_interval=_FLUSH_INTERVAL_S,
    )


def _choose_mode(wandb: Any) -> tuple[Mode, str]:
    """The mode, and for "offline" the reason. Settings files, WANDB_MODE and keys are read by wandb
    itself."""
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import authenticate_session

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if settings.mode in ("disabled", "offline", "dryrun"):
        mode: Mode = "disabled" if settings.mode == "disabled" else "offline"
        return mode, f"WANDB_MODE={settings.mode}"
    try:
        key = authenticate_session(
            host=settings.base_url, source="scaling", prompt=False, update_session=False
        )
    except AuthenticationError as error:
        return "offline", f"the API key is not usable ({redact(str(error))})"
    if key is None:
        return "offline", "there is no API key (set WANDB_API_KEY, or run `wandb login`)"
    if not reachable(settings.base_url):
        return "offline", f"{settings.base_url} does not answer within {CONNECT_TIMEOUT_S:.0f} s"
    return "online", ""


def log_results(
    config: RunConfig,
    directory: Path,
    rows: Sequence[Mapping[str, Any]],
    notice: Callable[[str], None],
) -> None:
    """Send the rows of a study, all with the same keys, as the table "results" of one W&B run in
    the study's group.

    Its files and id lie in the study's `directory`: a later call continues the run. An error of
    W&B is reported and not raised.
    """
    with _environment(directory):
        import wandb

        mode, reason = _choose_mode(wandb)
        if mode == "disabled" or not rows:
            return
        arguments = _init_arguments(wandb, config, directory, wandb_id(config, directory))
        arguments |= {"name": f"{directory.name}-results", "job_type": "study", "config": None}
        run, trouble = _try_init(wandb, directory, mode=mode, **arguments)
        if run is None:
            notice(f"W&B: no table of results, since {trouble}")
            return
        columns: list[str | int] = list(rows[0])
        try:
            run.log(
                {
                    "results": wandb.Table(
                        columns=columns, data=[[row[str(name)] for name in columns] for row in rows]
                    )
                }
            )
            run.finish()
        except (wandb.Error, OSError) as error:
            notice(f"W&B: no table of results ({redact(str(error))})")
            return
        notice(
            "W&B: table of results"
            + (f", offline, since {reason}" if mode == "offline" else f": {run.url}")
        )
