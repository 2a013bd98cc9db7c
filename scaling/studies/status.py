"""How runs stand: the facts of one run, and the table of many."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.checkpoint.store import newest_step
from scaling.errors import RunDirError, ScalingError
from scaling.metrics import names
from scaling.metrics.record import Record, decode_record, sampled
from scaling.runs.directory import RunDir
from scaling.runs.events import state_after
from scaling.runs.files import last_lines, read_object
from scaling.runs.goodput import Seconds, account, goodput
from scaling.screen import Column, FittedTable, sparkline
from scaling.units import format_count, format_duration

_TAILS_BYTES = (1 << 16, 1 << 20)
"""Parts of a record that are looked through, the second where the first lacks a value: about 250
and 4000 lines."""
_SHOWN = (names.TRAIN_LOSS, names.VAL_LOSS, names.TOKENS_PER_S)
_COLUMNS = (
    Column("run", wraps=True),
    Column("state", left=True),
    Column("step"),
    Column("loss"),
    Column("val loss", 2),
    Column("curve", 5, left=True),
    Column("tokens/s", 4),
    Column("restarts", 7),
    Column("goodput", 6),
    Column("ETA", 3),
    Column("last record", 5),
)
_COLOURS = {
    "running": "green",
    "finished": "blue",
    "failed": "bold red",
    "interrupted": "yellow",
    "stopped": "yellow",
    "damaged": "bold red",
}


@dataclass(frozen=True)
class RunStatus:
    """One row. None is unknown.

    `state` is running, finished, failed, stopped, preempted, interrupted, begun, pruned, new or
    damaged: interrupted has begun and has no living driver; begun is one of the two where locks
    cannot tell. `checkpoint_step`: where the same command continues, of a run that stands still
    before its end. `seconds`: where its time has gone (`scaling.runs.goodput`), and `goodput` the
    share of steps that count. `curve`: its losses in a few bars.
    """

    name: str
    path: str
    state: str
    step: int | None = None
    n_steps: int | None = None
    checkpoint_step: int | None = None
    loss: float | None = None
    val_loss: float | None = None
    tokens_per_s: float | None = None
    restarts: int | None = None
    goodput: float | None = None
    seconds: Seconds | None = None
    eta_s: float | None = None
    age_s: float | None = None
    curve: str | None = None
    trouble: str | None = None


def status_of(path: Path, root: Path) -> RunStatus:
    """The row of one run, named as seen from `root`. A damaged run is a row that says so and does
    not hide the others."""
    run_dir, name = RunDir(path), path.name if path == root else str(path.relative_to(root))
    try:
        events, plan = run_dir.read_events(), read_object(path / "plan.json") or {}
        newest = newest_values(run_dir.metrics)
        state, seconds = _state(run_dir, events), account(events, run_dir.read_progress())
    except ScalingError as error:
        return RunStatus(name, str(path), "damaged", trouble=str(error))
    tokens_per_s = newest.get(names.TOKENS_PER_S)
    running = state in ("running", "begun")
    step = newest.get(names.STEP)
    return RunStatus(
        name=name,
        path=str(path),
        state=state,
        step=int(step) if step is not None else None,
        n_steps=plan.get("n_steps"),
        checkpoint_step=None if running or state == "finished" else _checkpoint_step(run_dir),
        loss=newest.get(names.TRAIN_LOSS),
        val_loss=newest.get(names.VAL_LOSS),
        tokens_per_s=tokens_per_s,
        restarts=sum(event["kind"] == "resume" for event in events),
        goodput=goodput(seconds),
        seconds={activity: round(spent_s, 3) for activity, spent_s in seconds.items()}
        if events
        else None,
        eta_s=_eta_s(plan.get("n_tokens"), newest.get(names.N_TOKENS), tokens_per_s)
        if running
        else None,
        age_s=_age_s(run_dir),
        curve=sparkline(sampled(run_dir.metrics, names.TRAIN_LOSS)) or None,
        trouble=next(
            (
                str(event["reason"])
                for event in events[-1:]
                if event["kind"] == "failed" and "reason" in event
            ),
            None,
        ),
    )


def _state(run_dir: RunDir, events: Sequence[dict[str, Any]]) -> str:
    state, driven = state_after(events), run_dir.is_driven()
    if driven and state != "finished":
        return "running"
    if state == "begun" and driven is False:
        return "interrupted"
    return state


def newest_values(metrics: Path) -> Record:
    """The newest values of what a row shows, from the end of metrics.jsonl; step and n_tokens are
    the last record's."""
    newest: Record = {}
    try:
        for n_bytes in _TAILS_BYTES:
            newest = _newest_of(metrics, last_lines(metrics, n_bytes))
            if newest.keys() >= set(_SHOWN) or metrics.stat().st_size <= n_bytes:
                break
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunDirError(
            f"cannot read {metrics}: {error.strerror}", fix="Give yourself permission to read it."
        ) from error
    return newest


def _newest_of(metrics: Path, lines: list[bytes]) -> Record:
    """The last line whole, and of lines before only what is not known yet: most lines are not
    decoded."""
    newest: Record = {}
    missing = {f'"{name}"'.encode(): name for name in _SHOWN}
    for line in reversed(lines):
        if newest and not any(key in line for key in missing):
            continue
        try:
            newest = decode_record(line) | newest
        except ValueError as error:
            fix = "Restore the file, or delete that line."
            raise RunDirError(
                f"{metrics} is damaged: {error} in {line[:60].decode(errors='replace')!r}", fix=fix
            ) from error
        missing = {key: name for key, name in missing.items() if name not in newest}
        if not missing:
            break
    return newest


def _checkpoint_step(run_dir: RunDir) -> int | None:
    """Step of the newest checkpoint, unverified; 0 where a run has begun and has none."""
    if not run_dir.events.exists():
        return None
    return newest_step(run_dir.checkpoints) or 0


def _eta_s(
    n_tokens_total: float | None, n_tokens: float | None, tokens_per_s: float | None
) -> float | None:
    if n_tokens_total is None or n_tokens is None or not tokens_per_s:
        return None
    return max(0.0, (n_tokens_total - n_tokens) / tokens_per_s)


def _age_s(run_dir: RunDir) -> float | None:
    """Seconds since the last record or event was written."""
    written_s = [
        path.stat().st_mtime for path in (run_dir.metrics, run_dir.events) if path.exists()
    ]
    return max(0.0, time.time() - max(written_s)) if written_s else None


def status_items(statuses: Sequence[RunStatus]) -> Iterator[str | FittedTable]:
    """The table, and below it what went wrong."""
    yield _table(statuses)
    yield from (f"{status.name}: {status.trouble}" for status in statuses if status.trouble)


def _table(statuses: Sequence[RunStatus]) -> FittedTable:
    from rich.text import Text

    table = FittedTable(_COLUMNS)
    for s in statuses:
        table.add(
            s.name,
            Text(s.state, style=_COLOURS.get(s.state, "")),
            _step(s),
            _shown(s.loss, "{:.3f}"),
            _shown(s.val_loss, "{:.3f}"),
            s.curve or "-",
            format_count(s.tokens_per_s) if s.tokens_per_s is not None else "-",
            _shown(s.restarts, "{}"),
            _shown(s.goodput, "{:.1%}"),
            format_duration(s.eta_s) if s.eta_s is not None else "-",
            f"{format_duration(s.age_s)} ago" if s.age_s is not None else "-",
        )
    return table


def _step(status: RunStatus) -> str:
    """The last record's step; where another command would continue from an earlier checkpoint, that
    one's too."""
    text = _shown(status.step, "{}") + (f" / {status.n_steps}" if status.n_steps else "")
    if status.checkpoint_step is None or status.checkpoint_step == status.step:
        return text
    return f"{text}, saved {status.checkpoint_step}"


def _shown(value: float | None, style: str) -> str:
    return "-" if value is None else style.format(value)
