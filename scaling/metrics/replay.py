"""Give a sink the records that it lacks."""

from __future__ import annotations

from pathlib import Path

from scaling.metrics import names
from scaling.metrics.record import METRICS, iter_metrics
from scaling.metrics.sink import Sink


def replay(run_dir: Path, sink: Sink, known_step: int, last_step: int) -> int:
    """Log the records of a run after `known_step`, up to `last_step`. Returns how many these are.

    Raises RunDirError for a damaged record.
    """
    path, n_records = run_dir / METRICS, 0
    if known_step >= last_step or not path.exists():
        return 0
    for record in iter_metrics(path):
        if known_step < record[names.STEP] <= last_step:
            sink.log(record)
            n_records += 1
    return n_records
