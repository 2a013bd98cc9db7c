"""metrics.jsonl, the record of a run: one JSON object a line, appended, and read back exactly.

Floats are written as the shortest text that reads back as the same float. Those that are not finite
are words in the file (`files.WORDS`), and floats again when read. Each line holds its number, so
that one cut out of the middle is noticed; readers and sinks do not see it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from scaling.errors import RunDirError
from scaling.metrics import names
from scaling.metrics.sink import Sink
from scaling.runs.files import (
    WORDS,
    append_line,
    disk_error,
    last_lines,
    parse_json,
    to_json,
    whole_lines,
    write_atomic,
)

T = TypeVar("T")
Record = dict[str, float]
METRICS = "metrics.jsonl"

_LINE = "line"
_TAIL_BYTES = 1 << 16
_NEAR_LINES = 4
"""Lines looked through for a value: records of training and of evaluation alternate at most."""


class MetricLog:
    """Appends records to `path` and passes each on to the sinks, the views of the record.

    check: called before each, to raise where the run is somebody else's by now. recorded_step,
    last_values: the last step in the file and all that is recorded of it, once `resume` has read
    it; 0 and nothing where there is none. gaps: as in `Kept`.
    """

    def __init__(
        self, path: Path, sinks: Iterable[Sink] = (), check: Callable[[], None] = lambda: None
    ) -> None:
        self.path = Path(path)
        self._check = check
        self._sinks = list(sinks)
        self._last_step = -1
        self.recorded_step, self.last_values = 0, Record()
        self.gaps: list[tuple[int, int]] = []
        self._n_lines = 0
        self._kinds: set[str] = set()

    def record(
        self, step: int, n_tokens: int, flops: float, wall_s: float, values: Mapping[str, float]
    ) -> None:
        """Write one line: where the run stands (totals since its beginning), and what was measured
        there.

        A step may have several records of different kinds; a kind is the first part of the first
        name (train, val, eval). No (step, kind) repeats and no step goes back, which is asserted.
        Raises RunDirError.
        """
        self._check()
        kind = next(iter(values), "").split("/")[0]
        if step != self._last_step:
            assert step > self._last_step, f"step {step} recorded after step {self._last_step}"
            self._last_step, self._kinds = step, set()
        assert kind not in self._kinds, f"a second {kind} record of step {step}"
        self._kinds.add(kind)
        position = dict(zip(names.POSITION, (step, n_tokens, flops, wall_s), strict=True))
        record = {name: _plain(value) for name, value in (position | dict(values)).items()}
        self.last_values = (self.last_values if step == self.recorded_step else {}) | record
        self.recorded_step = step
        self._n_lines += 1
        append_line(self.path, to_json({**record, _LINE: self._n_lines}, separators=(",", ":")))
        for sink in self._sinks:
            sink.log(record)

    def last_step(self) -> int:
        """The last step in the file, as the previous group of workers left it; 0 where there is
        none. Raises RunDirError."""
        try:
            size = self.path.stat().st_size
            tail = _TAIL_BYTES
            while not (lines := last_lines(self.path, tail)) and tail < size:
                tail *= 2
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise disk_error("read", self.path, error) from error
        return (
            int(_decoded(self.path, "the last line", lines[-1], decode_record)[names.STEP])
            if lines
            else 0
        )

    def resume(self, step: int | None) -> float:
        """Drop, atomically, a torn end and every record after `step`; returns the last wall_s that
        is left, or 0.0.

        `step` is the checkpoint's; None, where there is no checkpoint, drops all. Raises
        RunDirError for a damaged line before the end.
        """
        if not self.path.exists():
            self._last_step, self._kinds = -1 if step is None else step, set()
            self.recorded_step, self.last_values = 0, Record()
            self._n_lines, self.gaps = 0, []
            return 0.0
        kept = copy_record(self.path, self.path, step)
        self._last_step, self._kinds = kept.step, kept.kinds
        self.last_values, self._n_lines, self.gaps = kept.values, kept.n_lines, kept.gaps
        self.recorded_step = int(kept.values.get(names.STEP, 0))
        return kept.wall_s

    def rewind(self, step: int) -> None:
        """Drop every record after `step`, which will be recorded again, and tell the sinks. Raises
        RunDirError."""
        self.resume(step)
        for sink in self._sinks:
            sink.rewind(step)

    def close(self) -> None:
        """Close every sink, the last ones too when an earlier one fails."""
        while self._sinks:
            try:
                self._sinks.pop(0).close()
            except BaseException:
                self.close()
                raise


@dataclass(frozen=True)
class Kept:
    """The end of a record that was cut: its step, the kinds of the records of that step, and the
    last wall_s.

    values: all that is recorded of the last step that was kept, which may be an earlier one.
    n_lines: the number of the last line. gaps: steps of the records before and after each place
    where lines are missing.
    """

    step: int
    kinds: set[str]
    wall_s: float
    values: Record
    n_lines: int
    gaps: list[tuple[int, int]]


def copy_record(source: Path, target: Path, step: int | None) -> Kept:
    """Make `target` the records of `source` up to `step` (None: none), atomically; they may be one
    file.

    The records pass through one at a time. Raises RunDirError for a damaged line before the end.
    """
    last_step = -1 if step is None else step
    kinds, wall_s, values = set[str](), 0.0, Record()
    spans, position = list[list[int]](), 0
    n_lines, gaps = 0, list[tuple[int, int]]()
    for number, line in enumerate(_lines(source), start=1):
        record, own_number = _decoded(source, f"line {number}", line, _numbered)
        end = position + len(line) + 1
        if record[names.STEP] <= last_step:
            # lines of earlier versions have no number
            n_lines += 1
            if own_number is not None and own_number > n_lines:
                gaps.append((int(values.get(names.STEP, 0)), int(record[names.STEP])))
                n_lines = own_number
            wall_s = record[names.WALL_S]
            values = (values if values.get(names.STEP) == record[names.STEP] else {}) | record
            if record[names.STEP] == last_step:
                kinds.add(_kind(record))
            if spans and spans[-1][1] == position:
                spans[-1][1] = end
            else:
                spans.append([position, end])
        position = end
    if target != source or spans != [[0, source.stat().st_size]]:
        write_atomic(target, _spans_of(source, spans))
    return Kept(last_step, kinds, wall_s, values, n_lines, gaps)


def _spans_of(path: Path, spans: Iterable[Sequence[int]]) -> Iterator[bytes]:
    """The bytes of these spans of whole lines, in blocks; the last line gets its newline where it
    has none."""
    with path.open("rb") as file:
        for start, end in spans:
            file.seek(start)
            while start < end:
                block = file.read(min(end - start, _TAIL_BYTES)) or b"\n"
                start += len(block)
                yield block


def read_metrics(path: Path, only: Collection[str] = ()) -> list[Record]:
    """All records, in order; a torn last line, as a crash leaves it, is passed over.

    only: the names that are wanted, for all of a long run's take gigabytes. Raises RunDirError
    where there is no such file, and for a damaged line before the end, which it names.
    """
    if not only:
        return list(iter_metrics(path))
    wanted = tuple(only)
    return [
        {name: record[name] for name in wanted if name in record} for record in iter_metrics(path)
    ]


def iter_metrics(path: Path) -> Iterator[Record]:
    """The records of `read_metrics` one at a time: of a long run, all of them take gigabytes."""
    path = Path(path)
    for number, line in enumerate(_lines(path), start=1):
        yield _decoded(path, f"line {number}", line, decode_record)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        yield from whole_lines(path)
    except OSError as error:
        raise disk_error("read", path, error) from error


def sampled(path: Path, name: str, count: int = 12) -> list[float]:
    """Some `count` values of `name`, evenly spread over the file, of which little is read; none
    where it cannot be read."""
    values: list[float] = []
    with contextlib.suppress(OSError), Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        for place in range(count):
            file.seek(place * size // count)
            if place:
                file.readline()  # the part of a line that is left there
            for line in itertools.islice(file, _NEAR_LINES):
                value = _value(line, name)
                if value is not None:
                    values.append(value)
                    break
    return values


def _value(line: bytes, name: str) -> float | None:
    try:
        return decode_record(line).get(name)
    except ValueError:
        return None


def _kind(record: Mapping[str, float]) -> str:
    return next((name for name in record if name not in names.POSITION), "").split("/")[0]


def _plain(value: Any) -> float:
    """An int stays one; anything else that is a number (a NumPy or torch scalar) becomes a
    float."""
    return value if type(value) is int else float(value)


def decode_record(line: bytes) -> Record:
    """One record. Raises ValueError when the line is no record."""
    return _numbered(line)[0]


def _numbered(line: bytes) -> tuple[Record, int | None]:
    """What `decode_record` returns, and the line's number; None where an earlier version wrote
    it."""
    found = parse_json(line)
    if not isinstance(found, dict):
        raise ValueError("not an object")
    number_of_line = found.pop(_LINE, None)
    if number_of_line is not None and type(number_of_line) is not int:
        raise ValueError(f"{_LINE} is {number_of_line!r}, not a whole number")
    for name in names.POSITION:
        if name not in found:
            raise ValueError(f"{name} is missing")
    record: Record = {}
    for name, value in found.items():
        number = WORDS.get(value) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"{name} is {value!r}, not a number")
        record[sys.intern(name)] = number
    for name in names.POSITION:
        if not math.isfinite(record[name]):
            raise ValueError(f"{name} is {record[name]}, and says where the run stood")
    return record, number_of_line


def _decoded(path: Path, place: str, line: bytes, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(line)
    except ValueError as error:
        raise RunDirError(
            f"{place} of {path} is damaged: {error}",
            f"it begins {line[:60].decode(errors='replace')!r}",
            "A crash tears only the last line, so something else wrote here: restore the file, "
            "or delete that line.",
        ) from error
