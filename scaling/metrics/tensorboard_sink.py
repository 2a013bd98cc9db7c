"""TensorBoard's view: scalars in an event file, written with tensorboard's own record writer (no
torch, no TensorFlow)."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scaling.metrics import names
from scaling.runs.files import disk_error


class TensorBoardSink:
    """One event file a start under `directory`. Values are float32 there, since the format holds no
    more.

    TensorBoard then hides what earlier event files hold from `first_step` on: the steps that a
    resumed run takes again. Raises RunDirError when the file cannot be written.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        now_s = time.time()
        self.path = (
            directory / f"events.out.tfevents.{now_s:017.6f}.{socket.gethostname()}.{os.getpid()}"
        )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "xb")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise disk_error("write", self.path, error) from error
        self._writer = RecordWriter(self._file)
        self._write(Event(wall_time=now_s, file_version="brain.Event:2"))
        self.rewind(first_step - 1)

    def rewind(self, step: int) -> None:
        """What is there of later steps is hidden."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        start = SessionLog(status=SessionLog.START)
        self._write(self._event(wall_time=time.time(), step=step + 1, session_log=start))

    def log(self, record: Mapping[str, float]) -> None:
        """Write a scalar for every value; its step is the record's."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = {name: value for name, value in record.items() if name != names.STEP}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(
            self._event(
                wall_time=time.time(), step=int(record[names.STEP]), summary=Summary(value=values)
            )
        )

    def close(self) -> None:
        """Close the event file; more than once does no harm."""
        self._file.close()

    def _write(self, event: Any) -> None:
        try:
            self._writer.write(event.SerializeToString())
            self._writer.flush()
        except OSError as error:
            raise disk_error("append to", self.path, error) from error


def last_step_of(directory: Path) -> int:
    """The last step that TensorBoard shows of the event files there; -1 where it shows none. Raises
    RunDirError."""
    last_step = -1
    try:
        for path in sorted(directory.glob("events.out.tfevents.*")):
            for event in _events(path.read_bytes()):
                if event.HasField("session_log"):
                    last_step = min(last_step, event.step - 1)
                elif event.HasField("summary"):
                    last_step = max(last_step, event.step)
    except OSError as error:
        raise disk_error("read", directory, error) from error
    return last_step


def _events(content: bytes) -> Iterator[Any]:
    """The whole events of a file: each its length in 8 bytes, a checksum in 4, itself, and a
    checksum in 4."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    place = 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        if place + 16 + length > len(content):
            return  # torn by a crash
        try:
            yield Event.FromString(content[place + 12 : place + 12 + length])
        except DecodeError:
            return
        place += 16 + length
